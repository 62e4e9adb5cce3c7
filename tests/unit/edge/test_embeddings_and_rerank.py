"""Requests for vectors and rankings in every form that clients send, and the one answer that all of them read."""

import base64
import json
import struct
from typing import Any

import pytest
from mws.common.v1 import token_usage_pb2
from mws.inference.v1 import inference_service_pb2 as pb

from edge.problems import BadFieldError, bracketed
from edge.routes.embeddings import read_embeddings, write_embeddings
from edge.routes.rerank import read_rerank, write_rerank


def _body(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("given", "texts", "token_ids"),
    [
        pytest.param("a", ["a"], [], id="a text"),
        pytest.param(["a", "b"], ["a", "b"], [], id="texts"),
        pytest.param([1, 2, 3], [], [[1, 2, 3]], id="one list of token ids"),
        pytest.param([[1], [2, 3]], [], [[1], [2, 3]], id="lists of token ids"),
        pytest.param(["a"] * 2048, ["a"] * 2048, [], id="as many as there may be"),
    ],
)
def test_inputs_are_read_in_every_form(given: Any, texts: list[str], token_ids: list[list[int]]) -> None:
    _, inputs = read_embeddings(_body({"model": "e", "input": given}))
    assert [item.text for item in inputs if item.HasField("text")] == texts
    assert [list(item.token_ids.ids) for item in inputs if item.HasField("token_ids")] == token_ids


@pytest.mark.parametrize(
    ("members", "place"),
    [
        pytest.param({"input": ""}, "input", id="an empty text"),
        pytest.param({"input": ["a", ""]}, "input[1]", id="an empty text among others"),
        pytest.param({"input": []}, "input", id="nothing"),
        pytest.param({"input": None}, "input", id="null"),
        pytest.param({"input": [[]]}, "input[0]", id="no token"),
        pytest.param({"input": [1, -1]}, "input", id="a token below zero"),
        pytest.param({"input": [2**31]}, "input", id="a token beyond all"),
        pytest.param({"input": ["a", 1]}, "input", id="texts and tokens"),
        pytest.param({"input": ["a", [1]]}, "", id="texts and lists of tokens"),
        pytest.param({"input": {"text": "a"}}, "input", id="an object"),
        pytest.param({"input": ["a"] * 2049}, "input", id="too many"),
        pytest.param({"input": "a", "encoding_format": "hex"}, "encoding_format", id="an unknown form"),
        pytest.param({"input": "a", "dimensions": 0}, "dimensions", id="no dimension"),
        pytest.param({"input": "a", "dimensions": 2**31}, "dimensions", id="more dimensions than numbers"),
        pytest.param({"input": "a", "model": None}, "model", id="no model"),
    ],
)
def test_a_bad_input_is_named(members: dict[str, Any], place: str) -> None:
    if not place:  # each is fit by itself; that they do not go together, the service says
        _, inputs = read_embeddings(_body({"model": "e"} | members))
        assert {item.WhichOneof("kind") for item in inputs} == {"text", "token_ids"}
        return
    with pytest.raises(BadFieldError) as caught:
        read_embeddings(_body({"model": "e"} | members))
    assert bracketed(caught.value.path) == place


@pytest.mark.parametrize(
    ("asked", "takes_base64", "is_text"),
    [
        pytest.param(None, True, False, id="numbers unless asked"),
        pytest.param("float", True, False, id="numbers when asked"),
        pytest.param("base64", True, True, id="base64 when asked"),
        pytest.param("base64", False, False, id="numbers where base64 is switched off"),
    ],
)
def test_vectors_are_written_as_asked(asked: str | None, takes_base64: bool, is_text: bool) -> None:
    vectors = [(1.0, -0.5), (0.25, 2.0)]
    request, _ = read_embeddings(_body({"model": "e", "input": ["a", "b"], "encoding_format": asked}))
    answer = pb.EmbedResponse(
        embeddings=[pb.Embedding(vector_f32le=struct.pack("<2f", *vector)) for vector in vectors],
        usage=token_usage_pb2.TokenUsage(input_tokens=3),
    )

    reply = json.loads(write_embeddings(request, answer, takes_base64=takes_base64))

    written = [item.pop("embedding") for item in reply["data"]]
    if is_text:
        written = [list(struct.unpack("<2f", base64.b64decode(text))) for text in written]
    assert written == [list(vector) for vector in vectors]
    assert reply == {
        "object": "list",
        "model": "e",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


RERANK = {"query": "q", "documents": ["a", "b"]}


@pytest.mark.parametrize(
    ("members", "texts"),
    [
        pytest.param({"model": "r", "top_n": 1, "max_tokens_per_doc": 4096, "priority": 0}, ["a", "b"], id="Cohere v2"),
        pytest.param(
            {"documents": [{"text": "a"}, "b"], "return_documents": True, "max_chunks_per_doc": 10},
            ["a", "b"],
            id="Cohere v1",
        ),
        pytest.param(
            {"documents": [{"title": "T", "body": "B", "n": 1}], "rank_fields": ["body", "title"]},
            ["body: B\ntitle: T"],
            id="Cohere v1, by fields",
        ),
        pytest.param({"documents": [{"title": "T", "n": [1]}]}, ["title: T\nn: [1]"], id="an object without a text"),
        pytest.param({"model": "r", "return_documents": False}, ["a", "b"], id="Jina"),
        pytest.param({"model": "r", "truncate_prompt_tokens": -1, "user": "u", "x": [1]}, ["a", "b"], id="vLLM"),
        pytest.param({"model": None, "top_n": None, "rank_fields": None}, ["a", "b"], id="nulls"),
    ],
)
def test_documents_are_read_in_every_form(members: dict[str, Any], texts: list[str]) -> None:
    assert read_rerank(_body(RERANK | members))[1] == texts


@pytest.mark.parametrize(
    ("members", "place"),
    [
        pytest.param({"query": ""}, "query", id="an empty query"),
        pytest.param({"query": None}, "query", id="no query"),
        pytest.param({"documents": []}, "documents", id="no document"),
        pytest.param({"documents": ["a"] * 1001}, "documents", id="too many"),
        pytest.param({"documents": ["a", 1]}, "documents[1]", id="a number"),
        pytest.param({"documents": "a"}, "documents", id="a text"),
        pytest.param({"top_n": 0}, "top_n", id="no result"),
        pytest.param({"top_n": -1}, "top_n", id="less than none"),
        pytest.param({"max_tokens_per_doc": 0}, "max_tokens_per_doc", id="no tokens per document"),
        pytest.param({"priority": 1000}, "priority", id="priority"),
    ],
)
def test_a_bad_member_is_named(members: dict[str, Any], place: str) -> None:
    with pytest.raises(BadFieldError) as caught:
        read_rerank(_body(RERANK | members))
    assert bracketed(caught.value.path) == place


@pytest.mark.parametrize("returns", [True, False, None])
def test_one_ranking_is_read_by_all_clients(returns: bool | None) -> None:
    request, texts = read_rerank(_body(RERANK | {"return_documents": returns}))
    answer = pb.RerankResponse(
        results=[pb.RankedDocument(index=1, relevance_score=0.9), pb.RankedDocument(index=0, relevance_score=0.1)],
        usage=token_usage_pb2.TokenUsage(search_units=1, input_tokens=4),
        profile="ranker",
    )

    reply = json.loads(write_rerank("call", request, texts, answer))

    documents = [result.pop("document", None) for result in reply["results"]]
    assert documents == ([{"text": "b"}, {"text": "a"}] if returns else [None, None])
    assert reply == {
        "id": "call",
        "object": "list",
        "model": "ranker",
        "results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
