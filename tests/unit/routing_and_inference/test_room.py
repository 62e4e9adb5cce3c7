"""What an upstream lets us do, and who goes first when it is at its limit."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.routing_and_inference.room import Budget, FairQueue


@given(st.integers(1, 10_000), st.lists(st.integers(1, 500), max_size=30))
def test_waiting_as_long_as_told_is_enough_and_noticeably_less_is_not(per_minute: int, amounts: list[int]) -> None:
    budget, now_s = Budget(per_minute), 100.0
    for amount in amounts:
        wait_s = budget.wait_s(amount, now_s)
        if wait_s > 1e-3:
            assert budget.wait_s(amount, now_s + wait_s - 1e-3) > 0
        now_s += wait_s
        assert budget.wait_s(amount, now_s) < 1e-6
        budget.take(amount, now_s)


def test_no_more_than_the_limit_goes_through_in_a_minute() -> None:
    budget, now_s, taken = Budget(600), 0.0, 0
    while now_s <= 60.0:
        if not budget.wait_s(1, now_s):
            budget.take(1, now_s)
            taken += 1
        now_s += 0.01

    assert 1_190 <= taken <= 1_201  # the full bucket, and what a minute brings


def test_a_call_larger_than_a_minute_passes_when_the_bucket_is_full() -> None:
    budget = Budget(100)

    assert budget.wait_s(1_000, 0.0) == 0
    budget.take(1_000, 0.0)
    assert budget.wait_s(1, 0.0) > 500


async def test_accounts_take_turns_however_many_calls_each_has_waiting() -> None:
    queue, served = FairQueue(100), []

    async def call(account: str) -> None:
        assert await queue.wait(account, 10)
        served.append(account)

    async with asyncio.TaskGroup() as calls:
        for account in ["big"] * 6 + ["small"] * 2:
            calls.create_task(call(account))
        await asyncio.sleep(0)
        assert len(queue) == 8
        for _ in range(8):
            queue.wake()
            await asyncio.sleep(0)

    assert served == ["big", "small", "big", "small", "big", "big", "big", "big"]
    assert len(queue) == 0


async def test_who_waits_for_too_long_or_leaves_takes_nobodys_turn() -> None:
    queue = FairQueue(100)
    assert not await queue.wait("a", 0.001)
    leaving = asyncio.ensure_future(queue.wait("a", 10))
    staying = asyncio.ensure_future(queue.wait("b", 10))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])

    assert len(queue) == 1
    queue.wake()
    assert await staying


async def test_a_queue_has_an_end() -> None:
    queue = FairQueue(1)
    waiting = asyncio.ensure_future(queue.wait("a", 10))
    await asyncio.sleep(0)

    assert queue.is_full
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not queue.is_full
