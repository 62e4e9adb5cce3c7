"""Embedding and ranking at upstreams: what is sent, what may come back, and what is no answer."""

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest

from services.routing_and_inference.catalog import Kind, Option, Price, Profile, UpstreamTarget
from services.routing_and_inference.ports import (
    EmbeddingRequest,
    EmbeddingResult,
    FailureKind,
    RerankRequest,
    RerankResult,
    UpstreamFailure,
)
from services.routing_and_inference.upstreams import dialects
from tests.builders import CannedHttp, CannedResponse, run_now


def target(dialect: str, **options: Option) -> UpstreamTarget:
    return UpstreamTarget("primary", dialect, "http://upstream.test", "model-1", "key", options)


def profile(kind: Kind) -> Profile:
    return Profile("small", kind, Price(), (), dimensions=2)


def packed(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def embed(
    reply: Any,
    *texts: str,
    ids: tuple[tuple[int, ...], ...] = (),
    dimensions: int | None = None,
    dialect: str = "openai",
    **options: Option,
) -> tuple[EmbeddingResult, Any, str]:
    """The result, the last body that was sent, and where to."""
    replies = reply if isinstance(reply, list) else [reply]
    http = CannedHttp(CannedResponse([]))

    async def run() -> EmbeddingResult:
        wanted = EmbeddingRequest(
            "call", 1, texts, ids, dimensions, profile(Kind.EMBEDDING), target(dialect, **options)
        )
        return await dialects(http).embedding[dialect].embed(wanted)

    http.response.pieces = [json.dumps(one).encode() for one in replies]
    result = run_now(run())
    assert http.request is not None
    return result, json.loads(http.request.body), http.request.url


def vector(index: int | None, *values: float) -> dict[str, Any]:
    made: dict[str, Any] = {"object": "embedding", "embedding": list(values)}
    return made if index is None else {**made, "index": index}


USAGE = {"prompt_tokens": 5, "total_tokens": 5}


def test_vectors_come_in_input_order() -> None:
    reply = {"data": [vector(1, 0.5, 1), vector(0, 1, 2)], "usage": USAGE}
    result, sent, url = embed(reply, "a", "b")
    assert (list(result.vectors), result.input_tokens) == ([packed(1, 2), packed(0.5, 1)], 5)
    assert sent == {"model": "model-1", "input": ["a", "b"], "encoding_format": "float"}
    assert url == "http://upstream.test/v1/embeddings"


def test_base64_is_asked_for_where_it_is_known_and_read_wherever_it_comes() -> None:
    reply = {"data": [{"embedding": base64.b64encode(packed(1, 2)).decode(), "index": 0}]}
    result, sent, _ = embed(reply, "a", takes_base64=True)
    assert (list(result.vectors), result.input_tokens, sent["encoding_format"]) == ([packed(1, 2)], None, "base64")
    assert list(embed(reply, "a")[0].vectors) == [packed(1, 2)]


def test_token_ids_and_dimensions_pass() -> None:
    _, sent, _ = embed({"data": [vector(None, 1)]}, ids=((1, 2, 3),), dimensions=1, takes_dimensions=True)
    assert (sent["input"], sent["dimensions"]) == ([[1, 2, 3]], 1)


def test_the_native_dimensions_need_no_word() -> None:
    assert "dimensions" not in embed({"data": [vector(0, 1, 2)]}, "a", dimensions=2)[1]


def test_batches_have_the_size_that_the_upstream_takes() -> None:
    replies = {"data": [vector(0, 1)], "usage": USAGE}
    http = CannedHttp(CannedResponse([json.dumps(replies).encode()]))

    class Again(CannedHttp):
        sent = 0

        async def post(self, request: Any) -> CannedResponse:
            self.sent += 1
            return CannedResponse([json.dumps(replies).encode()])

    again = Again(http.response)
    wanted = EmbeddingRequest("c", 1, ["a", "b", "c"], (), None, profile(Kind.EMBEDDING), target("tei", batch_size=1))
    result = run_now(dialects(again).embedding["tei"].embed(wanted))
    assert (again.sent, len(result.vectors), result.input_tokens) == (3, 3, 15)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param({"data": []}, id="no vectors"),
        pytest.param({"data": [vector(0, 1), vector(1, 1)]}, id="too many"),
        pytest.param({"data": [vector(1, 1)]}, id="a wrong index"),
        pytest.param({"data": [{"embedding": "%%%"}]}, id="no base64"),
        pytest.param({"data": [{"embedding": "AAA="}]}, id="half a number"),
        pytest.param({"data": [vector(0)]}, id="an empty vector"),
        pytest.param({"object": "list"}, id="nothing"),
        pytest.param({"data": [vector(0, 1e300)]}, id="a number beyond float32"),
    ],
)
def test_what_is_no_embedding_is_malformed(reply: Any) -> None:
    with pytest.raises(UpstreamFailure) as failed:
        embed(reply, "a")
    assert failed.value.kind is FailureKind.MALFORMED


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({"dimensions": 9}, id="dimensions of a model that has one length"),
        pytest.param({"ids": ((1,),), "dialect": "tei"}, id="token ids for TEI"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_it_is_asked(wanted: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailure) as refused:
        embed({}, *(() if "ids" in wanted else ("a",)), **wanted)
    assert (refused.value.kind, refused.value.retryable) == (FailureKind.REJECTED, False)


def rank(dialect: str, reply: Any, top_n: int = 2) -> tuple[RerankResult, Any, str]:
    http = CannedHttp(CannedResponse([json.dumps(reply).encode()]))
    wanted = RerankRequest("call", 1, "q", ["a", "b", "c"], top_n, profile(Kind.RERANK), target(dialect))
    result = run_now(dialects(http).rerank[dialect].rerank(wanted))
    assert http.request is not None
    return result, json.loads(http.request.body), http.request.url


RESULTS = [{"index": 2, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
BODY = {"model": "model-1", "query": "q", "documents": ["a", "b", "c"], "top_n": 2}


@pytest.mark.parametrize(
    ("dialect", "reply", "body", "path", "counts"),
    [
        pytest.param("cohere", {"results": RESULTS, "meta": {"billed_units": {"search_units": 1}}}, BODY, "/v2/rerank",
                     (None, 1), id="Cohere"),
        pytest.param("jina", {"results": RESULTS, "usage": {"total_tokens": 9}}, {**BODY, "return_documents": False},
                     "/v1/rerank", (9, None), id="Jina"),
        pytest.param("vllm", {"results": [{**r, "document": {"text": "x"}} for r in RESULTS],
                     "usage": {"total_tokens": 9}},
                     BODY, "/v1/rerank", (9, None), id="vLLM"),
        pytest.param("tei", [{"index": 0, "score": 0.1}, {"index": 1, "score": 0.0}, {"index": 2, "score": 0.9}],
                     {"query": "q", "texts": ["a", "b", "c"], "truncate": True, "raw_scores": False}, "/rerank",
                     (None, None), id="TEI"),
    ],
)  # fmt: skip
def test_every_dialect_ranks_best_first(
    dialect: str, reply: Any, body: Any, path: str, counts: tuple[int | None, int | None]
) -> None:
    result, sent, url = rank(dialect, reply)
    assert [(ranked.index, ranked.relevance_score) for ranked in result.ranking] == [(2, 0.9), (0, 0.1)]
    assert (sent, url) == (body, f"http://upstream.test{path}")
    assert (result.input_tokens, result.search_units) == counts


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param({"results": []}, id="nothing"),
        pytest.param({"results": [{"index": 3, "relevance_score": 1}]}, id="a document that was not sent"),
        pytest.param({"results": [RESULTS[0], RESULTS[0]]}, id="a document twice"),
        pytest.param({"results": [{"index": 0}]}, id="no score"),
        pytest.param({"data": 1}, id="something else"),
        pytest.param("x", id="a text"),
    ],
)
def test_what_is_no_ranking_is_malformed(reply: Any) -> None:
    with pytest.raises(UpstreamFailure) as failed:
        rank("cohere", reply)
    assert failed.value.kind is FailureKind.MALFORMED


class Provider:
    """Answers each request from what it asks, and remembers the bodies."""

    def __init__(self, answer: Callable[[Any], Any], **headers: str) -> None:
        self.bodies: list[Any] = []
        self._answer = answer
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    async def post(self, request: Any) -> CannedResponse:
        body = json.loads(request.body)
        self.bodies.append(body)
        return CannedResponse([json.dumps(self._answer(body)).encode()], self._headers)


def rank_at_tei(provider: Any, documents: list[str], top_n: int, **options: Option) -> RerankResult:
    wanted = RerankRequest("call", 1, "q", documents, top_n, profile(Kind.RERANK), target("tei", **options))
    return run_now(dialects(provider).rerank["tei"].rerank(wanted))


def test_tei_ranks_in_batches_that_it_takes_and_tells_its_tokens_in_a_header() -> None:
    provider = Provider(
        lambda body: [{"index": at, "score": float(text)} for at, text in enumerate(body["texts"])],
        x_compute_tokens="7",
    )
    documents = [str(n % 50) for n in range(70)]
    result = rank_at_tei(provider, documents, 3)
    assert [len(body["texts"]) for body in provider.bodies] == [32, 32, 6]
    assert [(ranked.index, ranked.relevance_score) for ranked in result.ranking] == [(49, 49.0), (48, 48.0), (47, 47.0)]
    assert (result.input_tokens, result.search_units) == (21, None)


def test_tei_is_never_sent_more_than_its_bodies_may_hold() -> None:
    provider = Provider(lambda body: [{"index": at, "score": 1.0} for at in range(len(body["texts"]))])
    result = rank_at_tei(provider, ["x" * 500_000, "y" * 500_000, "z" * 900_000, "a"], 4)
    assert [[text[0] for text in body["texts"]] for body in provider.bodies] == [["x"], ["y"], ["z"], ["a"]]
    assert (len(result.ranking), result.input_tokens) == (4, None)


def test_vectors_are_cut_and_normalised_where_the_model_bears_it() -> None:
    reply = {"data": [vector(0, 3.0, 4.0)], "usage": USAGE}
    result, sent, _ = embed(reply, "a", dimensions=1, truncates_dimensions=True)
    assert (list(result.vectors), "dimensions" in sent) == ([packed(1.0)], False)
    with pytest.raises(UpstreamFailure):
        embed(reply, "a", dimensions=9, truncates_dimensions=True)


@pytest.mark.parametrize("dialect", ["tei", "openai"])
@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        pytest.param(413, {"error": "batch size 33 > maximum allowed batch size 32", "error_type": "Validation"},
                     FailureKind.REJECTED, id="a native validation error"),
        pytest.param(422, {"message": "empty", "code": 422, "type": "Validation"}, FailureKind.REJECTED,
                     id="an unwrapped validation error"),
        pytest.param(424, {"error": "backend", "error_type": "Backend"}, FailureKind.UNAVAILABLE, id="a backend error"),
        pytest.param(429, {"error": "Model is overloaded", "error_type": "Overloaded"}, FailureKind.OVERLOADED,
                     id="overloaded"),
    ],
)  # fmt: skip
def test_errors_of_embedding_servers_have_their_meaning(
    dialect: str, status: int, body: Any, kind: FailureKind
) -> None:
    http = CannedHttp(CannedResponse([json.dumps(body).encode()], status=status))
    wanted = EmbeddingRequest("c", 1, ["a"], (), None, profile(Kind.EMBEDDING), target(dialect))
    with pytest.raises(UpstreamFailure) as failed:
        run_now(dialects(http).embedding[dialect].embed(wanted))
    assert failed.value.kind is kind
