"""Generates at Anthropic-dialect upstreams: one POST /v1/messages, its answer as events.

Owns where and as whom to ask; the request is written by `anthropic_request`, the answer read by `anthropic_answer`.
"""

from collections.abc import AsyncIterator, Sequence

from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.ports import UpstreamRequest
from services.routing_and_inference.upstreams import tool_ids
from services.routing_and_inference.upstreams.anthropic_answer import AnthropicAnswer
from services.routing_and_inference.upstreams.anthropic_request import write_request
from services.routing_and_inference.upstreams.exchange import Prepared, relay
from services.routing_and_inference.upstreams.http import Headers, HttpClient
from services.routing_and_inference.upstreams.openai_answer import mint_tool_call_id
from services.routing_and_inference.upstreams.runs import RunWriter, makes_one_call
from services.routing_and_inference.upstreams.urls import versioned_url

_VERSION = "2023-06-01"


class AnthropicMessages:
    """Implements `Upstream`."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def generate(self, request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        return relay(self._http, request, _prepare)


def _prepare(request: UpstreamRequest) -> Prepared:
    written = write_request(request)
    runs = RunWriter(mint_tool_call_id, written.tool_names, is_single=makes_one_call(request.generation))
    native = request.dialect == pb.DIALECT_ANTHROPIC
    answer = AnthropicAnswer(
        runs,
        tool_ids.ways(request.target.options.get("tool_ids"), "encoded")[1],
        keeps_opaque=native,
        cites=native and _wants_citations(request.generation),
        answer_tool=written.answer_tool,
    )
    return Prepared(
        url=versioned_url(request.target.base_url, "v1/messages"),
        headers=_headers(request),
        body=written.body,
        answer=answer,
        runs=runs,
    )


def _wants_citations(generation: pb.Generation) -> bool:
    """Some block asks for them; the members of blocks that have no name here are only searched, never read."""
    for message in generation.messages:
        for block in message.content:
            for inner in (block, *block.tool_result.content):
                if '"citations"' in inner.extra_json or '"citations"' in inner.opaque.json:
                    return True
    return False


def _headers(request: UpstreamRequest) -> Headers:
    options = request.target.options
    headers = {"anthropic-version": str(options.get("anthropic_version", _VERSION))}
    if request.target.api_key:
        headers["x-api-key"] = request.target.api_key
    if beta := options.get("anthropic_beta"):
        headers["anthropic-beta"] = str(beta)
    return tuple(headers.items())
