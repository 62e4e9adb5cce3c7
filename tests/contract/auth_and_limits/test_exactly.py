"""Limits and balances are exact however many ask at once, of however many processes, whatever their clocks say.

Owns counting what was admitted; refuses faults.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.auth_and_limits.limits import Reason
from services.auth_and_limits.ports import HoldStore
from services.auth_and_limits.records import Account, Admitted, Ask, Balance, Finished, Payer, Refused
from services.runtime.ids import new_id
from tests.contract.auth_and_limits.hold_store import TEST_TIME, Clock, EmbeddedBench, RedisClock, ask, with_ceilings
from tests.contract.auth_and_limits.replicas import Options, replicas
from tests.redis_server import RedisServer

HUGE = 150_000_000
MINUTE_S = 60


@dataclass
class Field:
    """Processes that decide about the same accounts, and the time that they all live in."""

    stores: list[HoldStore]
    clock: Clock

    async def account(self, *, balance: int = 0, **ceilings: int) -> Account:
        """A new account with so much money, and no other limit than those given."""
        account = with_ceilings(
            Account(new_id(), "acme", "plain"), **{"rpm": HUGE, "tpm": HUGE, "calls": HUGE, **ceilings}
        )
        await self.stores[0].change_balances([Balance(account.account_id, 1, balance, 0)])
        return account

    async def at_once(self, payer: Payer, asks: list[Ask]) -> tuple[int, set[Reason]]:
        """How many of the calls were admitted, and why the others were not; sent to the processes in turn."""
        turns = itertools.cycle(self.stores)
        verdicts = await asyncio.gather(*(next(turns).admit(asked, payer) for asked in asks))
        refused = {verdict.reason for verdict in verdicts if isinstance(verdict, Refused)}
        return sum(isinstance(verdict, Admitted) for verdict in verdicts), refused


@pytest.fixture(params=["embedded", "three processes on Redis"])
async def field(request: pytest.FixtureRequest, tmp_path: Path, shared_redis: RedisServer) -> AsyncIterator[Field]:
    if request.param == "embedded":
        bench = EmbeddedBench(tmp_path / "auth")
        await bench.open()
        yield Field([bench.holds], bench.clock)
        await bench.close()
        return
    with shared_redis.client() as client:
        client.flushall()
        clock = RedisClock(client)
        async with replicas(shared_redis.url, 3, Options(time_text=TEST_TIME)) as stores:
            yield Field(list(stores), clock)


async def by_balance(field: Field, count: int) -> tuple[Account, Callable[[], Ask]]:
    return await field.account(balance=count * 100 + 99), lambda: ask(100)


async def by_requests(field: Field, count: int) -> tuple[Account, Callable[[], Ask]]:
    return await field.account(rpm=count), ask


async def by_tokens(field: Field, count: int) -> tuple[Account, Callable[[], Ask]]:
    return await field.account(tpm=count * 50 + 49), lambda: ask(0, 50)


async def by_slots(field: Field, count: int) -> tuple[Account, Callable[[], Ask]]:
    return await field.account(calls=count), ask


@pytest.mark.parametrize(
    "rounds",
    [pytest.param(10, id="some rounds"), pytest.param(1_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
)
@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        pytest.param(by_balance, Reason.CREDIT, id="balance"),
        pytest.param(by_requests, Reason.REQUESTS, id="requests"),
        pytest.param(by_tokens, Reason.TOKENS, id="tokens"),
        pytest.param(by_slots, Reason.CONCURRENCY, id="slots"),
    ],
)
async def test_of_many_at_once_exactly_as_many_pass_as_may(
    field: Field, limit: Callable[..., Any], reason: Reason, rounds: int
) -> None:
    for number in range(rounds):
        count = 1 + number % 17
        account, make = await limit(field, count)

        admitted, refused = await field.at_once(Payer(account), [make() for _ in range(count + 20)])

        assert (admitted, refused) == (count, {reason})


@pytest.mark.parametrize(
    ("ceilings", "tokens", "allowed_per_minute"),
    [
        pytest.param({"rpm": 600}, 0, 600, id="requests"),
        pytest.param({"tpm": 6_000}, 10, 600, id="tokens"),
        pytest.param({"rpm": 37}, 0, 37, id="a limit that no tick divides"),
    ],
)
async def test_ten_times_the_limit_for_a_minute_passes_the_limit_and_what_flows_back(
    field: Field, ceilings: dict[str, int], tokens: int, allowed_per_minute: int
) -> None:
    account = await field.account(**ceilings)
    offered_each_s = allowed_per_minute * 10 // MINUTE_S
    admitted = 0
    for _ in range(MINUTE_S):
        field.clock.advance_us(1_000_000)
        admitted += (await field.at_once(Payer(account), [ask(0, tokens) for _ in range(offered_each_s)]))[0]

    most = allowed_per_minute * (1 + MINUTE_S / 60)
    assert int(0.99 * most) <= admitted <= most


async def test_a_burst_after_a_burst_gets_what_has_flowed_back_and_no_more(field: Field) -> None:
    payer = Payer(await field.account(rpm=60))
    assert (await field.at_once(payer, [ask() for _ in range(100)]))[0] == 60

    field.clock.advance_us(7_999_999)

    assert (await field.at_once(payer, [ask() for _ in range(100)]))[0] == 7


async def test_a_wait_as_told_is_enough_in_every_process_and_a_microsecond_less_is_not(field: Field) -> None:
    payer = Payer(await field.account(tpm=1_013))
    assert (await field.at_once(payer, [ask(0, 1_013)]))[0] == 1
    for store in field.stores:
        refused = await store.admit(ask(0, 17), payer)
        assert isinstance(refused, Refused)
        assert refused.retry_in_us is not None
        field.clock.advance_us(refused.retry_in_us - 1)
        again = await store.admit(ask(0, 17), payer)
        assert isinstance(again, Refused)
        assert again.retry_in_us == 1
        field.clock.advance_us(1)
        assert isinstance(await store.admit(ask(0, 17), payer), Admitted)


async def test_no_call_is_admitted_twice_whichever_process_is_asked(field: Field) -> None:
    payer = Payer(await field.account(balance=1_000))
    turns = itertools.cycle(field.stores)
    for _ in range(20):
        asked = ask(1)
        runs = [Ask(asked.call_id, new_id(), "r", 1, 0) for _ in range(30)]

        verdicts = await asyncio.gather(*(next(turns).admit(run, payer) for run in runs), return_exceptions=True)

        assert sum(isinstance(verdict, Admitted) for verdict in verdicts) == 1


async def test_what_one_process_admitted_another_one_finishes(field: Field) -> None:
    account = await field.account(balance=1_000, calls=1)
    first, last = field.stores[0], field.stores[-1]
    for _ in range(5):
        asked = ask(400)
        assert isinstance(await first.admit(asked, Payer(account)), Admitted)
        await last.finish([Finished(asked.call_id, asked.run_id, 100, 0, account.account_id)])
    refused = await last.admit(ask(501), Payer(account))
    assert isinstance(refused, Refused)
    assert refused.available_nano_usd == 500
