"""In which order a profile's upstreams are tried: by priority, then by chance and load, or by the conversation's head.

Pure: candidates, random numbers and loads in, an order out. Refuses to know health: only who may be called stands here.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

from services.routing_and_inference.catalog import UpstreamTarget

Load = Callable[[UpstreamTarget], int]
"""Calls that are running at a target."""

_MOST_OVER_FAIR = 1.5  # so much of its fair share of the load a target may have before it loses its conversations
_ALWAYS_FINE = 4  # calls; below that a share says nothing
_HASH_RANGE = 2**64


def rank(
    candidates: Sequence[UpstreamTarget], random: Callable[[], float], load: Load = lambda target: 0
) -> list[UpstreamTarget]:
    """All candidates in the order to try them. `random` gives numbers in [0, 1).

    Within a priority every candidate is first with a chance of its weight's share, and so on among the rest
    (Efraimidis and Spirakis: sort by random ** (1 / weight)). Of the first two the one with less load for its weight
    then goes first (the power of two choices).
    """
    if len(candidates) < 2:
        return list(candidates)
    ranked = sorted(candidates, key=lambda target: (target.priority, -(random() ** (1 / target.weight))))
    first, second = ranked[:2]
    if first.priority == second.priority and load(first) * second.weight > load(second) * first.weight:
        ranked[:2] = second, first
    return ranked


def rank_by_head(candidates: Sequence[UpstreamTarget], head: bytes, load: Load) -> list[UpstreamTarget]:
    """All candidates in the order to try them: for conversations with the same head the same one first.

    Weighted rendezvous hashing (Thaler and Ravishankar): every replica of ours comes to the same order without a word,
    and another upstream takes over its share of the conversations and no more. Whoever has far more than its fair
    share of the calls stands behind the others of its priority (Mirrokni, Thorup, Zadimoghaddam: bounded loads).
    """
    weights = sum(target.weight for target in candidates)
    calls = sum(load(target) for target in candidates) + 1

    def place(target: UpstreamTarget) -> tuple[int, bool, float]:
        hashed = hashlib.blake2b(head, digest_size=8, key=target.name.encode()[:64]).digest()
        chance = (int.from_bytes(hashed) + 0.5) / _HASH_RANGE
        most = max(_ALWAYS_FINE, math.ceil(_MOST_OVER_FAIR * calls * target.weight / weights))
        return target.priority, load(target) >= most, -math.log(chance) / target.weight

    return sorted(candidates, key=place)
