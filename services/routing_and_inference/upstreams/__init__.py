"""The dialects that upstreams speak, behind the ports of this service.

Owns which adapter speaks which dialect; nothing outside this package names an adapter.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.routing_and_inference.ports import Dialects
from services.routing_and_inference.upstreams.http import HttpClient
from services.routing_and_inference.upstreams.http_client import PooledHttpClient
from services.routing_and_inference.upstreams.openai_chat import OpenAiChat
from services.routing_and_inference.upstreams.simulated import SimulatedChat, SimulatedEmbedder, SimulatedRanker

__all__ = ["dialects", "open_dialects"]


@asynccontextmanager
async def open_dialects(*, instant: bool = False) -> AsyncIterator[Dialects]:
    """Every dialect over one pool of connections. `instant`: simulated streams do not wait between their pieces."""
    client = PooledHttpClient()
    try:
        yield dialects(client, instant=instant)
    finally:
        await client.aclose()


def dialects(http: HttpClient, *, instant: bool = False) -> Dialects:
    """Every dialect over the given client."""
    return Dialects(
        generation={"openai": OpenAiChat(http), "simulated": SimulatedChat(instant=instant)},
        embedding={"simulated": SimulatedEmbedder()},
        rerank={"simulated": SimulatedRanker()},
    )
