"""The exact bytes of both shapes: requests to their neutral form, events to frames and replies.

Owns the golden files beside it; `MWS_UPDATE_GOLDEN=1` rewrites them, to be reviewed as a diff.
"""

import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from mws.inference.v1 import generation_pb2 as pb

from edge.answer import Head
from edge.anthropic.events import MessageFold, MessageStream
from edge.anthropic.requests import read_messages
from edge.openai.chunks import ChatFold, ChatStream
from edge.openai.requests import read_chat
from tests.wire.edge import events as ev

GOLDEN = Path(__file__).parent / "golden"
UPDATES = "MWS_UPDATE_GOLDEN" in os.environ  # noqa: TID251  # a switch of this suite, not a setting of any process
HEAD = Head("01994a3e-0000-7000-8000-0000000000aa", 1763770000, "claude-sonnet-4-6", 25)
ANSWERS = {
    "text": [ev.text("Hel"), ev.text("lo \u2028 “wörld”\n"), ev.finished()],
    "thinking-text-tools": [
        ev.thinking("Let me"),
        ev.signature("EvQB"),
        ev.text("I'll check"),
        ev.call("toolu_01", "get_weather"),
        ev.arguments('{"city": "Par'),
        ev.arguments('is"}'),
        ev.call("functions.now:0", "now"),
        ev.finished(pb.FINISH_REASON_TOOL_CALLS, input_tokens=25, output_tokens=48, cache_read_tokens=3),
    ],
    "unsigned-thinking": [ev.thinking("hm"), ev.text("ok"), ev.finished(reasoning_tokens=2, output_tokens=3)],
    "stop-sequence": [ev.text("a"), ev.finished(pb.FINISH_REASON_STOP_SEQUENCE, "END")],
    "nothing": [ev.finished(pb.FINISH_REASON_REFUSAL)],
    "opaque": [
        ev.opaque(pb.DIALECT_ANTHROPIC, '{"type":"server_tool_use","id":"s1","name":"web_search","input":{"q":1}}'),
        ev.opaque(pb.DIALECT_OPENAI, '{"type":"audio"}'),
        ev.redacted("EmwK"),
        ev.finished(pb.FINISH_REASON_PAUSED),
    ],
}


def check(name: str, content: bytes) -> None:
    path = GOLDEN / name
    if UPDATES:
        path.write_bytes(content)
    assert content == path.read_bytes()


@pytest.mark.parametrize("name", ANSWERS)
def test_message_frames(name: str) -> None:
    stream = MessageStream(HEAD)
    stream.note_started(pb.MessageStarted(upstream="u", attempt=1))
    check(f"{name}.anthropic.sse", stream.start() + stream.feed(ANSWERS[name]))


@pytest.mark.parametrize("name", ANSWERS)
def test_message_reply(name: str) -> None:
    fold = MessageFold(HEAD)
    fold.feed(ANSWERS[name])
    check(f"{name}.anthropic.json", fold.reply())


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("include_usage", [False, True])
def test_chat_frames(name: str, include_usage: bool) -> None:
    stream = ChatStream(HEAD, include_usage=include_usage)
    suffix = ".usage" if include_usage else ""
    frames = stream.feed(ANSWERS[name])  # the head is written last and stands first, as a relay does it
    check(f"{name}{suffix}.openai.sse", stream.start() + frames)


@pytest.mark.parametrize("name", ANSWERS)
def test_chat_reply(name: str) -> None:
    fold = ChatFold(HEAD)
    fold.feed(ANSWERS[name])
    check(f"{name}.openai.json", fold.reply())


def test_legacy_function_call() -> None:
    answer = [ev.call("c", "f"), ev.arguments("{}"), ev.call("d", "g"), ev.finished(pb.FINISH_REASON_TOOL_CALLS)]
    stream, fold = ChatStream(HEAD, is_legacy=True), ChatFold(HEAD, is_legacy=True)
    fold.feed(answer)
    frames = stream.feed(answer)
    check("legacy.openai.sse", stream.start() + frames)
    check("legacy.openai.json", fold.reply())


@pytest.mark.parametrize("name", ["plain", "claude-code", "claude-code-second-turn", "everything", "unknown-content"])
def test_messages_request(name: str) -> None:
    ask = read_messages((GOLDEN / f"{name}.anthropic.request.json").read_bytes())
    check(f"{name}.anthropic.neutral", _neutral(ask.generation))


@pytest.mark.parametrize("name", ["plain", "everything", "tools", "legacy-functions", "unknown-content"])
def test_chat_request(name: str) -> None:
    ask = read_chat((GOLDEN / f"{name}.openai.request.json").read_bytes())
    check(f"{name}.openai.neutral", _neutral(ask.generation))


def _neutral(generation: pb.Generation) -> bytes:
    return text_format.MessageToString(generation, as_utf8=True).encode()
