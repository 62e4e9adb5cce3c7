"""Redis frozen, killed, wiped, replaced: refusals are fast and typed, nothing is lent out, and all is well again soon.

Owns what a caller of the store sees meanwhile; the whole gateway's view is the fault suite's.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from services.auth_and_limits.adapters.redis_holds import RedisHolds
from services.auth_and_limits.adapters.redis_records import key_of
from services.auth_and_limits.holds import Hold, HoldState
from services.auth_and_limits.records import Account, Admitted, Ask, Balance, Payer, Refused
from services.runtime.errors import CallAlreadyAdmittedError, NotFoundError, StoreUnavailableError
from services.runtime.ids import new_id
from tests.contract.auth_and_limits.hold_store import ACCOUNT_ID, USD, ask, with_ceilings
from tests.contract.auth_and_limits.replicas import Ledger, Options, replicas
from tests.load import eventually
from tests.redis_server import RedisServer

PAYER = Payer(Account(ACCOUNT_ID, "acme", "plain"))
GENEROUS = Payer(with_ceilings(PAYER.account, 10_000_000, 10_000_000, 10_000_000))
PATIENT = 0.25


def funded(nano_usd: int = USD) -> Ledger:
    ledger = Ledger()
    ledger.of[ACCOUNT_ID] = Balance(ACCOUNT_ID, 1, nano_usd, 0)
    return ledger


def record(asked: Ask) -> Hold:
    """What the runner of a call knows of its hold."""
    return Hold(
        asked.call_id, asked.run_id, "r", ACCOUNT_ID, "", HoldState.OPEN, asked.amount_nano_usd, asked.rate_tokens, "b"
    )


def held(server: RedisServer) -> tuple[int, int]:
    with server.client() as client:
        money, running = client.hmget(key_of(ACCOUNT_ID), "held", "run")
    return int(money or 0), int(running or 0)


async def admits(holds: RedisHolds, amount: int = 1) -> bool:
    """Whether a call is admitted; false while the store is away."""
    try:
        return isinstance(await holds.admit(ask(amount), PAYER), Admitted)
    except StoreUnavailableError:
        return False


async def refused_in_s(work: Awaitable[Any]) -> float:
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError) as failed:
        await work
    assert failed.value.retry_in is not None
    return time.monotonic() - began


class Holding:
    """Calls that take a hold each and never end; one runner renews them all."""

    def __init__(self, stores: list[RedisHolds]) -> None:
        self._stores = stores
        self.admitted: dict[str, Ask] = {}
        self.over = asyncio.Event()

    async def call(self, holds: RedisHolds) -> None:
        while not self.over.is_set():
            asked = ask(1)
            with contextlib.suppress(StoreUnavailableError):
                if isinstance(await holds.admit(asked, PAYER), Admitted):
                    self.admitted[asked.call_id] = asked
            await asyncio.sleep(0.01)

    async def renew(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(StoreUnavailableError):
                await self._stores[0].renew("r", [record(asked) for asked in self.admitted.values()])
            await asyncio.sleep(0.05)


class TestFrozen:
    """It keeps its connections and says nothing."""

    async def test_refusals_are_fast_and_leave_nothing_behind(self, redis_server: RedisServer) -> None:
        async with replicas(redis_server.url, 1, Options(balances=funded(), patience_s=PATIENT)) as [holds]:
            assert await admits(holds, 10)
            redis_server.freeze()
            try:
                first = await asyncio.gather(*(refused_in_s(holds.admit(ask(10), PAYER)) for _ in range(50)))
                await eventually(lambda: not holds.is_healthy, why="the breaker")
                later = [await refused_in_s(holds.admit(ask(10), PAYER)) for _ in range(50)]
            finally:
                redis_server.thaw()
            thawed = time.monotonic()
            await eventually(lambda: admits(holds, 10), within_s=10, why="admissions again")

            assert max(first) < 1.0
            assert max(later) < 0.1
            assert time.monotonic() - thawed < 2.0
            assert held(redis_server) == (20, 2)

    async def test_what_was_abandoned_is_not_done_on_waking(self, redis_server: RedisServer) -> None:
        """Redis runs what it finds in its sockets; a script past its caller's patience does nothing."""
        async with replicas(redis_server.url, 1, Options(balances=funded(), patience_s=PATIENT)) as [holds]:
            assert await admits(holds)
            redis_server.freeze()
            try:
                await refused_in_s(holds.admit(ask(10), PAYER))
                await refused_in_s(holds.change_balances([Balance(ACCOUNT_ID, 2, 5, 0)]))
            finally:
                redis_server.thaw()
            await eventually(lambda: holds.is_healthy, why="Redis again")

            refused = await holds.admit(ask(2 * USD), PAYER)
            assert isinstance(refused, Refused)
            assert refused.available_nano_usd == USD - 1
            assert held(redis_server) == (1, 1)


