"""Blocks that are passed on whole, as the events of a stream: a start, the deltas that its kind has, a stop.

Owns which kinds have deltas; refuses to change what a reader puts together from them.
"""

from typing import Any

import msgspec
from msgspec import Raw
from mws.inference.v1 import generation_pb2 as pb

_members = msgspec.json.Decoder(dict[str, Raw]).decode
_list = msgspec.json.Decoder(list[Raw]).decode
_encode = msgspec.json.Encoder().encode

_EMPTY_TEXT = Raw(b'""')
_NOTHING = (b"null", b"[]", b"{}", b'""')


def deltas_of(block: pb.OpaqueBlock) -> tuple[bytes, list[bytes]]:
    """The block at its start, and its deltas. Readers that follow a stream see nothing but deltas of text."""
    json = one_line(block.json)
    if block.type == "text":
        return _text(_members(json))
    if block.type == "server_tool_use":
        return _tool_use(_members(json))
    if block.type == "compaction":
        return _compaction(_members(json))
    return json, []


def one_line(json: str) -> bytes:
    """The same JSON without line breaks between its tokens, which would end a frame's line."""
    text = json.encode()
    return msgspec.json.format(text, indent=-1) if b"\n" in text or b"\r" in text else text


def _text(members: dict[str, Raw]) -> tuple[bytes, list[bytes]]:
    text, citations = members.get("text", _EMPTY_TEXT), members.get("citations", Raw(b"null"))
    deltas = [b'{"type":"text_delta","text":%b}' % bytes(text)] if bytes(text) not in _NOTHING else []
    if bytes(citations) not in _NOTHING:
        deltas += [b'{"type":"citations_delta","citation":%b}' % bytes(item) for item in _list(citations)]
        members["citations"] = Raw(b"[]")
    members["text"] = _EMPTY_TEXT
    return _encode(members), deltas


def _tool_use(members: dict[str, Raw]) -> tuple[bytes, list[bytes]]:
    given = bytes(members.get("input", b"{}"))
    members["input"] = Raw(b"{}")
    deltas = [_json_delta(given)] if given not in _NOTHING else []
    return _encode(members), deltas


def _json_delta(text: bytes) -> bytes:
    return b'{"type":"input_json_delta","partial_json":%b}' % _encode(text.decode())


def _compaction(members: dict[str, Raw]) -> tuple[bytes, list[bytes]]:
    delta: dict[str, Any] = {"type": "compaction_delta", "content": members.get("content", Raw(b"null"))}
    if "encrypted_content" in members:
        delta["encrypted_content"] = members["encrypted_content"]
    return _encode(members | {"content": Raw(b"null")}), [_encode(delta)]
