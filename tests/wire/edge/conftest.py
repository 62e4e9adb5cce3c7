"""Fixtures of the edge's wire tests.

Owns starting and stopping; refuses to know how an edge is put together.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.wire.edge.running_edge import EdgeOptions, RunningEdge, run_edge

StartEdge = Callable[..., Awaitable[RunningEdge]]


@pytest.fixture
async def start_edge() -> AsyncIterator[StartEdge]:
    stops: list[Callable[[], Awaitable[None]]] = []

    async def start(**options: Any) -> RunningEdge:
        edge, stop = await run_edge(EdgeOptions(**options))
        stops.append(stop)
        return edge

    yield start
    for stop in stops:
        await stop()


@pytest.fixture
async def edge(start_edge: StartEdge) -> RunningEdge:
    return await start_edge()
