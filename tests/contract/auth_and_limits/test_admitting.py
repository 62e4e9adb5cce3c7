"""What an admission takes, and that a refusal takes nothing.

Owns the promises of `HoldStore.admit`; refuses to look into the store.
"""

import asyncio
from typing import Any

import pytest

from services.auth_and_limits.holds import HoldState
from services.auth_and_limits.limits import BucketView, LimitsView, Reason
from services.auth_and_limits.records import Admitted, Earlier, Finished, Refused
from services.runtime.errors import CallAlreadyAdmittedError, IdempotencyKeyReusedError
from services.runtime.ids import new_id
from tests.contract.auth_and_limits.hold_store import ACCOUNT_ID, USD, Bench, S, ask, throttled, with_ceilings


async def test_an_admission_takes_a_request_tokens_a_slot_and_money(bench: Bench[Any]) -> None:
    await bench.fund(100)

    verdict = await bench.admit(ask(30, 500))

    assert isinstance(verdict, Admitted)
    assert verdict.hold.state is HoldState.OPEN
    assert verdict.limits == LimitsView(BucketView(1_000, 999, 60_000), BucketView(100_000, 99_500, 300_000))
    assert await bench.held() == (30, 1)


@pytest.mark.parametrize(
    ("rpm", "tpm", "calls", "amount", "tokens", "expected"),
    [
        pytest.param(1, None, None, 0, 0, (Reason.REQUESTS, 60 * S, None, None), id="requests"),
        pytest.param(None, 60, None, 0, 31, (Reason.TOKENS, 2 * S, None, None), id="tokens"),
        pytest.param(None, None, 1, 0, 0, (Reason.CONCURRENCY, None, None, None), id="slots"),
        pytest.param(None, None, None, 71, 0, (Reason.CREDIT, None, None, 70), id="credit"),
        pytest.param(None, 60, None, 0, 61, (Reason.TOKENS, None, 60, None), id="more than a whole minute ever has"),
        pytest.param(1, None, 1, 71, 0, (Reason.CREDIT, None, None, 70), id="what waiting cannot cure comes first"),
        pytest.param(1, None, 1, 0, 0, (Reason.CONCURRENCY, None, None, None), id="a slot before a wait that lies"),
    ],
)
async def test_a_refusal_names_what_was_missing_and_takes_nothing(
    bench: Bench[Any], rpm: int, tpm: int, calls: int, amount: int, tokens: int, expected: tuple[object, ...]
) -> None:
    bench.account = with_ceilings(bench.account, rpm, tpm, calls)
    await bench.fund(100)
    await bench.admitted(ask(30, 31))
    before = await bench.holds.limits(throttled(bench.account)), await bench.held()

    refused = await bench.refusal(ask(amount, tokens))

    got = (refused.reason, refused.retry_in_us, refused.ceiling, refused.available_nano_usd)
    assert got == expected
    assert (await bench.holds.limits(throttled(bench.account)), await bench.held()) == before
    assert refused.limits == before[0]


async def test_waiting_as_told_is_enough_and_a_microsecond_less_is_not(bench: Bench[Any]) -> None:
    bench.account = with_ceilings(bench.account, rpm=7)
    for _ in range(7):
        await bench.admitted(ask())
    refused = await bench.refusal(ask())
    assert refused.retry_in_us is not None

    bench.clock.advance_us(refused.retry_in_us - 1)
    assert (await bench.refusal(ask())).retry_in_us == 1
    bench.clock.advance_us(1)
    await bench.admitted(ask())


async def test_a_throttled_key_is_held_below_the_account_and_sees_its_own_numbers(bench: Bench[Any]) -> None:
    payer = throttled(bench.account, rpm=2, tpm=100)

    verdict = await bench.admit(ask(0, 60), payer)
    assert verdict.limits == LimitsView(BucketView(2, 1, 30 * S), BucketView(100, 40, 36 * S))
    assert (await bench.refusal(ask(0, 60), payer)).reason is Reason.KEY_TOKENS
    await bench.admitted(ask(), payer)
    assert (await bench.refusal(ask(), payer)).reason is Reason.KEY_REQUESTS
    await bench.admitted(ask())


async def test_a_throttle_above_the_account_changes_nothing(bench: Bench[Any]) -> None:
    verdict = await bench.admit(ask(), throttled(bench.account, rpm=5_000, tpm=500_000))

    assert verdict.limits.requests.limit == 1_000


async def test_an_account_that_metering_has_not_told_of_has_nothing_to_spend(bench: Bench[Any]) -> None:
    assert (await bench.refusal(ask(1))).available_nano_usd == 0
    await bench.admitted(ask(0))


async def test_in_debt_not_even_a_free_call_is_admitted(bench: Bench[Any]) -> None:
    await bench.fund(-1)

    assert (await bench.refusal(ask(0))).reason is Reason.CREDIT


