"""Generates at OpenAI-compatible upstreams: one POST /chat/completions, its answer as events.

Owns where and as whom to ask; the request is written by `openai_request`, the answer read by `openai_answer`.
"""

from collections.abc import AsyncIterator, Sequence

from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.ports import UpstreamRequest
from services.routing_and_inference.upstreams import tool_ids
from services.routing_and_inference.upstreams.exchange import Prepared, relay
from services.routing_and_inference.upstreams.http import Headers, HttpClient
from services.routing_and_inference.upstreams.openai_answer import OpenAiAnswer, mint_tool_call_id
from services.routing_and_inference.upstreams.openai_request import write_request
from services.routing_and_inference.upstreams.runs import RunWriter, makes_one_call
from services.routing_and_inference.upstreams.stops import StopScanner
from services.routing_and_inference.upstreams.urls import openai_url


class OpenAiChat:
    """Implements `Upstream`."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def generate(self, request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        return relay(self._http, request, _prepare)


def credential(api_key: str) -> Headers:
    """The header that carries the key; a local upstream may need none."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def _prepare(request: UpstreamRequest) -> Prepared:
    written = write_request(request)
    generation, options = request.generation, request.target.options
    runs = RunWriter(mint_tool_call_id, written.tool_names, is_single=makes_one_call(generation))
    tool_id = tool_ids.ways(options.get("tool_ids"), "verbatim")[1]
    return Prepared(
        url=openai_url(request.target.base_url, "chat/completions"),
        headers=credential(request.target.api_key),
        body=written.body,
        answer=OpenAiAnswer(
            runs,
            generation.stop_sequences,
            StopScanner(written.own_stops) if written.own_stops else None,
            None if tool_id is tool_ids.same else tool_id,
        ),
        runs=runs,
    )
