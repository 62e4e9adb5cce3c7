"""Generates at OpenAI-compatible upstreams: one POST /chat/completions, its answer as events.

Owns the exchange; the request is written by `openai_request`, the answer read by `openai_answer`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence

from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.ports import UpstreamRequest
from services.routing_and_inference.upstreams.exchange import post, relay
from services.routing_and_inference.upstreams.http import HttpClient
from services.routing_and_inference.upstreams.openai_answer import OpenAiAnswer, mint_tool_call_id
from services.routing_and_inference.upstreams.openai_request import write_request
from services.routing_and_inference.upstreams.runs import RunWriter
from services.routing_and_inference.upstreams.urls import openai_url


class OpenAiChat:
    """Implements `Upstream`."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def generate(self, request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        written = write_request(request)
        url = openai_url(request.target.base_url, "chat/completions")
        response = await post(self._http, request, url, credential(request.target.api_key), written.body)
        try:
            runs = RunWriter(mint_tool_call_id, written.tool_names)
            async for batch in relay(response, request, OpenAiAnswer(runs, request.generation.stop_sequences), runs):
                yield batch
        finally:
            response.close()


def credential(api_key: str) -> Mapping[str, str]:
    """The header that carries the key; a local upstream may need none."""
    return {"authorization": f"Bearer {api_key}"} if api_key else {}
