"""Streams of Messages that hold what only this dialect has: legal to the end, and folded as the whole reply is."""

import json
from typing import Any

import pytest
from mws.common.v1 import token_usage_pb2
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic.events import MessageFold, MessageStream
from tests.wire.edge import events as ev
from tests.wire.edge.test_folds import HEAD, fold_anthropic, parse_frames, whole_anthropic

CITATION = {
    "type": "char_location",
    "cited_text": "Hi",
    "document_index": 0,
    "document_title": None,
    "file_id": None,
    "start_char_index": 0,
    "end_char_index": 2,
}


def opaque(value: dict[str, Any], indent: int | None = None) -> ev.Event:
    return ev.opaque(pb.DIALECT_ANTHROPIC, json.dumps(value, indent=indent))


def both(*answer: ev.Event) -> tuple[dict[str, Any], dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """The folded stream, the whole reply, and the stream's frames."""
    stream, fold = MessageStream(HEAD), MessageFold(HEAD)
    body = stream.start() + stream.feed(answer)
    fold.feed(answer)
    folded = fold_anthropic(body)
    for block in folded["content"]:
        block.pop("parsed_output", None)
    return folded, whole_anthropic(fold.reply()), parse_frames(body)


USE = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x\ny"}}
BLOCKS = [
    pytest.param({"type": "text", "text": "Hi", "citations": [CITATION, CITATION]},
                 ["text_delta", "citations_delta", "citations_delta"], id="cited text"),
    pytest.param(USE, ["input_json_delta"], id="call of a provider's tool"),
    pytest.param(USE | {"input": {}}, [], id="call without arguments"),
    pytest.param({"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}, [],
                 id="result of a provider's tool"),
    pytest.param({"type": "container_upload", "file_id": "f"}, [], id="file"),
    pytest.param({"type": "novel_tool_use", "id": "n", "input": {"a": 1}}, [], id="kind that no reader knows"),
]  # fmt: skip


# The SDK's models of today complain about kinds of tomorrow, but only when they are dumped.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("indent", [None, 2], ids=["on one line", "on several"])
@pytest.mark.parametrize(("block", "deltas"), BLOCKS)
def test_a_block_without_a_neutral_form_arrives_whole(block: dict[str, Any], deltas: list[str], indent: int) -> None:
    folded, whole, frames = both(ev.text("Look"), opaque(block, indent), ev.text("done"), ev.finished())

    assert folded == whole
    assert [data["delta"]["type"] for _, data in frames if data.get("index") == 1 and "delta" in data] == deltas
    assert [b["type"] for b in whole["content"]] == ["text", block["type"], "text"]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_compaction_streams_as_its_delta() -> None:
    block = {"type": "compaction", "content": "so far", "encrypted_content": "e", "signature": "s"}
    _, whole, frames = both(opaque(block), ev.finished())

    assert frames[1][1]["content_block"] == block | {"content": None}
    assert frames[2][1]["delta"] == {"type": "compaction_delta", "content": "so far", "encrypted_content": "e"}
    assert whole["content"][0]["content"] == "so far"


def test_a_refusal_says_why_in_both_forms() -> None:
    usage = token_usage_pb2.TokenUsage(input_tokens=3, output_tokens=0)
    details = '{"type":"refusal",\n"category":"cyber","explanation":"no"}'
    end = pb.Finished(reason=pb.FINISH_REASON_REFUSAL, usage=usage, stop_details_json=details)
    folded, whole, _ = both(ev.Event(finished=end))

    assert folded == whole
    assert (whole["stop_reason"], whole["content"]) == ("refusal", [])
    assert whole["stop_details"] == {"type": "refusal", "category": "cyber", "explanation": "no"}


REASONS = {
    pb.FINISH_REASON_STOP: "end_turn",
    pb.FINISH_REASON_LENGTH: "max_tokens",
    pb.FINISH_REASON_TOOL_CALLS: "tool_use",
    pb.FINISH_REASON_REFUSAL: "refusal",
    pb.FINISH_REASON_CONTEXT_FULL: "model_context_window_exceeded",
    pb.FINISH_REASON_PAUSED: "pause_turn",
}


@pytest.mark.parametrize(("reason", "word"), REASONS.items(), ids=REASONS.values())
def test_every_stop_reason_has_its_word(reason: "pb.FinishReason.ValueType", word: str) -> None:
    folded, whole, _ = both(ev.text("x"), ev.finished(reason))

    assert folded["stop_reason"] == whole["stop_reason"] == word


def test_a_stop_sequence_is_named_or_not_claimed() -> None:
    _, named, _ = both(ev.text("x"), ev.finished(pb.FINISH_REASON_STOP_SEQUENCE, "END"))
    _, silent, _ = both(ev.text("x"), ev.finished(pb.FINISH_REASON_STOP_SEQUENCE))

    assert (named["stop_reason"], named["stop_sequence"]) == ("stop_sequence", "END")
    assert (silent["stop_reason"], silent.get("stop_sequence")) == ("end_turn", None)


def test_usage_is_complete_in_both_places() -> None:
    end_event = ev.finished(input_tokens=9, output_tokens=2, cache_write_1h_tokens=4, reasoning_tokens=1)
    _, _, frames = both(ev.text("x"), end_event)
    start, end = frames[0][1]["message"]["usage"], frames[-2][1]["usage"]

    assert (start["input_tokens"], start["output_tokens"]) == (7, 0)
    assert (end["input_tokens"], end["output_tokens"], end["cache_creation_input_tokens"]) == (9, 2, 4)
    assert end["cache_creation"] == {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 4}
    assert end["output_tokens_details"] == {"thinking_tokens": 1}
    for name in ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"):
        assert isinstance(start[name], int)
        assert isinstance(end[name], int)
