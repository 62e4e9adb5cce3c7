"""The outbox against a real auth-and-limits server: everything arrives, whatever fails, restarts or repeats.

Owns delivery, coalescing and its survival of crashes; refuses to test what a change says (see test_recording.py).
"""

import asyncio
from pathlib import Path

import pytest

from services.metering import outbox as outbox_module
from services.metering import translate
from services.metering.adapters.sqlite_ledger import open_ledger
from services.metering.outbox import Outbox, coalesce
from services.metering.ports import BalanceNotice
from tests.contract.metering.building import ACCOUNT, Bookkeeper, a_credit, an_event
from tests.rpc.metering.auth_server import auth_server, real_listener
from tests.rpc.metering.serving import ScriptedAuth, running_metering

COST = 26_400


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "_FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(outbox_module, "_LONGEST_BACKOFF_S", 0.05)


async def test_changes_reach_a_real_server(tmp_path: Path) -> None:
    auth = ScriptedAuth()
    async with auth_server(auth, tmp_path / "secrets") as port:
        listener, channel = real_listener(tmp_path / "secrets", port)
        async with running_metering(tmp_path, listener) as running:
            event = translate.event_to_pb(an_event())
            await running.record(event)
            await auth.until_closed(event.call_id)
            assert await running.violations() == []
        await channel.close()

    assert (auth.balances, auth.seqs) == ({ACCOUNT: -COST}, {ACCOUNT: 1})


async def test_changes_wait_for_a_server_that_is_away_and_come_back_to_it(tmp_path: Path) -> None:
    auth = ScriptedAuth()
    events = [translate.event_to_pb(an_event()) for _ in range(20)]
    async with auth_server(auth, tmp_path / "secrets") as port:
        pass  # it had this port, and is gone
    listener, channel = real_listener(tmp_path / "secrets", port)
    async with running_metering(tmp_path, listener) as running:
        for event in events:
            await running.record(event)
        async with auth_server(auth, tmp_path / "secrets", port):
            await auth.until_closed(*(event.call_id for event in events))
            assert await running.violations() == []
    await channel.close()

    assert (auth.balances, auth.seqs) == ({ACCOUNT: -20 * COST}, {ACCOUNT: 20})


async def test_a_restart_sends_what_was_not_acknowledged(tmp_path: Path) -> None:
    auth = ScriptedAuth(is_down=True)
    events = [translate.event_to_pb(an_event()) for _ in range(5)]
    async with running_metering(tmp_path, auth) as running:
        for event in events:
            await running.record(event)
    assert auth.closed == []

    auth.is_down = False
    async with running_metering(tmp_path, auth) as running:
        await auth.until_closed(*(event.call_id for event in events))

    assert (auth.balances, len(auth.closed)) == ({ACCOUNT: -5 * COST}, 5)


async def test_acknowledged_rows_are_deleted_and_remembered(tmp_path: Path) -> None:
    auth = ScriptedAuth()
    async with running_metering(tmp_path, auth) as running:
        event = translate.event_to_pb(an_event())
        await running.record(event)
        await auth.until_closed(event.call_id)

    async with open_ledger(tmp_path / "ledger.sqlite3") as store:
        assert await store.notices(0, 10) == []
        customers = await store.inspect(lambda snapshot: list(snapshot.customers("")))
        assert [(each.account_id, each.seq, each.announced_seq) for each in customers] == [(ACCOUNT, 1, 1)]


async def test_a_backlog_is_sent_coalesced(tmp_path: Path) -> None:
    auth = ScriptedAuth(is_down=True)
    events = [translate.event_to_pb(an_event(account_id=f"account-{index % 3}")) for index in range(60)]
    async with running_metering(tmp_path, auth) as running:
        for event in events:
            await running.record(event)
        before = auth.batches
        auth.is_down = False
        await auth.until_closed(*(event.call_id for event in events))

    assert (1, {f"account-{index}": -20 * COST for index in range(3)}) == (auth.batches - before, auth.balances)


async def test_a_grant_is_pending_only_until_its_own_row_is_acknowledged(tmp_path: Path) -> None:
    auth = ScriptedAuth()
    async with open_ledger(tmp_path / "ledger.sqlite3", write_timeout_s=10.0) as store:
        outbox = Outbox(store, auth)
        granted = await Bookkeeper(store).grant(a_credit())
        is_known_before = await outbox.acknowledged(granted.notice_mark, timeout_s=0.0)
        delivery = asyncio.get_running_loop().create_task(outbox.run())
        is_known_after = await outbox.acknowledged(granted.notice_mark, timeout_s=20.0)
        delivery.cancel()

    assert (is_known_before, is_known_after) == (False, True)


def notice(row_id: int, account_id: str, seq: int, *closed: str) -> BalanceNotice:
    return BalanceNotice(row_id, account_id, seq, 100 * seq, 10 * seq, closed)


def test_the_newest_values_win_and_no_closed_call_is_lost() -> None:
    rows = [notice(1, "a", 1, "x"), notice(2, "b", 7), notice(3, "a", 3, "y"), notice(4, "a", 2, "z", "x")]

    assert [notice(3, "a", 3, "x", "y", "z"), notice(2, "b", 7)] == coalesce(rows)
