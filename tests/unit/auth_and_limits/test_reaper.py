"""The reaper asks about expired holds and believes answers only.

Owns its proof against a store and a metering that are values.
"""

from collections.abc import Mapping, Sequence

import pytest

from services.auth_and_limits.reaper import Reaper
from services.auth_and_limits.records import Outcome
from services.runtime.errors import ServiceUnavailableError

POSTED, VOID = Outcome(True, 5), Outcome(False)


class Holds:
    """Expired holds that settle as told."""

    def __init__(self, *expired: str) -> None:
        self.waiting = list(expired)
        self.settled: dict[str, Outcome] = {}

    async def expired(self, at_most: int) -> Sequence[str]:
        return self.waiting[:at_most]

    async def settle(self, outcomes: Mapping[str, Outcome]) -> None:
        self.settled.update(outcomes)
        self.waiting = [call_id for call_id in self.waiting if call_id not in outcomes]


class Metering:
    """Answers from a table; without one it is down."""

    def __init__(self, outcomes: Mapping[str, Outcome] | None) -> None:
        self.outcomes = outcomes
        self.asked: list[Sequence[str]] = []

    async def resolve(self, call_ids: Sequence[str]) -> Mapping[str, Outcome]:
        self.asked.append(call_ids)
        if self.outcomes is None:
            raise ServiceUnavailableError("down")
        return {call_id: self.outcomes[call_id] for call_id in call_ids if call_id in self.outcomes}


@pytest.mark.parametrize(
    ("outcomes", "settled", "kept"),
    [
        pytest.param({"a": POSTED, "b": VOID}, {"a": POSTED, "b": VOID}, [], id="both are known"),
        pytest.param({"a": POSTED}, {"a": POSTED}, ["b"], id="one is not certain"),
        pytest.param(None, {}, ["a", "b"], id="metering is down"),
    ],
)
async def test_only_an_answer_settles(
    outcomes: Mapping[str, Outcome] | None, settled: Mapping[str, Outcome], kept: list[str]
) -> None:
    holds = Holds("a", "b")

    await Reaper(holds, Metering(outcomes)).turn()  # type: ignore[arg-type]

    assert (holds.settled, holds.waiting) == (settled, kept)


async def test_nothing_expired_asks_nobody() -> None:
    metering = Metering({})

    assert await Reaper(Holds(), metering).turn() == 0  # type: ignore[arg-type]
    assert metering.asked == []


async def test_at_most_a_thousand_are_asked_about_at_once() -> None:
    metering = Metering(None)

    await Reaper(Holds(*map(str, range(1_500))), metering).turn()  # type: ignore[arg-type]

    assert [len(asked) for asked in metering.asked] == [1_000]
