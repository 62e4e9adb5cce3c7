"""What every store promises of refunds and balance events, with two replicas on it where the store knows replicas.

Owns that promise on both stores; refuses to test the rules themselves (unit tests do).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.metering import checking, reversals, usage
from services.metering.adapters.sqlite_ledger import open_ledger
from services.metering.adapters.sqlite_reports import open_reports
from services.metering.ports import BalanceEvent, Footprint, LedgerStore
from services.metering.reports import Reports
from services.metering.reversals import Correction, Refund
from services.metering.usage import Moment
from services.runtime.errors import InvalidRequestError
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, NOW_US, Bookkeeper, a_credit, an_event

DOLLAR = 1_000_000_000
COST = 26_400
THRESHOLDS = (DOLLAR, 0)
MOMENT = Moment(NOW_US, new_id, THRESHOLDS)


@pytest.fixture(params=["sqlite", "postgres"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[list[LedgerStore], Reports]]:
    """Two replicas on one ledger (on a file, the same one twice), and its reports."""
    async with AsyncExitStack() as stack:
        replicas: list[LedgerStore]
        reports: Reports
        if request.param == "sqlite":
            path = tmp_path / "ledger.sqlite3"
            ledger = await stack.enter_async_context(open_ledger(path, write_timeout_s=20.0))
            replicas, reports = [ledger, ledger], await stack.enter_async_context(open_reports(path))
        else:
            from services.metering.adapters.postgres_ledger import open_postgres_ledger
            from services.metering.adapters.postgres_reports import open_postgres_reports

            url = request.getfixturevalue("postgres_url")
            replicas = [
                await stack.enter_async_context(open_postgres_ledger(url, write_timeout_s=20.0)) for _ in range(2)
            ]
            reports = await stack.enter_async_context(open_postgres_reports(url))
        await Bookkeeper(replicas[0]).register()
        yield replicas, reports


async def refund(store: LedgerStore, amount_nano_usd: int) -> bool:
    """Whether it was paid back."""
    request = Refund(ACCOUNT, new_id(), amount_nano_usd, "receipt")
    try:
        await store.commit(
            lambda transaction: reversals.refund(transaction, request, MOMENT), footprint=Footprint([ACCOUNT])
        )
    except InvalidRequestError:
        return False
    return True


async def test_replicas_together_never_pay_back_more_than_there_is(
    stores: tuple[list[LedgerStore], Reports],
) -> None:
    replicas, _ = stores
    await Bookkeeper(replicas[0]).grant(a_credit(amount_nano_usd=10 * DOLLAR))

    paid = await asyncio.gather(*(refund(replicas[turn % 2], DOLLAR) for turn in range(30)))
    report = await replicas[1].inspect(lambda snapshot: checking.check(snapshot, ""))

    assert (sum(paid), report.violations) == (10, ())


async def test_replicas_together_never_correct_more_than_an_entry(stores: tuple[list[LedgerStore], Reports]) -> None:
    replicas, _ = stores
    granted = await Bookkeeper(replicas[0]).grant(a_credit(amount_nano_usd=10 * DOLLAR))
    entry_id = granted.record.transfer.transfer_id

    async def correct(store: LedgerStore) -> bool:
        request = Correction(ACCOUNT, new_id(), entry_id, 3 * DOLLAR)
        try:
            await store.commit(
                lambda transaction: reversals.correct(transaction, request, MOMENT), footprint=Footprint([ACCOUNT])
            )
        except InvalidRequestError:
            return False
        return True

    corrected = await asyncio.gather(*(correct(replicas[turn % 2]) for turn in range(10)))
    report = await replicas[1].inspect(lambda snapshot: checking.check(snapshot, ""))

    assert (sum(corrected), report.violations) == (3, ())


async def test_a_crossing_is_on_record_and_announced_once(stores: tuple[list[LedgerStore], Reports]) -> None:
    replicas, reports = stores
    await Bookkeeper(replicas[0]).grant(a_credit(amount_nano_usd=DOLLAR))
    for turn in range(4):
        event = an_event()
        await replicas[turn % 2].commit(
            lambda transaction, event=event: usage.record(transaction, [event], MOMENT),  # type: ignore[misc]
            footprint=usage.footprint_of([event]),
        )
    expected = BalanceEvent(ACCOUNT, DOLLAR, DOLLAR - COST, NOW_US)

    listed = await reports.balance_events(ACCOUNT, None, 10)
    waiting = await replicas[1].commit(lambda transaction: transaction.unannounced_balance_events(10))
    await replicas[1].commit(lambda transaction: transaction.forget_balance_events([row for row, _ in waiting]))
    left = await replicas[0].commit(lambda transaction: transaction.unannounced_balance_events(10))

    assert [row.event for row in listed] == [event for _, event in waiting] == [expected]
    assert left == []
    assert len(await reports.balance_events(ACCOUNT, None, 10)) == 1