class TestWiped:
    """FLUSHALL, or an empty disk."""

    async def test_nobody_is_admitted_until_the_holds_are_known_again(self, redis_server: RedisServer) -> None:
        ledger = funded(100)
        options = Options(balances=ledger, learning_s=0.5)
        async with replicas(redis_server.url, 3, options) as [first, second, third]:
            await eventually(lambda: first.is_healthy and second.is_healthy and third.is_healthy, why="the first epoch")
            running = ask(70)
            assert isinstance(await first.admit(running, PAYER), Admitted)
            with redis_server.client() as client:
                client.flushall()

            for holds in (second, first, third, second):
                await refused_in_s(holds.admit(ask(70), PAYER))
            assert not first.is_healthy
            assert list(await third.renew("r", [record(running)])) == []
            await eventually(lambda: all(holds.is_healthy for holds in (first, second, third)), why="learnt")

            for holds in (first, second, third):
                refused = await holds.admit(ask(70), PAYER)
                assert isinstance(refused, Refused)
                assert refused.available_nano_usd == 30
            assert held(redis_server) == (70, 1)

    async def test_under_load_the_balance_is_never_lent_twice(self, redis_server: RedisServer) -> None:
        """Calls hold and are renewed while the store is wiped again and again."""
        async with replicas(redis_server.url, 3, Options(balances=funded(20), learning_s=0.3)) as stores:
            load = Holding(stores)
            async with asyncio.TaskGroup() as group:
                group.create_task(load.renew())
                for holds in stores:
                    group.create_task(load.call(holds))
                for count in (7, 13, 20):
                    await eventually(lambda: len(load.admitted) >= count, why="calls")  # noqa: B023
                    with redis_server.client() as client:
                        client.flushall()
                    await eventually(lambda: not stores[0].is_healthy, why="it to be noticed")
                    await eventually(lambda: all(holds.is_healthy for holds in stores), why="learnt")
                load.over.set()
            assert len(load.admitted) == 20
            assert held(redis_server) == (20, 20)

    async def test_an_account_is_not_admitted_while_its_balance_is_not_known(self, redis_server: RedisServer) -> None:
        ledger = funded()
        ledger.is_away = True
        async with replicas(redis_server.url, 1, Options(balances=ledger)) as [holds]:
            await refused_in_s(holds.admit(ask(1), PAYER))
            ledger.is_away = False

            assert await admits(holds)
            assert ledger.asked == 2

    async def test_metering_is_not_asked_by_each_who_waits(self, redis_server: RedisServer) -> None:
        ledger = funded()
        async with replicas(redis_server.url, 1, Options(balances=ledger)) as [holds]:
            assert all(await asyncio.gather(*(admits(holds) for _ in range(50))))
            assert ledger.asked <= 25  # as many times as answers of Redis came in pieces: few, but the machine's choice


class TestReplaced:
    """Another server, or another life of the same one."""

    async def test_a_killed_one_comes_back_with_what_it_had_written(self, redis_server: RedisServer) -> None:
        options = Options(balances=funded(100), learning_s=0.3, patience_s=PATIENT)
        async with replicas(redis_server.url, 1, options) as [holds]:
            await eventually(lambda: holds.is_healthy, why="the first epoch")
            assert await admits(holds, 60)
            with redis_server.client() as client:
                await eventually(lambda: int(client.info("persistence")["aof_pending_bio_fsync"]) == 0, why="fsync")
            redis_server.kill()
            await refused_in_s(holds.admit(ask(1), PAYER))
            redis_server.start()
            await eventually(lambda: admits(holds, 40), within_s=10, why="admissions again")

            refused = await holds.admit(ask(1), PAYER)
            assert isinstance(refused, Refused)
            assert refused.available_nano_usd == 0

    async def test_a_promoted_replica_takes_over(self, redis_server: RedisServer, tmp_path: Path) -> None:
        other = RedisServer(tmp_path / "other").start()
        try:
            other.replicate(redis_server)
            url = f"redis://127.0.0.1:{redis_server.port},127.0.0.1:{other.port}/0"
            options = Options(balances=funded(100), learning_s=0.5, patience_s=PATIENT)
            async with replicas(url, 2, options) as [first, second]:
                await eventually(lambda: first.is_healthy, why="the first epoch")
                running = ask(60)
                assert isinstance(await first.admit(running, PAYER), Admitted)
                redis_server.kill()  # whatever it had not sent yet is lost
                other.promote()
                await eventually(lambda: _renewed(second, running), why="renewal")
                await eventually(lambda: admits(second, 40), why="admissions on the new primary")

                refused = await first.admit(ask(1), PAYER) if first.is_healthy else None
                assert refused is None or isinstance(refused, Refused)
                assert held(other) == (100, 2)
        finally:
            other.stop()

    async def test_a_primary_that_became_a_replica_is_left(self, redis_server: RedisServer, tmp_path: Path) -> None:
        other = RedisServer(tmp_path / "other").start()
        try:
            url = f"redis://127.0.0.1:{redis_server.port},127.0.0.1:{other.port}/0"
            async with replicas(url, 1, Options(balances=funded(), patience_s=PATIENT)) as [holds]:
                assert await admits(holds)
                redis_server.replicate(other)
                await eventually(lambda: admits(holds, 5), why="admissions on the other")

                assert held(other) == (5, 1)
        finally:
            other.stop()


