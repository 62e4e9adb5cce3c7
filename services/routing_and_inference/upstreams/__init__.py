"""The dialects that upstreams speak, behind the ports of this service.

Owns which adapter speaks which dialect; nothing outside this package names an adapter.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.routing_and_inference.ports import Dialects
from services.routing_and_inference.upstreams.anthropic_messages import AnthropicMessages
from services.routing_and_inference.upstreams.embeddings import OpenAiEmbeddings
from services.routing_and_inference.upstreams.http import HttpClient
from services.routing_and_inference.upstreams.http_client import PooledHttpClient
from services.routing_and_inference.upstreams.native_messages import NativeMessages
from services.routing_and_inference.upstreams.openai_chat import OpenAiChat
from services.routing_and_inference.upstreams.rerank import RerankApi
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
    embeddings, rerank = OpenAiEmbeddings(http), RerankApi(http)
    return Dialects(
        generation={
            "openai": OpenAiChat(http),
            "anthropic": AnthropicMessages(http),
            "simulated": SimulatedChat(instant=instant),
        },
        embedding={"openai": embeddings, "tei": embeddings, "simulated": SimulatedEmbedder()},
        rerank={
            **dict.fromkeys(("cohere", "jina", "vllm", "tei"), rerank),
            "simulated": SimulatedRanker(),
        },
        native={"anthropic": NativeMessages(http)},
    )
