"""A stream folded by the official SDKs is the reply of the same upstream answer, wherever the upstream's bytes are cut.

Every upstream dialect with every public one; the way between them is the real one but for its sockets.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.ports import UpstreamRequest
from services.routing_and_inference.upstreams.simulated import SimulatedChat
from tests.builders import collect, generation
from tests.fakes import (
    Call,
    Reply,
    anthropic_frame,
    anthropic_frames,
    anthropic_message,
    openai_frame,
    openai_frames,
    openai_message,
)
from tests.wire.through import (
    SHAPES,
    Heard,
    Said,
    check_stream,
    cuts_at_every_byte,
    folded,
    hear,
    hear_from,
    request_from,
    said,
)

TOOL = Call("f", '{"x":"é"}', "functions.f:0")
OTHER = Call("g", '{"y":[2]}', "toolu_b")
PAIR = (("functions.f:0", "f", '{"x":"é"}'), ("toolu_b", "g", '{"y":[2]}'))


@dataclass(frozen=True)
class Scenario:
    """An answer, its end in the words of either upstream dialect, and what callers hear as the reason."""

    reply: Reply
    openai: str
    anthropic: str
    ends: Mapping[str, str]
    stop: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()
    thinking: str = ""


def ends(anthropic: str, openai: str) -> dict[str, str]:
    return {"anthropic": anthropic, "openai": openai}


SCENARIOS = {
    "text": Scenario(Reply("Grüße 🙂", piece=5), "stop", "end_turn", ends("end_turn", "stop")),
    "tools": Scenario(
        Reply("I look. ", calls=[TOOL], piece=8),
        "tool_calls",
        "tool_use",
        ends("tool_use", "tool_calls"),
        calls=PAIR[:1],
    ),
    "parallel tools": Scenario(
        Reply(calls=[TOOL, OTHER], piece=8), "tool_calls", "tool_use", ends("tool_use", "tool_calls"), calls=PAIR
    ),
    "thinking": Scenario(
        Reply("Hi", thinking="Hm – so", piece=8), "stop", "end_turn", ends("end_turn", "stop"), thinking="Hm – so"
    ),
    "refusal": Scenario(Reply("I can't."), "content_filter", "refusal", ends("refusal", "content_filter")),
    "length": Scenario(Reply("Once upon"), "length", "max_tokens", ends("max_tokens", "length")),
    "stop sequence": Scenario(Reply("One two "), "stop", "stop_sequence", ends("stop_sequence", "stop"), stop="END"),
    "empty": Scenario(Reply(), "stop", "end_turn", ends("end_turn", "stop")),
}


def openai_forms(scenario: Scenario) -> tuple[bytes, bytes]:
    """Stream and body of an OpenAI-compatible upstream; vLLM's way to name the stop string."""
    reply = Reply(**{**fields(scenario.reply), "finish": scenario.openai})
    frames, body = openai_frames(reply), dict(openai_message(reply))
    if scenario.stop:
        finish = {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": scenario.stop}
        frames[-3] = openai_frame({"choices": [finish]})
        body["choices"] = [{**body["choices"][0], "stop_reason": scenario.stop}]
    return smaller(frames), compact(body)


def anthropic_forms(scenario: Scenario) -> tuple[bytes, bytes]:
    reply = Reply(**{**fields(scenario.reply), "finish": scenario.anthropic})
    frames, body = anthropic_frames(reply), dict(anthropic_message(reply))
    if scenario.stop:
        end = {"stop_reason": scenario.anthropic, "stop_sequence": scenario.stop}
        usage = {"output_tokens": reply.output_tokens}
        frames[-2] = anthropic_frame({"type": "message_delta", "delta": end, "usage": usage})
        body |= end
    return smaller(frames), compact(body)


FORMS = {"openai": openai_forms, "anthropic": anthropic_forms}


def fields(reply: Reply) -> dict[str, Any]:
    return {name: getattr(reply, name) for name in reply.__slots__}


def smaller(frames: Sequence[bytes]) -> bytes:
    """The same stream without what says nothing, since each of its bytes costs a round."""
    stream = b"".join(frames)
    for waste in (b'"id": "chatcmpl-1", "object": "chat.completion.chunk", ', b'"logprobs": null, '):
        stream = stream.replace(waste, b"")
    return stream.replace(b'": ', b'":').replace(b', "', b',"')


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def make_request(shape: str, upstream: str, *, stream: bool) -> UpstreamRequest:
    return request_from(shape, upstream, stream=stream, made=generation(stop_sequences=["END"]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("upstream", FORMS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_stream_folds_to_the_reply_wherever_it_is_cut(name: str, upstream: str, shape: str) -> None:
    scenario = SCENARIOS[name]
    stream, body = FORMS[upstream](scenario)
    reply = hear([body], make_request(shape, upstream, stream=False), shape)
    whole = folded(reply)
    assert said(reply) == Said(
        scenario.reply.text, scenario.thinking, scenario.calls, scenario.ends[shape], 11, scenario.reply.output_tokens
    )
    if scenario.stop and shape == "anthropic":
        assert whole["stop_sequence"] == scenario.stop
    known: set[bytes] = set()  # cuts matter to the frames only where they fall between two events
    for pieces in cuts_at_every_byte(stream)():
        heard = hear(pieces, make_request(shape, upstream, stream=True), shape)
        if heard.body not in known:
            known.add(heard.body)
            check_stream(heard)
            assert folded(heard) == whole


PROMPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("What is a tide?", {}),
    "tools": ('call f {"x":"é"}', {}),
    "parallel tools": ('call f {"x":1}\ncall g {"y":2}', {}),
    "thinking": ("say Hi", {"reasoning": {"effort": "high"}}),
    "length": ("What is a tide?", {"max_output_tokens": 9}),
    "length in a call": ('call f {"x":"once upon a time"}', {"max_output_tokens": 4}),
    "stop sequence": ("say One END two", {"stop_sequences": ["END"]}),
    "empty": ("say END", {"stop_sequences": ["END"]}),
}


class InBatches:
    """The simulated upstream with its events in batches of one size."""

    def __init__(self, size: int) -> None:
        self._size = size

    async def generate(self, request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        events = await collect(SimulatedChat(instant=True), request)
        for at in range(0, len(events), self._size):
            yield events[at : at + self._size]


def ask_simulated(name: str, shape: str, *, stream: bool, size: int = 1) -> Heard:
    text, settings = PROMPTS[name]
    made = generation(text, **settings)
    for tool in ("f", "g"):
        made.tools.add(name=tool, parameters_json='{"type":"object"}')
    request = request_from(shape, "simulated", stream=stream, made=made, thinking=name == "thinking")
    return hear_from(InBatches(size), request, shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PROMPTS)
def test_a_simulated_stream_folds_to_the_reply(name: str, shape: str) -> None:
    reply = ask_simulated(name, shape, stream=False)
    whole = folded(reply)
    for size in (1, 2, 3, 1000):
        heard = ask_simulated(name, shape, stream=True, size=size)
        check_stream(heard)
        assert folded(heard) == whole
    kind = "calls" if "tool" in name or "call" in name else "thinking" if name == "thinking" else "text"
    assert getattr(said(reply) if name != "length in a call" else Said(calls=PAIR), kind) or name == "empty"


texts = st.text(st.characters(codec="utf-8"), max_size=24)
arguments = st.dictionaries(texts, texts | st.integers(0, 99) | st.none(), min_size=1, max_size=3).map(
    lambda made: json.dumps(made, separators=(",", ":"), ensure_ascii=False)
)
replies = st.builds(
    Reply,
    text=texts,
    thinking=texts,
    calls=st.lists(arguments, max_size=3).map(
        lambda made: [Call(f"tool_{n}", given, f"id:{n}") for n, given in enumerate(made)]
    ),
    piece=st.integers(1, 9),
    reports_usage=st.booleans(),
    input_tokens=st.integers(1, 5000),
    output_tokens=st.integers(0, 5000),
)


@given(replies, st.sampled_from(sorted(FORMS)), st.sampled_from(sorted(SHAPES)), st.data())
def test_any_answer_folds_to_its_reply(reply: Reply, upstream: str, shape: str, data: st.DataObject) -> None:
    end = ("tool_calls", "tool_use") if reply.calls else ("stop", "end_turn")
    stream, body = FORMS[upstream](Scenario(reply, *end, {}))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    heard = hear(pieces, make_request(shape, upstream, stream=True), shape)
    whole = hear([body], make_request(shape, upstream, stream=False), shape)
    check_stream(heard)
    assert folded(heard) == folded(whole)


def test_a_whole_answer_to_a_streamed_request_is_a_stream() -> None:
    """Some upstreams ignore `stream`; the caller must not notice."""
    for name, scenario in SCENARIOS.items():
        for upstream, forms in FORMS.items():
            for shape in SHAPES:
                stream, body = forms(scenario)
                heard = hear([body], make_request(shape, upstream, stream=True), shape, is_whole=True)
                check_stream(heard)
                streamed = hear([stream], make_request(shape, upstream, stream=True), shape)
                assert said(heard) == said(streamed), (name, upstream, shape)


def test_a_stream_to_a_plain_request_is_a_reply() -> None:
    for scenario in SCENARIOS.values():
        for upstream, forms in FORMS.items():
            for shape in SHAPES:
                stream, body = forms(scenario)
                made = make_request(shape, upstream, stream=False)
                assert folded(hear([stream], made, shape)) == folded(hear([body], made, shape))