async def _renewed(holds: RedisHolds, asked: Ask) -> bool:
    try:
        return list(await holds.renew("r", [record(asked)])) == []
    except StoreUnavailableError:
        return False


async def test_a_call_id_is_one_accounts_alone(redis_server: RedisServer) -> None:
    stranger = Payer(Account(new_id(), "other", "plain"))
    async with replicas(redis_server.url, 1) as [holds]:
        mine = ask(0)
        assert isinstance(await holds.admit(mine, PAYER), Admitted)

        with pytest.raises(CallAlreadyAdmittedError):
            await holds.admit(ask(0, call_id=mine.call_id), stranger)

        with redis_server.client() as client:
            assert client.hget(key_of(stranger.account.account_id), "run") == "0"


async def test_what_is_over_expires_by_itself(redis_server: RedisServer) -> None:
    async with replicas(redis_server.url, 1) as [holds]:
        voided, posted = ask(0), ask(0, key="k", body=b"1")
        for asked in (voided, posted):
            assert isinstance(await holds.admit(asked, PAYER), Admitted)
        await holds.void(voided.call_id, voided.run_id, ACCOUNT_ID)
        await holds.change_balances([Balance(ACCOUNT_ID, 1, 0, 0, (posted.call_id,))])

        with redis_server.client() as client:
            lives_s = {key.rpartition("}")[2][:2]: client.ttl(key) for key in client.scan_iter("mws:*")}
    assert 0 < lives_s[":h"] <= 3_600
    assert 0 < lives_s[":i"] <= 24 * 3_600
    assert 0 < lives_s["mw"] <= 3_600 or lives_s["mw"] == -1


async def test_one_of_several_processes_looks_for_lapsed_leases(redis_server: RedisServer) -> None:
    async with replicas(redis_server.url, 3) as stores:
        assert await admits(stores[2], 0)
        looks = [await holds.expired(10) for holds in stores]

        assert looks == [[], (), ()]
        assert [holds.open_holds for holds in stores] == [1, 0, 0]


async def test_whose_hold_it_is_need_not_be_said(redis_server: RedisServer) -> None:
    async with replicas(redis_server.url, 1, Options(balances=funded())) as [holds]:
        asked = ask(5)
        assert isinstance(await holds.admit(asked, PAYER), Admitted)

        assert isinstance(await holds.extend(asked.call_id, asked.run_id, 9), Hold)
        await holds.void(asked.call_id, asked.run_id)
        assert (await holds.closed(asked.call_id, None)).state is HoldState.VOIDED
        with pytest.raises(NotFoundError):
            await holds.closed(new_id(), None)


async def test_a_backlog_of_closed_calls_holds_nobody_up(redis_server: RedisServer) -> None:
    """What gathered while metering could not deliver arrives at once; decisions go on in between, within their time."""
    async with replicas(redis_server.url, 2, Options(balances=funded(), patience_s=PATIENT)) as [holds, others]:
        running = [ask(1) for _ in range(3_000)]
        for first in range(0, len(running), 100):
            await asyncio.gather(*(holds.admit(asked, GENEROUS) for asked in running[first : first + 100]))
        assert held(redis_server) == (3_000, 3_000)
        over = asyncio.Event()

        async def decide() -> int:
            count = 0
            while not over.is_set():
                assert isinstance(await others.admit(ask(0), GENEROUS), Admitted)
                count += 1
            return count

        deciding = asyncio.ensure_future(decide())
        closed = tuple(asked.call_id for asked in running)
        await holds.change_balances([Balance(ACCOUNT_ID, 2, USD - 3_000, 0, closed)])
        over.set()

        count = await deciding
        assert count > 0
        assert held(redis_server) == (0, count)
