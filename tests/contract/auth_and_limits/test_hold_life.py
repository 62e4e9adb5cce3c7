"""How a hold goes on after its admission: extended, renewed, finished, voided, posted, expired, lost.

Owns the promises of `HoldStore` beside `admit`; refuses to look into the store.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from services.auth_and_limits.holds import LEASE_US, Hold, HoldState
from services.auth_and_limits.records import Ask, Balance, Finished, Outcome, OutOfCredit
from services.runtime.errors import HoldNotOpenError, NotFoundError
from services.runtime.ids import new_id
from tests.contract.auth_and_limits.hold_store import ACCOUNT_ID, USD, Bench, ask, throttled

MINUTE_US = 60_000_000


def finished(asked: Ask, cost: int | None = None, used: int | None = None) -> list[Finished]:
    return [Finished(asked.call_id, asked.run_id, cost, used, ACCOUNT_ID)]


def record(asked: Ask, state: HoldState = HoldState.OPEN, amount: int | None = None) -> Hold:
    """What a runner knows of its hold."""
    amount = asked.amount_nano_usd if amount is None else amount
    return Hold(asked.call_id, asked.run_id, "runner/1", ACCOUNT_ID, "", state, amount, asked.rate_tokens, "book")


async def tokens_left(bench: Bench[Any]) -> int:
    remaining: int = (await bench.holds.limits(throttled(bench.account))).tokens.remaining
    return remaining


async def test_an_extension_is_absolute_and_a_repeat_takes_nothing_more(bench: Bench[Any]) -> None:
    await bench.fund(100)
    asked = ask(30)
    await bench.admitted(asked)

    for _ in range(2):
        hold = await bench.holds.extend(asked.call_id, asked.run_id, 80, ACCOUNT_ID)
        assert isinstance(hold, Hold)
        assert await bench.held() == (80, 1)


async def test_an_extension_beyond_the_balance_leaves_the_hold_as_it_was(bench: Bench[Any]) -> None:
    await bench.fund(100)
    asked = ask(30)
    await bench.admitted(asked)

    assert await bench.holds.extend(asked.call_id, asked.run_id, 101, ACCOUNT_ID) == OutOfCredit(70)
    assert await bench.held() == (30, 1)


async def test_only_the_open_hold_of_the_run_can_be_extended(bench: Bench[Any]) -> None:
    asked = ask()
    await bench.admitted(asked)
    with pytest.raises(HoldNotOpenError):
        await bench.holds.extend(asked.call_id, new_id(), 0, ACCOUNT_ID)
    await bench.holds.finish(finished(asked))

    with pytest.raises(HoldNotOpenError):
        await bench.holds.extend(asked.call_id, asked.run_id, 0, ACCOUNT_ID)


@pytest.mark.parametrize(
    ("cost", "used", "expected"),
    [
        pytest.param(12, 400, (12, 0, 99_600), id="less than held"),
        pytest.param(70, 900, (70, 0, 99_100), id="more than held"),
        pytest.param(None, None, (50, 0, 99_500), id="not known"),
    ],
)
async def test_a_finished_call_frees_its_slot_and_keeps_its_cost(
    bench: Bench[Any], cost: int | None, used: int | None, expected: tuple[int, int, int]
) -> None:
    await bench.fund(100)
    asked = ask(50, 500)
    await bench.admitted(asked)

    for _ in range(2):
        await bench.holds.finish(finished(asked, cost, used))
        assert (*(await bench.held()), await tokens_left(bench)) == expected


async def test_the_tokens_of_a_throttled_key_are_corrected_too(bench: Bench[Any]) -> None:
    payer = throttled(bench.account, tpm=1_000)
    asked = ask(0, 500)
    await bench.admitted(asked, payer)

    await bench.holds.finish(finished(asked, 0, 100))

    assert (await bench.holds.limits(payer)).tokens.remaining == 900


async def test_a_finish_that_comes_after_the_posting_still_corrects_the_tokens(bench: Bench[Any]) -> None:
    await bench.fund(100)
    asked = ask(50, 500)
    await bench.admitted(asked)
    await bench.fund(60, asked.call_id)

    for _ in range(2):
        await bench.holds.finish(finished(asked, 40, 2_000))
        assert (*(await bench.held()), await tokens_left(bench)) == (0, 0, 98_000)


async def test_another_runs_finish_changes_nothing(bench: Bench[Any]) -> None:
    await bench.fund(100)
    asked = ask(50)
    await bench.admitted(asked)

    await bench.holds.finish(
        [Finished(asked.call_id, new_id(), 0, 0, ACCOUNT_ID), Finished(new_id(), new_id(), 0, 0, ACCOUNT_ID)]
    )

    assert await bench.held() == (50, 1)


async def test_a_void_gives_everything_back_and_a_repeat_changes_nothing(bench: Bench[Any]) -> None:
    await bench.fund(100)
    asked = ask(50, 500)
    await bench.admitted(asked)

    for _ in range(2):
        await bench.holds.void(asked.call_id, asked.run_id, ACCOUNT_ID)
        limits = await bench.holds.limits(throttled(bench.account))
        assert (*(await bench.held()), limits.requests.remaining, limits.tokens.remaining) == (0, 0, 1_000, 100_000)


async def test_a_void_of_what_was_never_admitted_changes_nothing(bench: Bench[Any]) -> None:
    await bench.holds.void(new_id(), new_id(), ACCOUNT_ID)


@pytest.mark.parametrize("how", ["another run", "finished", "posted", "voided by another run"])
async def test_what_is_not_open_for_the_run_cannot_be_voided(bench: Bench[Any], how: str) -> None:
    asked = ask()
    await bench.admitted(asked)
    run_id = asked.run_id
    match how:
        case "another run":
            run_id = new_id()
        case "finished":
            await bench.holds.finish(finished(asked))
        case "posted":
            await bench.holds.finish(finished(asked))
            await bench.fund(0, asked.call_id)
        case "voided by another run":
            await bench.holds.void(asked.call_id, asked.run_id, ACCOUNT_ID)
            run_id = new_id()

    with pytest.raises(HoldNotOpenError):
        await bench.holds.void(asked.call_id, run_id, ACCOUNT_ID)


class TestBalances:
    """Absolute values, in any order, any number of times."""

    @pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 2, 3, 1, 3)])
    async def test_the_newest_value_wins_whatever_the_order(self, bench: Bench[Any], order: Sequence[int]) -> None:
        for seq in order:
            await bench.holds.change_balances([Balance(ACCOUNT_ID, seq, seq * 100, seq * USD)])

        assert await bench.holds.lifetime_paid_nano_usd(ACCOUNT_ID) == 3 * USD
        await bench.admitted(ask(300))
        assert (await bench.refusal(ask(1))).available_nano_usd == 0

    async def test_an_old_change_closes_its_holds_all_the_same(self, bench: Bench[Any]) -> None:
        await bench.fund(100)
        asked = ask(50)
        await bench.admitted(asked)
        await bench.fund(50)

        await bench.holds.change_balances([Balance(ACCOUNT_ID, 1, 100, 0, (asked.call_id, new_id()))])

        assert await bench.held() == (0, 0)
        assert (await bench.refusal(ask(51))).available_nano_usd == 50


class TestLeases:
    """A lease lasts 20 s; then metering is asked, and its answer counts only while nobody renews."""

    async def test_a_hold_expires_after_its_lease_unless_it_is_renewed(self, bench: Bench[Any]) -> None:
        renewed, left = ask(), ask()
        await bench.admitted(renewed)
        await bench.admitted(left)
        bench.clock.advance_us(LEASE_US - 1)
        assert list(await bench.holds.expired(10)) == []
        assert list(await bench.holds.renew("runner/1", [record(renewed)])) == []

        bench.clock.advance_us(1)

        assert list(await bench.holds.expired(10)) == [left.call_id]

    async def test_no_more_are_named_than_wanted(self, bench: Bench[Any]) -> None:
        for _ in range(3):
            await bench.admitted(ask())
        bench.clock.advance_us(LEASE_US)

        assert len(await bench.holds.expired(2)) == 2

    async def test_a_void_outcome_releases(self, bench: Bench[Any]) -> None:
        await bench.fund(100)
        asked = ask(50)
        await bench.admitted(asked)
        bench.clock.advance_us(LEASE_US)

        await bench.holds.settle({asked.call_id: Outcome(is_posted=False)})

        assert await bench.held() == (0, 0)

    async def test_an_outcome_of_a_hold_that_was_renewed_meanwhile_is_passed_over(self, bench: Bench[Any]) -> None:
        await bench.fund(100)
        asked = ask(50)
        await bench.admitted(asked)
        bench.clock.advance_us(LEASE_US)
        await bench.holds.renew("runner/1", [record(asked)])

        await bench.holds.settle({asked.call_id: Outcome(is_posted=False)})

        assert await bench.held() == (50, 1)

    async def test_a_posted_outcome_keeps_the_charge_until_its_balance_comes(self, bench: Bench[Any]) -> None:
        await bench.fund(100)
        asked = ask(50)
        await bench.admitted(asked)
        bench.clock.advance_us(LEASE_US)

        await bench.holds.settle({asked.call_id: Outcome(is_posted=True, charged_nano_usd=20)})
        assert await bench.held() == (20, 0)
        await bench.fund(80, asked.call_id)
        assert await bench.held() == (0, 0)

    async def test_a_posted_outcome_without_a_balance_closes_at_the_second_look(self, bench: Bench[Any]) -> None:
        await bench.fund(100)
        asked = ask(50)
        await bench.admitted(asked)
        for _ in range(2):
            bench.clock.advance_us(LEASE_US)
            assert list(await bench.holds.expired(10)) == [asked.call_id]
            await bench.holds.settle({asked.call_id: Outcome(is_posted=True, charged_nano_usd=20)})

        assert await bench.held() == (0, 0)


class TestRenewal:
    """A renewal carries the whole record, so it mends what was lost."""

    async def test_a_lost_hold_is_recreated(self, bench: Bench[Any]) -> None:
        await bench.fund(100)

        assert list(await bench.holds.renew("runner/2", [record(ask(70, 5))])) == []

        assert await bench.held() == (70, 1)

    async def test_a_lost_finished_hold_is_recreated_without_a_slot(self, bench: Bench[Any]) -> None:
        await bench.holds.renew("runner/2", [record(ask(70), HoldState.FINISHED)])

        assert await bench.held() == (70, 0)

    async def test_a_recreated_hold_counts_even_beyond_the_balance(self, bench: Bench[Any]) -> None:
        await bench.holds.renew("runner/2", [record(ask(70))])

        assert (await bench.refusal(ask(0))).available_nano_usd == -70

    async def test_a_lost_finish_is_caught_up(self, bench: Bench[Any]) -> None:
        await bench.fund(100)
        asked = ask(70)
        await bench.admitted(asked)

        for _ in range(2):
            await bench.holds.renew("runner/1", [record(asked, HoldState.FINISHED, 20)])
            assert await bench.held() == (20, 0)

    async def test_an_older_record_does_not_reopen_a_finished_hold(self, bench: Bench[Any]) -> None:
        await bench.fund(100)
        asked = ask(70)
        await bench.admitted(asked)
        await bench.holds.finish(finished(asked, 20))

        await bench.holds.renew("runner/1", [record(asked)])

        assert await bench.held() == (20, 0)

    async def test_a_higher_amount_is_caught_up(self, bench: Bench[Any]) -> None:
        await bench.fund(100)
        asked = ask(70)
        await bench.admitted(asked)

        await bench.holds.renew("runner/1", [record(asked, amount=90)])

        assert await bench.held() == (90, 1)

    @pytest.mark.parametrize("crashes", [False, True], ids=["same process", "next process"])
    @pytest.mark.parametrize("end", ["void", "post while open", "post when finished"])
    async def test_a_closed_hold_is_gone_for_ever(self, bench: Bench[Any], end: str, crashes: bool) -> None:
        await bench.fund(100)
        asked = ask(50)
        await bench.admitted(asked)
        if end == "void":
            await bench.holds.void(asked.call_id, asked.run_id, ACCOUNT_ID)
        if end == "post when finished":
            await bench.holds.finish(finished(asked, 10))
        await bench.fund(90, asked.call_id)
        if crashes:
            await bench.crash()

        assert list(await bench.holds.renew("runner/1", [record(asked)])) == [asked.call_id]
        assert await bench.held() == (0, 0)

    async def test_another_runs_hold_is_gone_for_this_one(self, bench: Bench[Any]) -> None:
        asked = ask()
        await bench.admitted(asked)

        gone = await bench.holds.renew("runner/2", [record(ask(call_id=asked.call_id))])

        assert list(gone) == [asked.call_id]


class TestAwaiting:
    """Waiting for the end of a hold."""

    async def test_it_returns_when_the_hold_is_closed(self, bench: Bench[Any]) -> None:
        asked = ask()
        await bench.admitted(asked)
        waiting = [asyncio.ensure_future(bench.holds.closed(asked.call_id, ACCOUNT_ID)) for _ in range(2)]
        await bench.holds.finish(finished(asked))
        await bench.holds.finish(finished(asked))
        assert not any(waiter.done() for waiter in waiting)

        await bench.fund(0, asked.call_id)

        assert [hold.state for hold in await asyncio.gather(*waiting)] == [HoldState.CLOSED] * 2

    async def test_it_returns_at_once_for_a_hold_that_is_closed_already(self, bench: Bench[Any]) -> None:
        asked = ask()
        await bench.admitted(asked)
        await bench.holds.void(asked.call_id, asked.run_id, ACCOUNT_ID)

        assert (await bench.holds.closed(asked.call_id, ACCOUNT_ID)).state is HoldState.VOIDED

    async def test_who_gives_up_leaves_nothing_behind(self, bench: Bench[Any]) -> None:
        asked = ask()
        await bench.admitted(asked)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await bench.holds.closed(asked.call_id, ACCOUNT_ID)

        await bench.holds.void(asked.call_id, asked.run_id, ACCOUNT_ID)

    async def test_an_unknown_or_foreign_hold_is_not_found(self, bench: Bench[Any]) -> None:
        asked = ask()
        await bench.admitted(asked)
        for call_id, account_id in ((new_id(), ACCOUNT_ID), (asked.call_id, new_id())):
            with pytest.raises(NotFoundError):
                await bench.holds.closed(call_id, account_id)
