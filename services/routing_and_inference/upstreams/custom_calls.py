"""Calls of OpenAI's custom tools, whose input is free text: collected whole, as only callers of that dialect know them.

Owns putting their pieces together; refuses to know any other kind of call.
"""

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.upstreams.runs import RunWriter

_encode = msgspec.json.Encoder().encode


class CustomPiece(msgspec.Struct):
    """What a piece of such a call says under `custom`."""

    name: str | None = None
    input: str | None = None


class _Custom(msgspec.Struct):
    name: str = ""
    input: str = ""


class _Call(msgspec.Struct):
    id: str
    type: str
    custom: _Custom


class CustomCalls:
    """The calls of one answer."""

    def __init__(self) -> None:
        self._calls: dict[int | str, _Call] = {}

    def read(self, key: int | str, call_id: str, piece: CustomPiece) -> None:
        """Takes a piece of the call that `key` means."""
        call = self._calls.setdefault(key, _Call("", "custom", _Custom()))
        call.id = call.id or call_id
        call.custom.name = call.custom.name or piece.name or ""
        call.custom.input += piece.input or ""

    def write(self, runs: RunWriter) -> None:
        """Writes every call as a whole."""
        for position, call in enumerate(self._calls.values()):
            call.id = call.id or f"call_custom_{position}"
            runs.opaque(pb.DIALECT_OPENAI, call.type, _encode(call).decode())
            runs.has_tools = True