async def test_spend_raises_the_ceilings_at_the_next_decision(bench: Bench[Any]) -> None:
    await bench.fund(100, paid=25 * USD)

    assert (await bench.admit(ask())).limits.requests == BucketView(2_000, 1_999, 30_000)
    assert (await bench.holds.ceilings(bench.account)).tier == "next"


async def test_of_many_at_once_exactly_as_many_pass_as_the_balance_covers(bench: Bench[Any]) -> None:
    await bench.fund(7 * 100 + 99)

    verdicts = await asyncio.gather(*(bench.admit(ask(100)) for _ in range(40)))

    assert sum(isinstance(verdict, Admitted) for verdict in verdicts) == 7
    assert {verdict.reason for verdict in verdicts if isinstance(verdict, Refused)} == {Reason.CREDIT}
    assert await bench.held() == (700, 7)


async def test_of_a_thousand_runs_of_one_call_exactly_one_is_admitted(bench: Bench[Any]) -> None:
    call_id = new_id()

    verdicts = await asyncio.gather(*(bench.admit(ask(call_id=call_id)) for _ in range(1_000)), return_exceptions=True)

    assert sum(isinstance(verdict, Admitted) for verdict in verdicts) == 1
    assert sum(isinstance(verdict, CallAlreadyAdmittedError) for verdict in verdicts) == 999
    assert await bench.held() == (0, 1)


async def test_a_repeat_of_the_same_run_returns_the_hold_and_takes_nothing_more(bench: Bench[Any]) -> None:
    await bench.fund(100)
    asked = ask(30, 10)
    first, second = await asyncio.gather(bench.admitted(asked), bench.admitted(asked))

    assert first == second == await bench.admitted(asked)
    assert await bench.held() == (30, 1)


@pytest.mark.parametrize("end", ["void", "post"])
@pytest.mark.parametrize("crashes", [False, True], ids=["same process", "next process"])
async def test_the_id_of_a_closed_call_is_used_for_ever(bench: Bench[Any], end: str, crashes: bool) -> None:
    asked = ask()
    await bench.admitted(asked)
    if end == "void":
        await bench.holds.void(asked.call_id, asked.run_id, ACCOUNT_ID)
    else:
        await bench.holds.finish([Finished(asked.call_id, asked.run_id, 0, 0, ACCOUNT_ID)])
        await bench.fund(0, asked.call_id)
    if crashes:
        await bench.crash()
    before = await bench.holds.limits(throttled(bench.account))

    for again in (asked, ask(call_id=asked.call_id)):
        with pytest.raises(CallAlreadyAdmittedError):
            await bench.admit(again)

    assert await bench.held() == (0, 0)
    assert await bench.holds.limits(throttled(bench.account)) == before


class TestIdempotencyKey:
    """An idempotency key stands for one call at a time."""

    async def test_a_second_call_waits_for_the_first(self, bench: Bench[Any]) -> None:
        first = ask(key="k", body=b"1")
        await bench.admitted(first)

        second = await bench.admit(ask(key="k", body=b"1"))

        assert second == Earlier(first.call_id, False, second.limits)
        assert await bench.held() == (0, 1)

    @pytest.mark.parametrize("crashes", [False, True], ids=["same process", "next process"])
    async def test_a_posted_call_is_replayed(self, bench: Bench[Any], crashes: bool) -> None:
        first = ask(key="k", body=b"1")
        await bench.admitted(first)
        await bench.fund(0, first.call_id)
        if crashes:
            await bench.crash()

        second = await bench.admit(ask(key="k", body=b"1"))

        assert second == Earlier(first.call_id, True, second.limits)

    @pytest.mark.parametrize("crashes", [False, True], ids=["same process", "next process"])
    async def test_a_voided_call_frees_its_key(self, bench: Bench[Any], crashes: bool) -> None:
        first = ask(key="k", body=b"1")
        await bench.admitted(first)
        await bench.holds.void(first.call_id, first.run_id, ACCOUNT_ID)
        if crashes:
            await bench.crash()

        await bench.admitted(ask(key="k", body=b"2"))

    async def test_another_body_is_refused(self, bench: Bench[Any]) -> None:
        await bench.admitted(ask(key="k", body=b"1"))

        with pytest.raises(IdempotencyKeyReusedError):
            await bench.admit(ask(key="k", body=b"2"))

    async def test_a_repeat_of_the_same_run_is_admitted(self, bench: Bench[Any]) -> None:
        first = ask(key="k", body=b"1")

        assert await bench.admitted(first) == await bench.admitted(first)


async def test_the_account_of_a_hold_is_the_payers(bench: Bench[Any]) -> None:
    assert (await bench.admitted(ask())).account_id == ACCOUNT_ID
