"""The embedded store without its journal: it heals from metering and from the runners, without lending money out.

Owns that; what Redis does in its place has its own suite.
"""

import pytest

from services.auth_and_limits.adapters.embedded_holds import LEARNING_US
from services.auth_and_limits.holds import Hold, HoldState
from services.auth_and_limits.records import Balance, Payer
from services.runtime.errors import StoreUnavailableError
from tests.contract.auth_and_limits.hold_store import ACCOUNT_ID, USD, EmbeddedBench, ask
from tests.contract.auth_and_limits.replicas import Ledger


@pytest.fixture
def ledger() -> Ledger:
    it = Ledger()
    it.of[ACCOUNT_ID] = Balance(ACCOUNT_ID, 7, 100, 30 * USD)
    return it


async def test_an_unknown_balance_is_asked_for_once(embedded: EmbeddedBench, ledger: Ledger) -> None:
    embedded.holds.heal_from(ledger, has_accounts=False)

    await embedded.admitted(ask(60))
    assert (await embedded.refusal(ask(60))).available_nano_usd == 40
    assert (await embedded.holds.ceilings(embedded.account)).tier == "next"
    assert ledger.asked == 1


async def test_nobody_is_admitted_whose_balance_cannot_be_asked(embedded: EmbeddedBench, ledger: Ledger) -> None:
    ledger.is_away = True
    embedded.holds.heal_from(ledger, has_accounts=False)

    for work in (embedded.admit(ask(1)), embedded.holds.limits(Payer(embedded.account))):
        with pytest.raises(StoreUnavailableError) as refused:
            await work
        assert refused.value.retry_in is not None
    assert (await embedded.holds.ceilings(embedded.account)).tier == "start"
    ledger.is_away = False
    await embedded.admitted(ask(1))


async def test_a_lost_journal_admits_nobody_until_the_runners_have_renewed(
    embedded: EmbeddedBench, ledger: Ledger
) -> None:
    embedded.holds.heal_from(ledger, has_accounts=True)
    with pytest.raises(StoreUnavailableError):
        await embedded.admit(ask(60))
    running = ask(60)
    record = Hold(running.call_id, running.run_id, "r", ACCOUNT_ID, "", HoldState.OPEN, 60, 0, "book")
    assert list(await embedded.holds.renew("r", [record])) == []

    embedded.clock.advance_us(LEARNING_US)

    assert (await embedded.refusal(ask(60))).available_nano_usd == 40
    await embedded.admitted(ask(40))


async def test_a_journal_that_is_there_is_believed(embedded: EmbeddedBench, ledger: Ledger) -> None:
    await embedded.fund(50)
    await embedded.crash()
    embedded.holds.heal_from(ledger, has_accounts=True)

    assert (await embedded.refusal(ask(60))).available_nano_usd == 50
    assert ledger.asked == 0
