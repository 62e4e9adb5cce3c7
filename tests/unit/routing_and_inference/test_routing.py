"""The order in which upstreams are tried."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.routing_and_inference.catalog import UpstreamTarget
from services.routing_and_inference.routing import rank

targets = st.lists(
    st.builds(
        UpstreamTarget,
        name=st.uuids().map(str),
        dialect=st.just("simulated"),
        priority=st.integers(0, 3),
        weight=st.integers(1, 1_000),
    ),
    max_size=8,
)


@given(targets, st.integers())
def test_everyone_is_tried_once_and_lower_priorities_first(candidates: list[UpstreamTarget], seed: int) -> None:
    ranked = rank(candidates, random.Random(seed).random)

    assert sorted(t.name for t in ranked) == sorted(t.name for t in candidates)
    assert [t.priority for t in ranked] == sorted(t.priority for t in candidates)


def test_weights_are_shares() -> None:
    candidates = [UpstreamTarget("light", "simulated", weight=1), UpstreamTarget("heavy", "simulated", weight=3)]
    chance = random.Random(7).random
    first = Counter(rank(candidates, chance)[0].name for _ in range(10_000))

    assert 0.72 < first["heavy"] / 10_000 < 0.78


def test_of_the_first_two_the_less_loaded_goes_first() -> None:
    idle, busy = UpstreamTarget("idle", "simulated"), UpstreamTarget("busy", "simulated")
    chance = random.Random(7).random

    firsts = {rank([idle, busy], chance, lambda target: 5 if target is busy else 1)[0].name for _ in range(100)}

    assert firsts == {"idle"}


def test_load_counts_for_its_weight_and_never_against_the_priority() -> None:
    spare = UpstreamTarget("spare", "simulated", priority=1)
    heavy, light = UpstreamTarget("heavy", "simulated", weight=10), UpstreamTarget("light", "simulated", weight=1)
    load = {"heavy": 9, "light": 1, "spare": 0}
    chance = random.Random(7).random

    for _ in range(100):
        assert [t.name for t in rank([heavy, light, spare], chance, lambda t: load[t.name])] == [
            "heavy",
            "light",
            "spare",
        ]
