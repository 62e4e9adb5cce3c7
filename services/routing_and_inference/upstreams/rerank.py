"""Ranks at upstreams in the dialects of Cohere, Jina, vLLM and TEI.

Owns their requests and replies; refuses to score anything itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from services.routing_and_inference.ports import RankedDocument, RerankRequest, RerankResult
from services.routing_and_inference.upstreams import counts, errors
from services.routing_and_inference.upstreams.exchange import ask
from services.routing_and_inference.upstreams.http import HttpClient
from services.routing_and_inference.upstreams.openai_chat import credential
from services.routing_and_inference.upstreams.urls import versioned_url

_METHODS = {"cohere": "v2/rerank", "jina": "v1/rerank", "vllm": "v1/rerank", "tei": "rerank"}

_encode = msgspec.json.Encoder().encode


class RerankApi:
    """Implements `RerankUpstream` for every dialect; the target names its own."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def rerank(self, request: RerankRequest) -> RerankResult:
        dialect = request.target.dialect
        method = _METHODS[dialect]
        base = request.target.base_url
        url = f"{base.rstrip('/')}/{method}" if dialect == "tei" else versioned_url(base, method)
        answer = await ask(self._http, request, url, credential(request.target.api_key), _encode(_body(request)))
        try:
            reply = msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise errors.malformed() from None
        return _read(reply, request)


def _body(request: RerankRequest) -> dict[str, Any]:
    if request.target.dialect == "tei":
        return {"query": request.query, "texts": list(request.documents), "truncate": True, "raw_scores": False}
    body: dict[str, Any] = {
        "model": request.target.model,
        "query": request.query,
        "documents": list(request.documents),
        "top_n": request.top_n,
    }
    if request.target.dialect == "jina":
        body["return_documents"] = False
    return body


def _read(reply: object, request: RerankRequest) -> RerankResult:
    results = reply.get("results") if isinstance(reply, Mapping) else reply
    if not isinstance(results, list):
        raise errors.malformed()
    ranking = sorted((_ranked(item) for item in results), key=lambda ranked: (-ranked.relevance_score, ranked.index))
    _check(ranking, len(request.documents))
    tokens, units = _usage(reply) if isinstance(reply, Mapping) else (None, None)
    return RerankResult(ranking[: request.top_n], tokens, units)


def _ranked(item: object) -> RankedDocument:
    if isinstance(item, Mapping):
        index = counts.count(item.get("index"))
        score = item.get("relevance_score", item.get("score"))
        if index is not None and isinstance(score, int | float) and not isinstance(score, bool):
            return RankedDocument(index, float(score))
    raise errors.malformed()


def _check(ranking: Sequence[RankedDocument], documents: int) -> None:
    seen = {ranked.index for ranked in ranking}
    if not ranking or len(seen) != len(ranking) or max(seen) >= documents:
        raise errors.malformed()


def _usage(reply: Mapping[str, Any]) -> tuple[int | None, int | None]:
    usage, meta = reply.get("usage"), reply.get("meta")
    tokens = units = None
    if isinstance(usage, Mapping):
        prompt = counts.count(usage.get("prompt_tokens"))
        tokens = prompt if prompt is not None else counts.count(usage.get("total_tokens"))
    if isinstance(meta, Mapping) and isinstance(meta.get("billed_units"), Mapping):
        units = counts.count(meta["billed_units"].get("search_units"))
    return tokens, units
