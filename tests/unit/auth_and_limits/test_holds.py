"""A hold's life, step by step.

Owns the proof of `holds`; refuses balances.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth_and_limits import holds
from services.auth_and_limits.holds import Hold, HoldState


def hold(state: HoldState = HoldState.OPEN, amount: int = 100, tokens: int = 10) -> Hold:
    return Hold("call", "run", "runner", "account", "", state, amount, tokens, "book")


@dataclass(frozen=True)
class Step:
    """A step and what it may be taken from."""

    take: Callable[[Hold], object]
    legal: frozenset[HoldState]
    leads_to: HoldState


STEPS = {
    "extend": Step(lambda it: holds.extend(it, 200), frozenset({HoldState.OPEN}), HoldState.OPEN),
    "finish": Step(lambda it: holds.finish(it, 5), holds.LIVE, HoldState.FINISHED),
    "close": Step(lambda it: holds.close(it, HoldState.CLOSED), holds.LIVE, HoldState.CLOSED),
    "void": Step(lambda it: holds.close(it, HoldState.VOIDED), holds.LIVE, HoldState.VOIDED),
}


@pytest.mark.parametrize("state", list(HoldState))
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_step_is_taken_from_its_states_only(step: Step, state: HoldState) -> None:
    it = hold(state)
    if state not in step.legal:
        with pytest.raises(ValueError):
            step.take(it)
        assert it == hold(state)
        return

    step.take(it)

    assert it.state is step.leads_to


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        pytest.param(150, (50, 150), id="up to the new amount"),
        pytest.param(100, (0, 100), id="a repeat raises nothing"),
        pytest.param(60, (0, 100), id="an older, lower amount changes nothing"),
    ],
)
def test_an_extension_is_absolute(amount: int, expected: tuple[int, int]) -> None:
    it = hold(amount=100)

    assert (holds.extend(it, amount), it.amount_nano_usd) == expected


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        pytest.param(30, (-70, 30), id="shrinks to the cost"),
        pytest.param(130, (30, 130), id="grows to the cost"),
        pytest.param(None, (0, 100), id="stays while the cost is unknown"),
    ],
)
def test_a_finished_hold_keeps_its_cost(cost: int | None, expected: tuple[int, int]) -> None:
    it = hold(amount=100)

    assert (holds.finish(it, cost), it.amount_nano_usd) == expected


@pytest.mark.parametrize(
    ("used", "differences"),
    [
        pytest.param([25, 25], [15, 0], id="more than estimated, once"),
        pytest.param([4, 9], [-6, 0], id="less than estimated, the first word counts"),
        pytest.param([None, 25], [0, 15], id="known later"),
    ],
)
def test_tokens_are_corrected_once(used: list[int | None], differences: list[int]) -> None:
    it = hold(tokens=10)

    assert [holds.correct_tokens(it, tokens) for tokens in used] == differences


def test_closing_releases_what_is_held() -> None:
    it = hold(amount=70)

    assert (holds.close(it, HoldState.CLOSED), it.amount_nano_usd) == (70, 0)


@pytest.mark.parametrize(
    ("state", "run_id", "expected"),
    [
        pytest.param(HoldState.OPEN, "run", True, id="its own run"),
        pytest.param(HoldState.OPEN, "other", False, id="another run"),
        pytest.param(HoldState.FINISHED, "run", False, id="finished"),
    ],
)
def test_a_hold_is_open_for_its_own_run_only(state: HoldState, run_id: str, expected: bool) -> None:
    assert hold(state).is_open_for(run_id) is expected


@given(early=st.integers(0, 2**48 - 2), later=st.integers(0, 2**48 - 1))
def test_the_first_ids_of_two_milliseconds_sort_as_they_do(early: int, later: int) -> None:
    assert (holds.first_call_id(early) < holds.first_call_id(later)) is (early < later)
