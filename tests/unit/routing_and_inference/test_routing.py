"""The order in which upstreams are tried."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.catalog import UpstreamTarget
from services.routing_and_inference.prompt import head_of
from services.routing_and_inference.routing import rank, rank_by_head

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


# ---- by the head of the conversation ----


def conversation(number: int, turns: int) -> pb.Generation:
    generation = pb.Generation()
    generation.messages.add(role=pb.ROLE_SYSTEM).content.add().text.text = "You are a helpful assistant."
    for turn in range(turns):
        generation.messages.add(role=pb.ROLE_USER).content.add().text.text = f"conversation {number}, turn {turn}"
        generation.messages.add(role=pb.ROLE_ASSISTANT).content.add().text.text = "Well."
    return generation


def replicas(count: int) -> list[UpstreamTarget]:
    return [UpstreamTarget(f"replica-{number}", "simulated") for number in range(count)]


def idle(target: UpstreamTarget) -> int:
    return 0


def home(number: int, turns: int, among: list[UpstreamTarget]) -> str:
    return rank_by_head(among, head_of(conversation(number, turns)), idle)[0].name


def test_every_turn_of_a_conversation_goes_where_the_first_one_went() -> None:
    three = replicas(3)

    assert all(home(number, 1, three) == home(number, turns, three) for number in range(200) for turns in (2, 5))
    assert min(Counter(home(number, 1, three) for number in range(200)).values()) > 40


def test_a_further_replica_moves_its_own_share_and_no_more() -> None:
    three, four = replicas(3), replicas(4)
    moved = [number for number in range(200) if home(number, 1, three) != home(number, 1, four)]

    assert 0 < len(moved) / 200 <= 0.30
    assert {home(number, 1, four) for number in moved} == {"replica-3"}


def test_a_replica_with_more_than_its_share_of_the_load_is_spared() -> None:
    three = replicas(3)
    name = home(1, 1, three)
    ranked = rank_by_head(three, head_of(conversation(1, 1)), lambda target: 9 if target.name == name else 3)

    assert ranked[-1].name == name


@given(targets, st.binary(min_size=1, max_size=16))
def test_the_head_never_outweighs_the_priority(candidates: list[UpstreamTarget], head: bytes) -> None:
    ranked = rank_by_head(candidates, head, idle)

    assert sorted(t.name for t in ranked) == sorted(t.name for t in candidates)
    assert [t.priority for t in ranked] == sorted(t.priority for t in candidates)
