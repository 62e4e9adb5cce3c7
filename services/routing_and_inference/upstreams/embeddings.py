"""Embeds at upstreams: the OpenAI dialect, which TEI serves as well, in batches of the size that the upstream takes.

Owns requests and vectors; cuts vectors to fewer dimensions only where the catalogue says that the model bears it.
"""

import base64
import binascii
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from services.routing_and_inference.ports import EmbeddingRequest, EmbeddingResult
from services.routing_and_inference.upstreams import counts, errors
from services.routing_and_inference.upstreams.exchange import ask
from services.routing_and_inference.upstreams.http import HttpClient
from services.routing_and_inference.upstreams.openai_chat import credential
from services.routing_and_inference.upstreams.urls import openai_url

_BATCH = 2048
_BATCH_OF_TEI = 32
_MOST_CHARACTERS = 16_000_000
_MOST_CHARACTERS_OF_TEI = 600_000  # its bodies are limited to 2 MB, and a character may be four bytes

_encode = msgspec.json.Encoder().encode


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Reply(msgspec.Struct):
    data: list[_Vector]
    usage: dict[str, Any] | None = None


_decode_reply = msgspec.json.Decoder(_Reply).decode


class OpenAiEmbeddings:
    """Implements `EmbeddingUpstream`."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        if request.token_ids and request.target.dialect == "tei":
            raise errors.rejected("this embedding model takes texts, not token ids")
        inputs: Sequence[Any] = request.texts or [list(ids) for ids in request.token_ids]
        is_tei = request.target.dialect == "tei"
        size = request.target.options.get("batch_size", _BATCH_OF_TEI if is_tei else _BATCH)
        most = size if isinstance(size, int) and size > 0 else _BATCH
        vectors: list[bytes] = []
        tokens: int | None = 0
        for batch in batches(inputs, most, _MOST_CHARACTERS_OF_TEI if is_tei else _MOST_CHARACTERS):
            made, used = await self._embed_batch(request, batch)
            vectors += made
            tokens = tokens + used if tokens is not None and used is not None else None
        return EmbeddingResult(vectors, tokens)

    async def _embed_batch(self, request: EmbeddingRequest, inputs: Sequence[Any]) -> tuple[list[bytes], int | None]:
        takes_base64 = bool(request.target.options.get("takes_base64"))
        body: dict[str, Any] = {
            "model": request.target.model,
            "input": inputs,
            "encoding_format": "base64" if takes_base64 else "float",
        }
        cut_to = _dimensions(request, body)
        url = openai_url(request.target.base_url, "embeddings")
        answer = await ask(self._http, request, url, credential(request.target.api_key), _encode(body))
        vectors, used = _read(answer.body, len(inputs))
        if used is None:
            used = counts.count(answer.header("x-compute-tokens"))
        return vectors if cut_to is None else [_shortened(vector, cut_to) for vector in vectors], used


def batches(inputs: Sequence[Any], most: int, most_characters: int) -> Iterator[Sequence[Any]]:
    """Runs of inputs that are at most so many and so long; an input that is longer stands alone."""
    start = length = 0
    for at, item in enumerate(inputs):
        if at > start and (at - start == most or length + len(item) > most_characters):
            yield inputs[start:at]
            start, length = at, 0
        length += len(item)
    yield inputs[start:]


def _dimensions(request: EmbeddingRequest, body: dict[str, Any]) -> int | None:
    """Asks for the wanted length of vectors where it is not the model's own; else the length to cut them to."""
    wanted, native, options = request.dimensions, request.profile.dimensions, request.target.options
    if wanted is None or wanted == native:
        return None
    if options.get("takes_dimensions"):
        body["dimensions"] = wanted
        return None
    if options.get("truncates_dimensions") and 0 < wanted < native:
        return wanted
    raise errors.rejected("this embedding model has vectors of one length only; leave `dimensions` out")


def _shortened(vector: bytes, dimensions: int) -> bytes:
    """The beginning of a vector, brought to length 1 again."""
    if len(vector) < 4 * dimensions:
        raise errors.malformed()
    values = struct.unpack(f"<{dimensions}f", vector[: 4 * dimensions])
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return struct.pack(f"<{dimensions}f", *(value / length for value in values))


def _read(answer: bytes, wanted: int) -> tuple[list[bytes], int | None]:
    try:
        reply = _decode_reply(answer)
    except errors.UNREADABLE:
        raise errors.malformed() from None
    places = [place if item.index is None else item.index for place, item in enumerate(reply.data)]
    if sorted(places) != list(range(wanted)):
        raise errors.malformed()
    vectors = [b""] * wanted
    for place, item in zip(places, reply.data, strict=True):
        vectors[place] = _packed(item.embedding)
    if not all(vectors) or len({len(vector) for vector in vectors}) != 1:
        raise errors.malformed()
    usage = reply.usage or {}
    used = counts.count(usage.get("prompt_tokens"))
    return vectors, used if used is not None else counts.count(usage.get("total_tokens"))


def _packed(embedding: list[float] | str) -> bytes:
    """Little-endian float32, whichever way it came."""
    if isinstance(embedding, str):
        try:
            packed = base64.b64decode(embedding, validate=True)
        except binascii.Error:
            raise errors.malformed() from None
        if len(packed) % 4:
            raise errors.malformed()
        return packed
    try:
        return struct.pack(f"<{len(embedding)}f", *embedding)
    except (struct.error, OverflowError):
        raise errors.malformed() from None
