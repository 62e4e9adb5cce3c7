"""In which order a profile's upstreams are tried: by priority, and within one by weighted chance.

Pure: candidates and random numbers in, an order out. Refuses to know health; who may not be called is no candidate.
"""

from collections.abc import Callable, Sequence

from services.routing_and_inference.catalog import UpstreamTarget


def rank(candidates: Sequence[UpstreamTarget], random: Callable[[], float]) -> list[UpstreamTarget]:
    """All candidates in the order to try them. `random` gives numbers in [0, 1).

    Within a priority every candidate is first with a chance of its weight's share, and so on among the rest
    (Efraimidis and Spirakis: sort by random ** (1 / weight)).
    """
    if len(candidates) < 2:
        return list(candidates)
    return sorted(candidates, key=lambda target: (target.priority, -(random() ** (1 / target.weight))))
