"""Recorded traffic of real providers reads into legal events, wherever the bytes are cut.

The recordings lie beside the project and are not part of it; without them there is nothing to check here.
"""

import base64
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.routing_and_inference.catalog import Kind, Price, Profile, UpstreamTarget
from services.routing_and_inference.ports import EmbeddingRequest, FailureKind, RerankRequest, UpstreamFailure
from services.routing_and_inference.upstreams import dialects, errors
from tests.builders import (
    CannedHttp,
    CannedResponse,
    fold,
    generation,
    read_answer,
    run_now,
    upstream_request,
    usage,
)
from tests.wire.through import SHAPES, TYPED, Heard, check_stream, error_of, folded, hear, request_from, said

FIXTURES = Path(__file__).parents[4] / "shared" / "fixtures"

pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason="no recordings here")


def files(pattern: str) -> list[Path]:
    return sorted(FIXTURES.glob(pattern)) if FIXTURES.is_dir() else []


def chunks_as_stream(path: Path) -> bytes:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    frames = "".join(f"data: {line}\n\n" for line in lines)
    return (frames if "anthropic" in path.name or "spliced" in path.name else f"{frames}data: [DONE]\n\n").encode()


def request_for(data: bytes) -> Any:
    return upstream_request(generation(stream=True), upstream=speaks(data))


@pytest.mark.parametrize("path", files("vercel-ai/*.chunks.txt"), ids=lambda path: path.name)
def test_a_recorded_stream_reads_alike_in_any_pieces(path: Path) -> None:
    data = chunks_as_stream(path)
    request = request_for(data)
    whole = read_answer([data], request)
    assert fold(whole)[-1][0] == "finish"
    for size in (1, 7, 100, 1500):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        streamed = read_answer(pieces, request)
        assert (fold(streamed), usage(streamed)) == (fold(whole), usage(whole))


def test_every_recorded_stream_reports_its_usage() -> None:
    missing = [
        path.name
        for path in files("vercel-ai/*.chunks.txt")
        if "output_tokens" not in usage(read_answer([data := chunks_as_stream(path)], request_for(data)))
    ]
    assert missing == []


RAW = [path for path in files("*/*.txt") + files("vercel-ai/*.sse") if not path.name.endswith(".chunks.txt")]


@pytest.mark.parametrize("path", RAW, ids=lambda path: path.name)
def test_raw_event_streams_read(path: Path) -> None:
    data = path.read_bytes()
    assert fold(read_answer([data], request_for(data)))[-1][0] == "finish"


