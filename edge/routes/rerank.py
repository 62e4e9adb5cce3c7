"""POST /v1/rerank and /v2/rerank: documents by relevance, in one shape that Cohere's, Jina's and vLLM's clients read.

Owns that request and reply; refuses to rank.
"""

import json
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct
from mws.inference.v1 import inference_service_pb2 as pb

from edge.ask import Reply
from edge.decoding import decode
from edge.exchange import Exchange
from edge.front import Route
from edge.openai import errors
from edge.pipeline import Pipeline
from edge.problems import BadFieldError, bad_value
from edge.shapes import OPENAI, Shape
from services.runtime.errors import GatewayError

_DOCUMENTS_MAX = 1000
_INT32_MAX = 2**31 - 1
Positive = Annotated[int, Meta(ge=1, le=_INT32_MAX)]


class RerankRequest(Struct, kw_only=True):
    """The body of POST /v1/rerank. Documents are texts, or objects with a `text` or the fields to rank by.

    What the last four ask for is the upstream's to decide: they are checked, and change nothing.
    """

    query: str
    documents: list[Raw]
    model: str | None = None
    top_n: Positive | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    max_tokens_per_doc: Positive | None = None
    max_chunks_per_doc: Positive | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=_INT32_MAX)] | None = None
    priority: Annotated[int, Meta(ge=0, le=999)] | None = None


class RankedDocument(Struct, omit_defaults=True):
    """One result."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class RerankReply(Struct):
    """The answer of POST /v1/rerank."""

    id: str
    model: str
    results: list[RankedDocument]
    meta: dict[str, Any]
    usage: dict[str, int]
    object: str = "list"


_request = msgspec.json.Decoder(RerankRequest)
_document = msgspec.json.Decoder(str | dict[str, Any])
_encode = msgspec.json.Encoder().encode


def read_rerank(body: bytes) -> tuple[RerankRequest, list[str]]:
    """Reads the body. Raises BadFieldError."""
    request = decode(_request, body)
    if not request.query:
        raise bad_value(("query",), "may not be empty")
    if not 1 <= len(request.documents) <= _DOCUMENTS_MAX:
        raise bad_value(("documents",), f"expected 1 to {_DOCUMENTS_MAX} documents")
    return request, [_text(raw, at, request.rank_fields) for at, raw in enumerate(request.documents)]


def _text(raw: Raw, at: int, rank_fields: list[str] | None) -> str:
    try:
        document = decode(_document, raw)
    except BadFieldError:
        raise bad_value(("documents", at), "expected a string or an object") from None
    if isinstance(document, str):
        return document
    if isinstance(document.get("text"), str):
        return str(document["text"])
    chosen = {name: document[name] for name in rank_fields or document if name in document}
    return "\n".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in chosen.items()
    )


def write_rerank(call_id: str, request: RerankRequest, texts: list[str], answer: pb.RerankResponse) -> bytes:
    """The reply's body."""
    results = [
        RankedDocument(
            result.index,
            result.relevance_score,
            {"text": texts[result.index]} if request.return_documents else None,
        )
        for result in answer.results
    ]
    units, tokens = answer.usage.search_units, answer.usage.input_tokens
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": units}}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _encode(RerankReply(call_id, request.model or answer.profile, results, meta, usage))


def _render(error: GatewayError, call_id: str) -> Reply:
    """OpenAI's envelope with Cohere's `message` beside it."""
    reply = errors.render(error, call_id)
    message = msgspec.json.decode(reply.body)["error"]["message"]
    return Reply(reply.status, b'%b,"message":%b}' % (reply.body[:-1], _encode(message)), reply.headers)


_SHAPE = Shape("rerank", OPENAI.read, OPENAI.stream, OPENAI.fold, _render, OPENAI.render_event, OPENAI.ping)


def rerank_routes(pipeline: Pipeline) -> dict[tuple[str, str], Route]:
    """The routes, by method and path."""

    async def rerank(exchange: Exchange) -> None:
        async def work(digest: bytes) -> None:
            body = await pipeline.read_body(exchange, digest)
            request, texts = await pipeline.parse(exchange, digest, lambda: read_rerank(body))
            call = pb.RerankRequest(
                call_id=exchange.call_id, model=request.model or "", query=request.query, documents=texts
            )
            call.credential.api_key_sha256 = digest
            if request.top_n is not None:
                call.top_n = min(request.top_n, len(texts))
            call.idempotency_key, call.body_sha256 = await pipeline.idempotency(exchange, digest, body)
            answer = await pipeline.follow(exchange, pipeline.inference.rerank(call))
            exchange.limits, exchange.profile = answer.limits, answer.profile
            await exchange.respond(200, write_rerank(exchange.call_id, request, texts, answer), [])

        await pipeline.serve(exchange, _SHAPE, work)

    return {("POST", path): rerank for path in ("/v1/rerank", "/v2/rerank")}
