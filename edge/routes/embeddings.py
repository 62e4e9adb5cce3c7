"""POST /v1/embeddings: texts to vectors, in the OpenAI shape.

Owns that request and reply; refuses to compute or to cut vectors.
"""

import base64
from array import array
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct
from mws.inference.v1 import inference_service_pb2 as pb

from edge.decoding import decode
from edge.exchange import Exchange
from edge.front import Route
from edge.pipeline import Pipeline
from edge.problems import BadFieldError, Path, bad_value
from edge.shapes import OPENAI

_INPUTS_MAX = 2048
_INT32_MAX = 2**31 - 1


class EmbeddingsRequest(Struct, kw_only=True):
    """The body of POST /v1/embeddings. `input`: a text, texts, a list of token ids, or several of these."""

    model: str
    input: Raw
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=_INT32_MAX)] | None = None
    user: str | None = None


class Embedding(Struct):
    """One vector: numbers, or little-endian float32 as base64."""

    embedding: list[float] | str
    index: int
    object: str = "embedding"


class EmbeddingsUsage(Struct):
    """What was used."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(Struct):
    """The answer of POST /v1/embeddings."""

    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
    object: str = "list"


_request = msgspec.json.Decoder(EmbeddingsRequest)
_input = msgspec.json.Decoder(str | list[str | int | list[int]])
_encode = msgspec.json.Encoder().encode


def read_embeddings(body: bytes) -> tuple[EmbeddingsRequest, list[pb.EmbedInput]]:
    """Reads the body. Raises BadFieldError."""
    request = decode(_request, body)
    try:
        given = decode(_input, request.input)
    except BadFieldError:
        raise bad_value(("input",), "expected a string, strings, token ids, or lists of token ids") from None
    if isinstance(given, str):
        return request, [_one(given, ("input",))]
    items: Sequence[str | int | list[int]] = given
    ids = [item for item in items if isinstance(item, int)]
    if ids and len(ids) == len(items):
        return request, [_tokens(ids, ("input",))]
    if ids:
        raise bad_value(("input",), "token ids and texts may not be mixed")
    if not 1 <= len(items) <= _INPUTS_MAX:
        raise bad_value(("input",), f"expected 1 to {_INPUTS_MAX} items")
    return request, [_one(item, ("input", at)) for at, item in enumerate(items)]


def _one(item: str | int | list[int], path: Path) -> pb.EmbedInput:
    if isinstance(item, list):
        return _tokens(item, path)
    if not item:
        raise bad_value(path, "may not be empty")
    return pb.EmbedInput(text=str(item))


def _tokens(ids: list[int], path: Path) -> pb.EmbedInput:
    if not ids or not all(0 <= token <= _INT32_MAX for token in ids):
        raise bad_value(path, "token ids are numbers from 0, at least one")
    return pb.EmbedInput(token_ids=pb.TokenIds(ids=ids))


def write_embeddings(request: EmbeddingsRequest, answer: pb.EmbedResponse, *, takes_base64: bool = True) -> bytes:
    """The reply's body."""
    as_text = takes_base64 and request.encoding_format == "base64"
    data = [Embedding(_vector(item.vector_f32le, as_text=as_text), at) for at, item in enumerate(answer.embeddings)]
    tokens = answer.usage.input_tokens
    return _encode(EmbeddingsReply(data, request.model, EmbeddingsUsage(tokens, tokens)))


def _vector(vector_f32le: bytes, *, as_text: bool) -> list[float] | str:
    if as_text:
        return base64.b64encode(vector_f32le).decode()
    return array("f", vector_f32le).tolist()


def embedding_routes(pipeline: Pipeline) -> dict[tuple[str, str], Route]:
    """The routes, by method and path."""

    async def embeddings(exchange: Exchange) -> None:
        async def work(digest: bytes) -> None:
            body = await pipeline.read_body(exchange, digest)
            request, inputs = await pipeline.parse(exchange, digest, lambda: read_embeddings(body))
            call = pb.EmbedRequest(call_id=exchange.call_id, model=request.model, inputs=inputs)
            call.credential.api_key_sha256 = digest
            if request.dimensions is not None:
                call.dimensions = request.dimensions
            call.idempotency_key, call.body_sha256 = await pipeline.idempotency(exchange, digest, body)
            answer = await pipeline.follow(exchange, pipeline.inference.embed(call))
            exchange.limits, exchange.profile = answer.limits, answer.profile
            exchange.input_tokens = answer.usage.input_tokens
            takes_base64 = pipeline.rules.base64_embeddings
            await exchange.respond(200, write_embeddings(request, answer, takes_base64=takes_base64), [])

        await pipeline.serve(exchange, OPENAI, work)

    return {("POST", "/v1/embeddings"): embeddings}
