"""What is on disk when a process dies is what the next one starts from.

Owns the store's restart; refuses the states that it may be in before, which have their own tests.
"""

import pytest

from services.auth_and_limits.holds import LEASE_US
from services.auth_and_limits.records import Earlier, Finished
from services.runtime.errors import CallAlreadyAdmittedError, NotFoundError
from tests.contract.auth_and_limits.hold_store import ACCOUNT_ID, USD, EmbeddedBench, S, ask, throttled

MINUTE_US = 60_000_000


@pytest.fixture
def bench(embedded: EmbeddedBench) -> EmbeddedBench:
    """The store that a process takes along when it dies."""
    return embedded


async def tokens_left(bench: EmbeddedBench) -> int:
    return (await bench.holds.limits(throttled(bench.account))).tokens.remaining


async def test_it_finds_holds_and_balances(bench: EmbeddedBench) -> None:
    await bench.fund(100, paid=30 * USD)
    running, ended, closed = ask(10, 7), ask(20), ask(30)
    for asked in (running, ended, closed):
        await bench.admitted(asked)
    await bench.holds.finish([Finished(ended.call_id, ended.run_id, 5, 0, ACCOUNT_ID)])
    await bench.fund(70, closed.call_id, paid=30 * USD)

    await bench.crash()

    assert await bench.held() == (15, 1)
    assert (await bench.holds.ceilings(bench.account)).tier == "next"
    assert (await bench.refusal(ask(56))).available_nano_usd == 55
    assert await bench.admitted(running) == bench.holds.state.holds[running.call_id]


async def test_it_finds_the_buckets_and_what_flowed_back_since(bench: EmbeddedBench) -> None:
    payer = throttled(bench.account, rpm=100)
    for _ in range(50):
        await bench.admitted(ask(0, 1_000), payer)

    bench.clock.advance_us(MINUTE_US // 10)
    await bench.crash()

    limits = await bench.holds.limits(payer)
    assert (limits.requests.remaining, limits.tokens.remaining) == (60, 60_000)


async def test_a_wall_clock_that_was_set_back_never_refuses_for_longer_than_a_minute(bench: EmbeddedBench) -> None:
    await bench.admitted(ask(0, 100_000))
    bench.clock.unix_ms -= 24 * 3_600_000
    await bench.crash()
    assert await tokens_left(bench) == 0

    bench.clock.advance_us(MINUTE_US)

    assert await tokens_left(bench) == 100_000


async def test_its_leases_start_anew(bench: EmbeddedBench) -> None:
    asked = ask()
    await bench.admitted(asked)
    bench.clock.advance_us(LEASE_US)
    await bench.crash()
    assert list(await bench.holds.expired(10)) == []

    bench.clock.advance_us(LEASE_US)

    assert list(await bench.holds.expired(10)) == [asked.call_id]


async def test_closed_holds_are_dropped_after_an_hour_and_live_ones_never(bench: EmbeddedBench) -> None:
    def minted_now(number: int) -> str:
        digits = f"{bench.clock.unix_ms:012x}"
        return f"{digits[:8]}-{digits[8:]}-7000-8000-00000000000{number}"

    live, closed = ask(call_id=minted_now(1)), ask(call_id=minted_now(2))
    for asked in (live, closed):
        await bench.admitted(asked)
    await bench.holds.void(closed.call_id, closed.run_id, ACCOUNT_ID)

    bench.clock.advance_us(3_600_000_000 - 1000)
    await bench.holds.forget_old()
    with pytest.raises(CallAlreadyAdmittedError):
        await bench.admit(closed)
    bench.clock.advance_us(2000)
    await bench.holds.forget_old()
    await bench.crash()

    assert await bench.admitted(live)
    with pytest.raises(NotFoundError):
        await bench.holds.closed(closed.call_id, None)


async def test_an_idempotency_key_is_forgotten_after_a_day(bench: EmbeddedBench) -> None:
    digits = f"{bench.clock.unix_ms:012x}"
    first = ask(key="k", body=b"1", call_id=f"{digits[:8]}-{digits[8:]}-7000-8000-000000000001")
    await bench.admitted(first)
    await bench.fund(0, first.call_id)

    bench.clock.advance_us(24 * 3_600 * S - 1000)
    await bench.holds.forget_old()
    assert isinstance(await bench.admit(ask(key="k", body=b"1")), Earlier)
    bench.clock.advance_us(2000)
    await bench.holds.forget_old()
    await bench.admitted(ask(key="k", body=b"2"))
