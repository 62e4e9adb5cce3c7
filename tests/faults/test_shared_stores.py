"""Three processes of auth-and-limits on Redis and PostgreSQL: both frozen, wiped, killed and replaced under load.

Owns what callers see of it, and that no money is lent out, lost or kept back; minutes long, so behind `--run-long`.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.breaking import nothing_is_held
from tests.gateway import Account, Gateway
from tests.load import Answer, Load, Request, chat, eventually, messages
from tests.paced import Paced
from tests.postgres_server import PostgresServer
from tests.provider import Provider
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

WIDTH = 16
LEARNING_S = 6.0
REQUESTS = [messages("chunks=8 pace_ms=30"), chat("chunks=4 pace_ms=30"), messages("chunks=3", stream=False)]
CLEAN_STATUSES = {200, 500, 502, 503, 504, 529}
CHAOS_S = float(os.environ.get("MWS_CHAOS_S", "90"))  # noqa: TID251 - how long to go on is asked of a person


@dataclass(frozen=True, slots=True)
class Scaled(Paced):
    """A gateway of replicas, and its stores."""

    redis: RedisServer
    spare: RedisServer
    postgres: PostgresServer


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaled]:
    folder: Path = tmp_path_factory.mktemp("scaled")
    redis, spare = RedisServer(folder / "redis").start(), RedisServer(folder / "spare").start()
    postgres = PostgresServer()
    postgres.start()
    stores = ["--redis-url", f"redis://127.0.0.1:{redis.port},127.0.0.1:{spare.port}/0"]
    stores += ["--postgres-url", postgres.create_database(), "--replicas", "auth=3,inference=2,metering=1"]
    spare.replicate(redis)
    environment = {"MWS_AUTH_STORE_TIMEOUT_S": "0.25"}
    try:
        with (
            Provider() as provider,
            Gateway(folder / "g", *provider.options, *stores, environment=environment) as gateway,
        ):
            yield Scaled(gateway, provider, redis, spare, postgres)
            assert gateway.mws("ledger", "check")["violations"] == []
            assert gateway.stop() == 0
    finally:
        redis.stop()
        spare.stop()
        postgres.stop()
        postgres.remove()


@asynccontextmanager
async def under_load(scaled: Scaled, account: Account, requests: Sequence[Request] = REQUESTS) -> AsyncIterator[Load]:
    """Calls all the while; afterwards no answer was false and nothing was lost, doubled or kept back."""
    load = Load(scaled.caller(account), requests, WIDTH)
    over = asyncio.Event()
    running = asyncio.ensure_future(load.until(over))
    await eventually(lambda: sum(answer.ok for answer in load.answers) >= WIDTH, within_s=30, why="load")
    try:
        yield load
        await flows_again(load)
    finally:
        over.set()
        answers = await running
    statuses = Counter(answer.status for answer in answers)
    assert statuses.keys() <= CLEAN_STATUSES, statuses
    await scaled.reconciled(account, answers, within_s=60)
    await eventually(lambda: nothing_is_held(scaled, account), within_s=90, why="all holds settled")
    await eventually(lambda: books_are_right(scaled), within_s=30, why="the books to be read")


def books_are_right(scaled: Scaled) -> bool:
    """The books, once they can be read again; raises AssertionError if anything in them is wrong."""
    checked = scaled.gateway.mws("ledger", "check", check=False)
    assert checked is None or checked["violations"] == [], checked
    return checked is not None


async def flows_again(load: Load, within_s: float = 40.0) -> float:
    """Seconds until a whole round of answers was good."""
    began, seen = time.monotonic(), len(load.answers)

    def good_round() -> bool:
        newest = load.answers[seen:][-WIDTH:]
        return len(newest) == WIDTH and all(answer.ok for answer in newest)

    await eventually(good_round, within_s=within_s, why="calls flow again")
    return time.monotonic() - began


def refused_since(load: Load, began_s: float) -> list[Answer]:
    return [answer for answer in load.answers if answer.sent_at_s >= began_s and answer.status == 503]


async def test_redis_frozen_for_half_a_minute(scaled: Scaled) -> None:
    loop = asyncio.get_running_loop()
    async with under_load(scaled, scaled.account("frozen")) as load:
        scaled.redis.freeze()
        try:
            await asyncio.sleep(2)  # long enough for every process to have noticed
            began_s = loop.time()
            await asyncio.sleep(28)
        finally:
            scaled.redis.thaw()
        thawed_s = loop.time()
        refused = [answer for answer in refused_since(load, began_s) if answer.sent_at_s < thawed_s]
        await flows_again(load)
        last_refused_s = max(answer.sent_at_s for answer in refused_since(load, began_s))

    assert len(refused) > 100
    assert all("retry-after" in answer.headers for answer in refused)
    slow = sorted(answer.seconds for answer in refused)
    print(f"frozen: {len(refused)} refused, slowest {slow[-1]:.2f} s, again after {last_refused_s - thawed_s:.2f} s")
    assert slow[-1] < 1.0
    assert last_refused_s - thawed_s < 2.0


async def test_redis_wiped(scaled: Scaled) -> None:
    account = scaled.account("wiped")
    async with under_load(scaled, account) as load:
        began_s = asyncio.get_running_loop().time()
        with scaled.redis.client() as client:
            client.flushall()
        await eventually(lambda: refused_since(load, began_s), why="the wipe to be noticed")
        await flows_again(load)
        last_refused_s = max(answer.sent_at_s for answer in refused_since(load, began_s))
        print(f"wiped: calls again after {last_refused_s - began_s:.2f} s")
        assert LEARNING_S - 1 < last_refused_s - began_s < LEARNING_S + 4


async def test_metering_stopped_for_a_minute_keeps_no_slot_and_no_tokens(scaled: Scaled) -> None:
    """Estimates are many times what is used: kept until metering is back, they would use up the minute at once."""
    account = scaled.account("slots", concurrency=2 * WIDTH, tpm=300_000)
    requests = [messages("chunks=8 pace_ms=30", max_tokens=1_000), chat("chunks=4 pace_ms=30", max_tokens=1_000)]
    async with under_load(scaled, account, requests) as load:
        metering = scaled.gateway.pid("metering")
        os.kill(metering, signal.SIGSTOP)
        try:
            await asyncio.sleep(60)
        finally:
            os.kill(metering, signal.SIGCONT)
        print(f"metering away: {Counter(answer.status for answer in load.answers)}")
    refused = [answer for answer in load.answers if not answer.ok]
    assert not refused, (refused[0].status, refused[0].error)


async def test_a_replica_of_redis_promoted(scaled: Scaled) -> None:
    account = scaled.account("promoted")
    async with under_load(scaled, account) as load:
        scaled.redis.kill()
        scaled.spare.promote()
        print(f"promoted: calls again after {await flows_again(load):.2f} s")
    scaled.redis.start()
    scaled.redis.replicate(scaled.spare)


async def test_random_faults_lend_nothing_out(scaled: Scaled) -> None:
    """An account that can pay for all, and one that runs out of money meanwhile."""
    rich, poor = scaled.account("rich"), scaled.account("poor", credit_usd="0.02")
    dice = random.Random(11)
    over = asyncio.Event()
    spending = Load(scaled.caller(poor), REQUESTS, 8, pause_after_failure_s=0.2)
    spender = asyncio.ensure_future(spending.until(over))
    faults = [_kill_auth, _kill_redis, _wipe, _kill_postgres, _freeze_redis]
    done: Counter[str] = Counter()
    try:
        async with under_load(scaled, rich) as load:
            began = time.monotonic()
            while time.monotonic() - began < CHAOS_S:
                fault = dice.choice(faults)
                done[fault.__name__] += 1
                await fault(scaled, dice)
                await flows_again(load, within_s=60)
    finally:
        over.set()
        answers = await spender
    print(f"chaos: {dict(done)}, {len(load.answers)} + {len(answers)} answers")
    assert {answer.status for answer in answers} <= CLEAN_STATUSES | {402}
    await eventually(lambda: nothing_is_held(scaled, poor), within_s=90, why="all holds settled")
    assert scaled.balance_nano_usd(poor) >= 0


async def _kill_auth(scaled: Scaled, dice: random.Random) -> None:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # killed a moment ago, and not back yet
        pid = (scaled.gateway.data_dir / "run" / f"auth-{dice.randrange(3)}.pid").read_text()
        os.kill(int(pid), signal.SIGKILL)


async def _kill_redis(scaled: Scaled, dice: random.Random) -> None:
    del dice
    server = await _primary(scaled)
    server.kill()
    server.start()


async def _wipe(scaled: Scaled, dice: random.Random) -> None:
    del dice
    with (await _primary(scaled)).client() as client:
        client.flushall()


async def _kill_postgres(scaled: Scaled, dice: random.Random) -> None:
    scaled.postgres.kill()
    await asyncio.sleep(dice.uniform(0.1, 2.0))
    scaled.postgres.start()


async def _freeze_redis(scaled: Scaled, dice: random.Random) -> None:
    server = await _primary(scaled)
    server.freeze()
    await asyncio.sleep(dice.uniform(0.5, 3.0))
    server.thaw()


async def _primary(scaled: Scaled) -> RedisServer:
    with scaled.redis.client() as client:
        return scaled.redis if client.role()[0] == "master" else scaled.spare