def recorded_answers(path: Path) -> Iterator[tuple[int, bytes]]:
    """Status and body of every answer in a cassette, whichever recorder wrote it."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    cassette = yaml.safe_load(raw)
    for entry in cassette.get("interactions") or [{"response": answer} for answer in cassette.get("responses", [])]:
        response = entry["response"]
        status = response.get("code") or response.get("status") or 200
        body = response.get("body") or response.get("parsed_body") or ""
        if isinstance(status, dict):
            status = status["code"]
        if isinstance(body, dict):
            body = body.get("string", body)
        if isinstance(body, dict):
            body = json.dumps(body)
        yield int(status), unpacked(body if isinstance(body, bytes) else body.encode())


def unpacked(body: bytes) -> bytes:
    if body.startswith(b"\x1f\x8b"):
        return gzip.decompress(body)
    try:
        decoded = base64.b64decode(body, validate=True)
    except ValueError:
        return body
    return unpacked(decoded) if decoded else body


CASSETTES = [
    p for p in files("*/*.yaml") + files("*/*.yaml.gz") if "rerank" not in p.name and "embeddings" not in p.name
]


def speaks(data: bytes) -> str:
    return "anthropic" if b"message_start" in data or b'"type":"message"' in data.replace(b" ", b"") else "openai"


def replayed(data: bytes, shape: str, *, stream: bool) -> Heard:
    """A recorded answer, as a caller of the shape hears it who asked for a stream or not."""
    heard = hear([data], request_from(shape, speaks(data), stream=stream), shape, is_whole=not is_stream(data))
    if heard.is_stream:
        check_stream(heard)
    return heard


STREAMED = files("*/*.chunks.txt") + RAW


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", STREAMED, ids=lambda path: path.name)
def test_a_recorded_stream_is_valid_in_both_sdks(path: Path, shape: str) -> None:
    data = chunks_as_stream(path) if path.name.endswith(".chunks.txt") else path.read_bytes()
    streamed, whole = replayed(data, shape, stream=True), replayed(data, shape, stream=False)
    assert folded(streamed) == folded(whole)
    heard = said(streamed)
    assert heard.input_tokens > 0
    assert heard.end
    assert heard.text or heard.calls or "refusal" in path.name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", CASSETTES, ids=lambda path: path.name)
def test_a_recorded_answer_is_valid_in_both_sdks_or_a_typed_error(path: Path, shape: str) -> None:
    for status, body in recorded_answers(path):
        if status >= 400:
            check_refusal(status, body, shape)
            continue
        streamed, whole = replayed(body, shape, stream=True), replayed(body, shape, stream=False)
        if b'"error"' in body:
            for heard in (streamed, whole):
                with pytest.raises(TYPED):
                    folded(heard)
            continue
        assert without_id(folded(streamed)) == without_id(folded(whole))


def without_id(answer: dict[str, Any]) -> dict[str, Any]:
    """Ids that we mint, where the provider gave none, differ from answer to answer."""
    calls = [call[1:] for call in answer.get("calls", ())]
    blocks = answer.get("content")
    kept = [{**b, "id": ""} if "id" in b else b for b in blocks] if isinstance(blocks, list) else blocks
    return {**answer, "calls": calls, "content": kept}


def check_refusal(status: int, body: bytes, shape: str) -> None:
    failure = errors.of_status(status, lambda name: "", body)
    assert failure.status == status
    reply = SHAPES[shape].render(error_of(failure, request_from(shape, "openai", stream=False)), "id")
    assert reply.status not in (401, 403, 404, 429)
    assert (reply.status == 400) == (failure.kind in (FailureKind.REJECTED, FailureKind.CONTEXT_TOO_LONG))
    for secret in (b"org-", b"http://", b"https://", b"req_"):
        assert secret not in reply.body


@pytest.mark.parametrize("path", CASSETTES, ids=lambda path: path.name)
def test_recorded_answers_read_or_fail_with_a_reason(path: Path) -> None:
    for status, body in recorded_answers(path):
        if status >= 400:
            continue
        try:
            assert fold(read_answer([body], request_for(body), whole=not is_stream(body)))[-1][0] == "finish"
        except UpstreamFailure:
            assert b'"error"' in body, body[:300]


def is_stream(body: bytes) -> bool:
    return body.lstrip().startswith((b"data:", b"event:", b":"))


# ---- the rest: bodies without a stream, errors, embeddings, rankings ----

OTHERS = {
    "anthropic-text.json": "body",
    "openai-reasoning-model-legacy-parameter-error.json": "error",
    "openai-embeddings-base64.yaml": "embeddings",
    "openai-embeddings-tokens.yaml": "embeddings",
    "cohere_v1_rerank.yaml": "rerank",
    "cohere_v2_rerank.yaml": "rerank",
}


def test_every_recording_is_replayed_by_some_test() -> None:
    known = {path.name for path in [*STREAMED, *CASSETTES]} | OTHERS.keys()
    assert {path.name for path in files("*/*")} - known == set()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_recorded_body_is_valid_in_both_sdks(shape: str) -> None:
    body = (FIXTURES / "vercel-ai" / "anthropic-text.json").read_bytes()
    streamed, whole = replayed(body, shape, stream=True), replayed(body, shape, stream=False)
    assert folded(streamed) == folded(whole)
    assert said(whole).text


@pytest.mark.parametrize("shape", SHAPES)
def test_a_recorded_error_is_typed(shape: str) -> None:
    path = FIXTURES / "vercel-ai" / "openai-reasoning-model-legacy-parameter-error.json"
    check_refusal(400, path.read_bytes(), shape)


@pytest.mark.parametrize("path", files("*/openai-embeddings-*.yaml"), ids=lambda path: path.name)
def test_recorded_embeddings_read(path: Path) -> None:
    ((_, body),) = recorded_answers(path)
    target = UpstreamTarget("primary", "openai", "http://upstream.test", "m")
    profile = Profile("small", Kind.EMBEDDING, Price(), ())
    request = EmbeddingRequest("call", 1, ["x"], (), None, profile, target)
    adapter = dialects(CannedHttp(CannedResponse([body]))).embedding["openai"]
    result = run_now(adapter.embed(request))
    assert len(result.vectors[0]) == 4 * 1536
    assert result.input_tokens


@pytest.mark.parametrize("path", files("*/cohere_*_rerank.yaml"), ids=lambda path: path.name)
def test_recorded_rankings_read(path: Path) -> None:
    ((_, body),) = recorded_answers(path)
    target = UpstreamTarget("primary", "cohere", "http://upstream.test", "m")
    profile = Profile("small", Kind.RERANK, Price(), ())
    request = RerankRequest("call", 1, "q", ["d"] * 6, 3, profile, target)
    adapter = dialects(CannedHttp(CannedResponse([body]))).rerank["cohere"]
    result = run_now(adapter.rerank(request))
    assert result.ranking[0].index == 3
    assert result.search_units == 1
