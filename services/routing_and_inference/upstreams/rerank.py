"""Ranks at upstreams in the dialects of Cohere, Jina, vLLM and TEI.

Owns their requests and replies; refuses to score anything itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from services.routing_and_inference.ports import RankedDocument, RerankRequest, RerankResult
from services.routing_and_inference.upstreams import counts, errors
from services.routing_and_inference.upstreams.embeddings import batches
from services.routing_and_inference.upstreams.exchange import Whole, ask
from services.routing_and_inference.upstreams.http import HttpClient
from services.routing_and_inference.upstreams.openai_chat import credential
from services.routing_and_inference.upstreams.urls import versioned_url

_BATCH_OF_TEI = 32
_MOST_CHARACTERS_OF_TEI = 600_000  # its bodies are limited to 2 MB, and a character may be four bytes
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
        if dialect == "tei":
            return await self._rerank_at_tei(request, url)
        answer = await self._ask(request, url, _body(request))
        reply = _decoded(answer)
        tokens, units = _usage(reply) if isinstance(reply, Mapping) else (None, None)
        return RerankResult(_ranking(reply, len(request.documents))[: request.top_n], tokens, units)

    async def _rerank_at_tei(self, request: RerankRequest, url: str) -> RerankResult:
        """In batches: every score is a matter of its own document. Tokens are told in a header only."""
        size = request.target.options.get("batch_size", _BATCH_OF_TEI)
        most = size if isinstance(size, int) and size > 0 else _BATCH_OF_TEI
        ranking: list[RankedDocument] = []
        tokens: int | None = 0
        done = 0
        for texts in batches(request.documents, most, _MOST_CHARACTERS_OF_TEI):
            body = {"query": request.query, "texts": list(texts), "truncate": True, "raw_scores": False}
            answer = await self._ask(request, url, body)
            ranked = _ranking(_decoded(answer), len(texts))
            ranking += [RankedDocument(done + item.index, item.relevance_score) for item in ranked]
            used = counts.count(answer.header("x-compute-tokens"))
            tokens = tokens + used if tokens is not None and used is not None else None
            done += len(texts)
        return RerankResult(sorted(ranking, key=_best_first)[: request.top_n], tokens, None)

    async def _ask(self, request: RerankRequest, url: str, body: Mapping[str, Any]) -> Whole:
        return await ask(self._http, request, url, credential(request.target.api_key), _encode(body))


def _decoded(answer: Whole) -> object:
    try:
        reply: object = msgspec.json.decode(answer.body)
    except errors.UNREADABLE:
        raise errors.malformed() from None
    return reply


def _body(request: RerankRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.target.model,
        "query": request.query,
        "documents": list(request.documents),
        "top_n": request.top_n,
    }
    if request.target.dialect == "jina":
        body["return_documents"] = False
    return body


def _best_first(ranked: RankedDocument) -> tuple[float, int]:
    return -ranked.relevance_score, ranked.index


def _ranking(reply: object, documents: int) -> list[RankedDocument]:
    results = reply.get("results") if isinstance(reply, Mapping) else reply
    if not isinstance(results, list):
        raise errors.malformed()
    ranking = sorted((_ranked(item) for item in results), key=_best_first)
    _check(ranking, documents)
    return ranking


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
