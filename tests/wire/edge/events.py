"""Builders of neutral events, and a hypothesis strategy for whole answers.

Owns the order that generation.proto promises; refuses to know any dialect.
"""

import itertools
import json

from hypothesis import strategies as st
from mws.common.v1 import token_usage_pb2
from mws.inference.v1 import generation_pb2 as pb

Event = pb.GenerationEvent


def text(value: str) -> Event:
    return Event(text_delta=pb.TextDelta(text=value))


def thinking(value: str) -> Event:
    return Event(thinking_delta=pb.ThinkingDelta(text=value))


def signature(value: str) -> Event:
    return Event(thinking_signature=pb.ThinkingSignature(signature=value))


def redacted(value: str) -> Event:
    return Event(redacted_thinking=pb.RedactedThinkingBlock(data=value))


def call(call_id: str, name: str) -> Event:
    return Event(tool_call_started=pb.ToolCallStarted(id=call_id, name=name))


def arguments(value: str) -> Event:
    return Event(tool_call_delta=pb.ToolCallDelta(arguments_json=value))


def opaque(dialect: pb.Dialect.ValueType, value: str) -> Event:
    return Event(opaque_block=pb.OpaqueBlock(dialect=dialect, type=json.loads(value)["type"], json=value))


def finished(reason: pb.FinishReason.ValueType = pb.FINISH_REASON_STOP, stop: str = "", **counts: int) -> Event:
    usage = token_usage_pb2.TokenUsage(**(counts or {"input_tokens": 11, "output_tokens": 5}))
    return Event(finished=pb.Finished(reason=reason, stop_sequence=stop, usage=usage))


def _cut(whole: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[a:b] for a, b in itertools.pairwise(places)]


_words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
_cuts = st.lists(st.integers(0, 200), max_size=4)
_names = st.text(st.sampled_from("abcXYZ_-09.:"), min_size=1, max_size=12)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_inputs = st.dictionaries(st.text(max_size=6), _values, max_size=4)


@st.composite
def _text_run(draw: st.DrawFn) -> list[Event]:
    return [text(piece) for piece in _cut(draw(_words), draw(_cuts))]


@st.composite
def _thinking_run(draw: st.DrawFn) -> list[Event]:
    run = [thinking(piece) for piece in _cut(draw(_words), draw(_cuts))]
    return [*run, signature(draw(_words))] if draw(st.booleans()) else run


@st.composite
def _tool_run(draw: st.DrawFn) -> list[Event]:
    body = draw(st.just("") | _inputs.map(lambda value: json.dumps(value, ensure_ascii=False)))
    call_id = "call_" + draw(st.uuids()).hex[:8] + draw(_names)
    return [call(call_id, draw(_names)), *(arguments(piece) for piece in _cut(body, draw(_cuts)) if piece)]


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    """A whole answer: content runs, then the end."""
    redacted_run = _words.map(lambda data: [redacted(data)])
    runs = draw(st.lists(st.one_of(_text_run(), _thinking_run(), _tool_run(), redacted_run), max_size=6))
    reason = draw(st.sampled_from(pb.FinishReason.values()))
    end = finished(
        reason,
        draw(st.sampled_from(["", "END"])) if reason == pb.FINISH_REASON_STOP_SEQUENCE else "",
        input_tokens=draw(st.integers(0, 10**6)),
        output_tokens=draw(st.integers(0, 10**6)),
        cache_read_tokens=draw(st.integers(0, 1000)),
        reasoning_tokens=draw(st.integers(0, 1000)),
    )
    return [*(event for run in runs for event in run), end]
