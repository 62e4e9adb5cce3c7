"""In which order a profile's upstreams are tried: by priority, then by weighted chance, then the less loaded of two.

Pure: candidates, random numbers and loads in, an order out. Refuses to know health: only who may be called stands here.
"""

from collections.abc import Callable, Sequence

from services.routing_and_inference.catalog import UpstreamTarget

Load = Callable[[UpstreamTarget], int]
"""Calls that are running at a target."""


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
