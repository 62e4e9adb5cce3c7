"""However an answer is cut, and in whatever pieces it comes, what leaves in the end is the answer and nothing else."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.catalog import Kind, Price, Profile, UpstreamTarget
from services.routing_and_inference.rescue import Said, continuation

PREFILL = UpstreamTarget("u", "anthropic")
NO_PREFILL = UpstreamTarget("u", "openai")
PROFILE = Profile("p", Kind.GENERATION, Price(1, 1), (PREFILL,))

texts = st.text(st.sampled_from("ab \né"), min_size=1, max_size=40)
cuts = st.lists(st.integers(0, 40), max_size=6)


def in_pieces(kind: str, text: str, at: Sequence[int]) -> list[GenerationEvent]:
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in at)})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    if kind == "text_delta":
        return [GenerationEvent(text_delta=pb.TextDelta(text=piece)) for piece in pieces]
    return [GenerationEvent(thinking_delta=pb.ThinkingDelta(text=piece)) for piece in pieces]


def joined(kind: str, events: Sequence[GenerationEvent]) -> str:
    return "".join(getattr(event, kind).text for event in events if event.WhichOneof("kind") == kind)


def asked(*, temperature: float) -> pb.Generation:
    generation = pb.Generation(temperature=temperature)
    generation.messages.add(role=pb.ROLE_USER).content.add().text.text = "?"
    return generation


END = GenerationEvent(finished=pb.Finished(reason=pb.FINISH_REASON_STOP))


@given(thinking=st.just("") | texts, text=texts, cut_at=st.integers(0, 80), first=cuts, second=cuts)
def test_a_repetition_adds_exactly_what_is_missing(
    thinking: str, text: str, cut_at: int, first: list[int], second: list[int]
) -> None:
    said = Said()
    thought, spoken = thinking[:cut_at], text[: max(0, cut_at - len(thinking))]
    for kind, left in (("thinking_delta", thought), ("text_delta", spoken)):
        for event in in_pieces(kind, left, first):
            said.note(kind, joined(kind, [event]))
    plan = continuation(asked(temperature=0), said, PROFILE, NO_PREFILL, may_prefill=True)
    assert plan is not None

    events = [*in_pieces("thinking_delta", thinking, second), *in_pieces("text_delta", text, second), END]
    fresh = [out for event in events for out in plan.overlap.remove([event])]

    assert thought + joined("thinking_delta", fresh) == thinking
    assert spoken + joined("text_delta", fresh) == text
    assert fresh[-1] is END


@given(
    left=texts.filter(str.strip), rest=st.just("") | texts, at=cuts, sends_white=st.booleans(), is_echo=st.booleans()
)
def test_a_continuation_is_joined_without_a_seam(
    left: str, rest: str, at: list[int], sends_white: bool, is_echo: bool
) -> None:
    said = Said()
    said.note("text_delta", left)
    plan = continuation(asked(temperature=1), said, PROFILE, PREFILL, may_prefill=True)
    assert plan is not None
    kept = left.rstrip()
    white = left[len(kept) :]
    rest = "." + rest  # neither white space nor, by itself, a beginning of what has left
    comes = (kept if is_echo and len(left) >= 12 else "") + (white if sends_white else "") + rest

    fresh = [out for event in [*in_pieces("text_delta", comes, at), END] for out in plan.overlap.remove([event])]

    assert left + joined("text_delta", fresh) == left + rest
    assert fresh[-1] is END
    assert plan.generation.messages[-1].content[-1].text.text == kept


def test_nothing_goes_on_after_a_tool_call_has_left() -> None:
    said = Said()
    said.note("text_delta", "Let me see.")
    said.note("tool_call_started", "look")

    assert continuation(asked(temperature=0), said, PROFILE, PREFILL, may_prefill=True) is None


def test_an_answer_with_a_format_is_not_prefilled() -> None:
    said = Said()
    said.note("text_delta", '{"a":')
    generation = asked(temperature=1)
    generation.response_format.json_object.SetInParent()

    assert continuation(generation, said, PROFILE, PREFILL, may_prefill=True) is None
