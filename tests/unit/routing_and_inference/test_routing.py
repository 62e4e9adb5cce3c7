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
