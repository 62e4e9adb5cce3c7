"""Bucket arithmetic: exact, in integers, whatever the limit and whenever it changes.

Owns the proof of `limits`; refuses clocks and stores.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth_and_limits.limits import (
    LARGEST_LIMIT,
    MINUTE_US,
    TOKEN_UNITS,
    Bucket,
    BucketView,
    Reason,
    Shortage,
    binding_view,
    shortage_of,
)

S = 1_000_000  # µs

limits = st.integers(1, LARGEST_LIMIT)
instants = st.integers(0, 10**15)


def bucket(limit: int, used: int = 0, at_us: int = 0) -> Bucket:
    return Bucket(limit, used * TOKEN_UNITS, at_us)


@pytest.mark.parametrize(
    ("used", "limit", "after_us", "expected"),
    [
        pytest.param(0, 60, 0, (60, 0), id="an unused bucket is full"),
        pytest.param(60, 60, 0, (0, 60 * S), id="an emptied bucket needs a whole minute"),
        pytest.param(60, 60, 1 * S, (1, 59 * S), id="one token comes back per second at 60 a minute"),
        pytest.param(60, 60, S - 1, (0, 59 * S + 1), id="a microsecond before that it is not there"),
        pytest.param(60, 60, 61 * S, (60, 0), id="it never gets more than full"),
        pytest.param(90, 60, 0, (0, 90 * S), id="debt shows as nothing left and a longer reset"),
        pytest.param(1, 7, 0, (6, -(-MINUTE_US // 7)), id="a reset that is no whole microsecond is rounded up"),
    ],
)
def test_a_bucket_shows_what_is_left_and_when_it_is_full(
    used: int, limit: int, after_us: int, expected: tuple[int, int]
) -> None:
    it = bucket(limit, used)

    it.settle(limit, after_us)

    assert (it.remaining, it.reset_us) == expected


@given(limit=limits, used_units=st.integers(0, 2 * LARGEST_LIMIT * TOKEN_UNITS), now_us=instants, data=st.data())
def test_waiting_as_told_is_enough_and_a_microsecond_less_is_not(
    limit: int, used_units: int, now_us: int, data: st.DataObject
) -> None:
    tokens = data.draw(st.integers(0, limit))
    it = Bucket(limit, used_units, now_us)
    wait_us = it.wait_us(tokens)
    assert wait_us is not None

    it.settle(limit, now_us + max(0, wait_us - 1))
    too_early = it.wait_us(tokens)
    it.settle(limit, now_us + wait_us)
    in_time = it.wait_us(tokens)

    assert in_time == 0
    assert wait_us == 0 or too_early == 1


@given(limit=limits, used_units=st.integers(0, LARGEST_LIMIT * TOKEN_UNITS), over=st.integers(1, 10**9))
def test_what_is_over_the_limit_by_itself_can_never_pass(limit: int, used_units: int, over: int) -> None:
    assert Bucket(limit, used_units).wait_us(limit + over) is None


@given(limit=limits, used_units=st.integers(0, LARGEST_LIMIT * TOKEN_UNITS), tokens=st.integers(0, LARGEST_LIMIT))
def test_asking_takes_nothing(limit: int, used_units: int, tokens: int) -> None:
    it = Bucket(limit, used_units)

    shortage_of([(it, tokens, Reason.TOKENS)])

    assert it == Bucket(limit, used_units)


@given(limit=limits, used=st.integers(0, 10**6), taken=st.integers(0, 10**6), after_us=st.integers(0, MINUTE_US))
def test_giving_back_leaves_the_bucket_as_if_nothing_had_been_taken(
    limit: int, used: int, taken: int, after_us: int
) -> None:
    untouched, it = bucket(limit, used), bucket(limit, used)
    it.take(taken)

    it.correct(-taken, after_us)
    untouched.settle(limit, after_us)

    assert it == untouched


@given(limit=limits, steps=st.lists(st.tuples(st.integers(0, MINUTE_US), st.integers(0, 10**6)), max_size=30))
def test_no_window_of_a_minute_lets_more_through_than_capacity_and_refill(
    limit: int, steps: list[tuple[int, int]]
) -> None:
    it = Bucket()
    now_us = 0
    passed: list[tuple[int, int]] = []
    for pause_us, tokens in steps:
        now_us += pause_us
        it.settle(limit, now_us)
        if it.wait_us(tokens) == 0:
            it.take(tokens)
            passed.append((now_us, tokens))

    for start_us, _ in passed:
        within = sum(tokens for at_us, tokens in passed if start_us <= at_us < start_us + MINUTE_US)
        assert within <= 2 * limit


@pytest.mark.parametrize(
    ("used", "old", "new", "remaining"),
    [
        pytest.param(0, 100, 1000, 1000, id="a full bucket is full under a higher limit at once"),
        pytest.param(100, 100, 1000, 900, id="what was used stays used under a higher limit"),
        pytest.param(30, 1000, 100, 70, id="what was used stays used under a lower limit"),
        pytest.param(900, 1000, 100, 0, id="a lower limit leaves nothing"),
    ],
)
def test_a_new_limit_counts_at_once(used: int, old: int, new: int, remaining: int) -> None:
    it = bucket(old, used)

    it.settle(new, 0)

    assert it.remaining == remaining


@given(old=limits, new=limits, used_units=st.integers(0, LARGEST_LIMIT * TOKEN_UNITS))
def test_a_new_limit_never_makes_anybody_wait_longer_than_a_minute(old: int, new: int, used_units: int) -> None:
    it = Bucket(old, used_units)

    it.settle(new, 0)

    assert old == new or it.reset_us <= MINUTE_US


def test_a_restored_bucket_flows_back_at_the_limit_that_it_meets() -> None:
    it = Bucket(0, 60 * TOKEN_UNITS, 0)

    it.settle(60, 30 * S)

    assert it.remaining == 30


def test_a_correction_of_a_restored_bucket_assumes_the_worst() -> None:
    it = Bucket(0, 10 * TOKEN_UNITS, 0)

    it.correct(5, 30 * S)
    it.settle(60, 30 * S)

    assert it.remaining == 45


def test_time_that_stands_still_changes_nothing() -> None:
    it = bucket(60, 30, 100)

    it.settle(60, 99)

    assert it == bucket(60, 30, 100)


@pytest.mark.parametrize(
    ("demands", "expected"),
    [
        pytest.param([(60, 0, 1), (60, 0, 60)], None, id="everything fits"),
        pytest.param([(60, 60, 1), (60, 60, 5)], Shortage(Reason.TOKENS, 5 * S), id="the longest wait is named"),
        pytest.param([(60, 60, 1), (60, 0, 61)], Shortage(Reason.TOKENS, None, 60), id="a ceiling beats a wait"),
        pytest.param([(60, 60, 1), (60, 0, 1)], Shortage(Reason.REQUESTS, 1 * S), id="one shortage is enough"),
    ],
)
def test_the_shortage_is_the_one_that_lasts_longest(
    demands: list[tuple[int, int, int]], expected: Shortage | None
) -> None:
    reasons = (Reason.REQUESTS, Reason.TOKENS)
    wanted = [(bucket(limit, used), cost, why) for (limit, used, cost), why in zip(demands, reasons, strict=True)]

    assert shortage_of(wanted) == expected


@pytest.mark.parametrize(
    ("account", "key", "expected"),
    [
        pytest.param((100, 0), None, BucketView(100, 100, 0), id="without a throttle the account's"),
        pytest.param((100, 0), (10, 0), BucketView(10, 10, 0), id="a throttled key's own"),
        pytest.param((100, 97), (10, 0), BucketView(100, 3, 58_200_000), id="the account's when it has less left"),
    ],
)
def test_the_view_shows_the_bucket_that_binds(
    account: tuple[int, int], key: tuple[int, int] | None, expected: BucketView
) -> None:
    assert binding_view(bucket(*account), bucket(*key) if key else None) == expected
