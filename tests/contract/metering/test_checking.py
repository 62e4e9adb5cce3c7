"""CheckLedger finds every tampering, names its rule, and stays silent on a sound ledger.

Owns the violations; refuses to repair.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.metering import checking
from services.metering.adapters.postgres_connection import BlockingConnection, Limits, connect
from services.metering.adapters.postgres_snapshot import PostgresSnapshot
from services.metering.charging import Ending
from services.metering.checking import CheckReport
from services.metering.ledger import CreditKind
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, DAY_US, NOW_US, Bookkeeper, a_credit, an_event
from tests.contract.metering.places import ClosableStore, Database, File, Place

POSTED, LATE, FREE, VOID = (f"0199b000-0000-7000-8000-00000000000{index}" for index in range(4))


@pytest.fixture
async def store(place: Place) -> AsyncIterator[ClosableStore]:
    async with a_full_ledger(place) as opened:
        yield opened


@asynccontextmanager
async def a_full_ledger(place: Place) -> AsyncIterator[ClosableStore]:
    """A ledger in which everything that can happen has happened."""
    async with place.open() as ledger:
        now = [NOW_US]
        books = Bookkeeper(ledger, lambda: now[0])
        await books.register()
        await books.grant(a_credit())
        await books.grant(a_credit(kind=CreditKind.REFUND))
        await books.grant(a_credit(kind=CreditKind.PROMOTION, expires_at_us=NOW_US + DAY_US))
        await books.grant(a_credit(kind=CreditKind.PROMOTION, amount_nano_usd=77))
        await books.resolve(VOID, LATE)
        await books.record(an_event(call_id=POSTED), an_event(call_id=LATE))
        await books.record(an_event(call_id=FREE, ending=Ending.FAILED_BEFORE_CONTENT))
        await books.record(an_event(account_id="other"))
        now[0] += DAY_US
        await books.sweep()
        await books.record(an_event())
        yield ledger


async def check(store: ClosableStore, account_id: str = "") -> CheckReport:
    return await store.inspect(lambda snapshot: checking.check(snapshot, account_id))


async def test_a_sound_ledger_has_no_violation(store: ClosableStore) -> None:
    everything, one = await check(store), await check(store, "other")

    assert CheckReport(9, 2, 5, ()) == everything
    assert CheckReport(1, 1, 1, ()) == one


COPY_OF_A_TRANSFER = (
    "INSERT INTO transfers (transfer_id, debit, credit, amount_nano_usd, call_id, rule, flags, posted_at_us)"
    " SELECT {id}, debit, credit, {amount}, {call}, rule, flags, posted_at_us FROM transfers"
    f" WHERE call_id = '{POSTED}'"
)


TAMPERINGS = [
    pytest.param(
        ["UPDATE balances SET balance_nano_usd = balance_nano_usd + 1 WHERE account = 'payments'"],
        {"sum_not_zero", "balance_differs"},
        id="a balance that no transfer explains",
    ),
    pytest.param(
        [
            "UPDATE balances SET balance_nano_usd = balance_nano_usd + 1 WHERE account = 'payments'",
            "UPDATE balances SET balance_nano_usd = balance_nano_usd - 1 WHERE account = 'refunds'",
        ],
        {"balance_differs"},
        id="two balances that cancel out",
    ),
    pytest.param(
        ["UPDATE balances SET lifetime_paid_nano_usd = 5 WHERE account LIKE 'customer:%' AND seq > 1"],
        {"balance_differs", "outbox_behind"},
        id="a wrong lifetime paid",
    ),
    pytest.param(
        ["UPDATE promotions SET remaining_nano_usd = 1 WHERE remaining_nano_usd = 0"],
        {"balance_differs"},
        id="a promotion that came back",
    ),
    pytest.param(
        ["UPDATE balances SET promotional_nano_usd = 3 WHERE seq > 1"],
        {"balance_differs"},
        id="a wrong promotional part",
    ),
    pytest.param(
        [f"UPDATE transfers SET amount_nano_usd = amount_nano_usd + 1 WHERE call_id = '{POSTED}'"],
        {"balance_differs", "charge_differs"},
        id="a transfer with another amount",
    ),
    pytest.param(
        [f"UPDATE transfers SET amount_nano_usd = -5 WHERE call_id = '{POSTED}'"],
        {"sum_not_zero", "balance_differs", "charge_differs"},
        id="a transfer with a negative amount",
    ),
    pytest.param(
        [f"UPDATE transfers SET credit = debit WHERE call_id = '{POSTED}'"],
        {"sum_not_zero", "balance_differs", "charge_differs"},
        id="a transfer to itself",
    ),
    pytest.param(
        [f"UPDATE transfers SET rule = 'cut' WHERE call_id = '{POSTED}'"],
        {"charge_differs"},
        id="a transfer with another rule",
    ),
    pytest.param(
        [f"UPDATE transfers SET debit = 'customer:other' WHERE call_id = '{POSTED}'"],
        {"balance_differs", "charge_differs"},
        id="a transfer that somebody else pays",
    ),
    pytest.param(
        [f"UPDATE usage_events SET charged_nano_usd = charged_nano_usd - 1 WHERE call_id = '{POSTED}'"],
        {"charge_differs"},
        id="a record with another charge",
    ),
    pytest.param(
        [f"UPDATE usage_events SET charged_output_tokens = 1 WHERE call_id = '{POSTED}'"],
        {"charge_differs"},
        id="a record with other charged tokens",
    ),
    pytest.param(
        [f"UPDATE usage_events SET reported_output_tokens = 1 WHERE call_id = '{POSTED}'"],
        {"charge_differs"},
        id="a record with another report",
    ),
    pytest.param(
        [f"UPDATE usage_events SET ending = 7 WHERE call_id = '{POSTED}'"],
        {"charge_differs"},
        id="a record with another ending",
    ),
    pytest.param(
        [f"UPDATE usage_events SET ending = 77 WHERE call_id = '{POSTED}'"],
        {"charge_differs"},
        id="a record with an unknown ending",
    ),
    pytest.param(
        [f"UPDATE usage_events SET operation = 'chat' WHERE call_id = '{POSTED}'"],
        {"charge_differs"},
        id="a record with an unknown operation",
    ),
    pytest.param(
        [f"UPDATE usage_events SET flags = 'over_hold' WHERE call_id = '{POSTED}'"],
        {"charge_differs"},
        id="a record with another remark",
    ),
    pytest.param(["DELETE FROM price_books"], {"charge_differs"}, id="a price book that is gone"),
    pytest.param(
        [f"DELETE FROM transfers WHERE call_id = '{POSTED}'"],
        {"balance_differs", "usage_without_posting"},
        id="a posting that is gone",
    ),
    pytest.param(
        [f"DELETE FROM usage_events WHERE call_id = '{POSTED}'"],
        {"posting_without_usage"},
        id="a record that is gone",
    ),
    pytest.param(
        [COPY_OF_A_TRANSFER.format(id=f"'{new_id()}'", amount="amount_nano_usd", call=f"'{new_id()}'")],
        {"balance_differs", "posting_without_usage"},
        id="a posting of a call that never was",
    ),
    pytest.param(
        [
            "DROP INDEX transfers_once_per_call",
            COPY_OF_A_TRANSFER.format(id=f"'{new_id()}'", amount="amount_nano_usd", call="call_id"),
        ],
        {"balance_differs", "double_posting"},
        id="a call that is posted twice",
    ),
    pytest.param(
        [f"UPDATE usage_events SET flags = '' WHERE call_id = '{LATE}'"],
        {"void_and_posted", "charge_differs"},
        id="void and posted, silently",
    ),
    pytest.param(
        [f"INSERT INTO void_markers VALUES ('{POSTED}', 1)"],
        {"void_and_posted", "charge_differs"},
        id="a marker after the posting",
    ),
    pytest.param(
        [f"DELETE FROM void_markers WHERE call_id = '{LATE}'"],
        {"void_and_posted", "charge_differs"},
        id="late without a marker",
    ),
    pytest.param(["DELETE FROM grants WHERE kind = 'purchase'"], {"balance_differs"}, id="a credit without its record"),
    pytest.param(
        ["DELETE FROM transfers WHERE rule = 'grant.purchase'"],
        {"balance_differs"},
        id="a record of a credit that never came",
    ),
    pytest.param(
        ["DELETE FROM outbox WHERE id = (SELECT max(id) FROM outbox)"],
        {"outbox_behind"},
        id="a change that nobody will hear of",
    ),
    pytest.param(
        ["UPDATE outbox SET balance_nano_usd = 1 WHERE id = (SELECT max(id) FROM outbox)"],
        {"outbox_behind"},
        id="a change that says something else",
    ),
]


@pytest.mark.parametrize(("statements", "rules"), TAMPERINGS)
async def test_a_tampering_is_found(tmp_path: Path, statements: list[str], rules: set[str]) -> None:
    place = File(tmp_path / "ledger.sqlite3")
    async with a_full_ledger(place) as store:
        await place.tamper(*statements)
        report = await check(store)

    assert rules == {violation.rule for violation in report.violations}
    assert all(violation.detail for violation in report.violations)


async def test_every_tampering_is_found_in_a_database(ledger_url: str) -> None:
    place = Database(ledger_url)
    statements = [case.values[0] for case in TAMPERINGS]
    async with a_full_ledger(place):
        found = await asyncio.to_thread(tampered_and_undone, place, statements)

    assert {str(case.id): case.values[1] for case in TAMPERINGS} == {
        str(case.id): rules for case, rules in zip(TAMPERINGS, found, strict=True)
    }


def tampered_and_undone(place: Database, tamperings: Sequence[Any]) -> list[set[str]]:
    """The rules that each tampering breaks, each in a transaction that is undone: far cheaper than a database each."""
    connection = BlockingConnection(lambda: connect(place.url, Limits(), as_writer=False))
    found = []
    for statements in tamperings:
        connection.open()
        connection.run("BEGIN; " + "; ".join((*place.liberties, *statements)))
        report = checking.check(PostgresSnapshot(connection), "")
        connection.run("ROLLBACK")
        found.append({violation.rule for violation in report.violations})
    connection.close()
    return found


async def test_one_account_can_be_checked_alone(store: ClosableStore, place: Place) -> None:
    await place.tamper(f"UPDATE transfers SET amount_nano_usd = amount_nano_usd + 1 WHERE call_id = '{POSTED}'")

    assert (bool((await check(store, ACCOUNT)).violations), (await check(store, "other")).violations) == (True, ())


async def test_at_most_a_thousand_violations_are_listed(store: ClosableStore, place: Place) -> None:
    books = Bookkeeper(store)
    for _ in range(2):
        await books.record(*(an_event() for _ in range(600)))
    await place.tamper("DELETE FROM price_books")

    assert len((await check(store)).violations) == 1_000
