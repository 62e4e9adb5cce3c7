"""Answers that are broken where nobody looks first are read as far as they go, or are failures; never a crash."""

import json
from typing import Any

import pytest

from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from tests.builders import fold, generation, read_answer, read_broken_answer, upstream_request, usage
from tests.fakes import anthropic_frame, openai_chunk

STOP, DONE = openai_chunk({}, "stop"), b"data: [DONE]\n\n"
OPENAI, ANTHROPIC = (upstream_request(generation(stream=True), upstream=name) for name in ("openai", "anthropic"))


def test_usage_that_is_no_text_is_no_usage() -> None:
    frame = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}],"usage":{"prompt\x80_tokens":1}}\n\n'
    heard = read_answer([frame, STOP, DONE], OPENAI)
    assert (fold(heard)[0], usage(heard)) == (("text", "Hi"), {})


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000, '{"a":' + "[" * 5_000])
def test_depth_is_no_way_to_bring_us_down(deep: str) -> None:
    for request, frame in ((OPENAI, f'data: {{"choices":{deep}\n\n'), (ANTHROPIC, f'data: {{"delta":{deep}\n\n')):
        _, failure = read_broken_answer([frame.encode()], request)
        assert failure.kind is FailureKind.MALFORMED


@pytest.mark.parametrize("deep", ["[" * 100_000, "[" * 5_000 + "]" * 5_000, '{"a":' * 100_000])
def test_arguments_may_be_as_deep_as_they_like(deep: str) -> None:
    piece = {"index": 0, "id": "a", "function": {"name": "f", "arguments": deep}}
    (call, end) = fold(
        read_answer([openai_chunk({"tool_calls": [piece]}), openai_chunk({}, "tool_calls"), DONE], OPENAI)
    )
    assert (call[:3], end) == (("call", "a", "f"), ("finish", "tool_calls"))


@pytest.mark.parametrize("kind", [[], {}, 7, None, [None]])
def test_a_block_may_have_a_type_that_is_no_text(kind: Any) -> None:
    block = {"type": kind, "text": "Hi", "citations": 5}
    end = anthropic_frame({"type": "message_delta", "delta": {"stop_reason": "end_turn"}})
    begin = anthropic_frame({"type": "content_block_start", "index": 0, "content_block": block})
    assert fold(read_answer([begin, end], ANTHROPIC)) == [("text", "Hi"), ("finish", "stop")]
    whole = json.dumps({"type": "message", "content": [block], "stop_reason": "end_turn"}).encode()
    assert fold(read_answer([whole], ANTHROPIC, whole=True)) == [("text", "Hi"), ("finish", "stop")]


def test_a_stream_behind_a_byte_order_mark_and_a_wrong_label_is_one() -> None:
    data = b"\xef\xbb\xbf\r\n" + b"".join([openai_chunk({"content": "Hi"}), STOP, DONE])
    assert fold(read_answer([data], OPENAI, whole=True)) == [("text", "Hi"), ("finish", "stop")]


def test_an_empty_answer_that_nobody_ended_is_a_failure() -> None:
    for request, frames in ((OPENAI, [DONE]), (ANTHROPIC, [anthropic_frame({"type": "message_stop"})])):
        with pytest.raises(UpstreamFailure):
            read_answer(frames, request)
