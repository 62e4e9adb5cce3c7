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
from services.routing_and_inference.upstreams.http import HttpClient
from services.routing_and_inference.upstreams.openai_answer import mint_tool_call_id
from services.routing_and_inference.upstreams.runs import RunWriter
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
    runs = RunWriter(mint_tool_call_id)
    tool_id = tool_ids.decode if written.encodes_ids else str
    return Prepared(
        url=versioned_url(request.target.base_url, "v1/messages"),
        headers=_headers(request),
        body=written.body,
        answer=AnthropicAnswer(runs, tool_id, keeps_opaque=request.dialect == pb.DIALECT_ANTHROPIC),
        runs=runs,
    )


def _headers(request: UpstreamRequest) -> dict[str, str]:
    options = request.target.options
    headers = {"anthropic-version": str(options.get("anthropic_version", _VERSION))}
    if request.target.api_key:
        headers["x-api-key"] = request.target.api_key
    if beta := options.get("anthropic_beta"):
        headers["anthropic-beta"] = str(beta)
    return headers
