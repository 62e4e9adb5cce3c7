"""What clients were measured to break on never reaches them: every known misbehaviour of an upstream, in both dialects.

One row per anomaly; what each SDK's user hears is what a correct upstream would have said, or a typed error.
"""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.builders import generation
from tests.fakes import anthropic_frame, openai_chunk, openai_frame
from tests.wire.through import SHAPES, Said, check_stream, folded, hear, request_from, said
from tests.wire.upstreams.frames import (
    COUNTS,
    DONE,
    ROLE,
    STOP,
    STOPPED,
    TOOLS,
    WHOLE_A,
    args,
    begin,
    choice,
    delta,
    ended,
    piece,
    pieces_of,
    say,
    started,
    stop,
    text,
    use,
)

END, CALLED = ("end_turn", "stop"), ("tool_use", "tool_calls")
A, B = ("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')


def expect(ends: tuple[str, str] = END, **fields: Any) -> dict[str, Said]:
    """What is heard in each dialect."""
    return {shape: Said(end=end, **fields) for shape, end in zip(("anthropic", "openai"), ends, strict=True)}


def counted(heard: Said, expected: Said) -> Said:
    """The expectation with the counts that were heard, where the row is not about them."""
    if expected.input_tokens:
        return expected
    counts = {"input_tokens": heard.input_tokens, "output_tokens": heard.output_tokens}
    return Said(expected.text, expected.thinking, expected.calls, expected.end, **counts)


HI = [*say(0, "Hi"), ended(), STOPPED]

MESSAGES = [
    pytest.param([started(usage=...), *HI], expect(text="Hi"), id="message_start without usage"),
    pytest.param([started(usage=None), *HI], expect(text="Hi"), id="message_start with null usage"),
    pytest.param([started(type=..., role=...), *HI], expect(text="Hi"), id="message_start without type and role"),
    pytest.param(
        [started(), *say(0, "Hi"), ended(usage=...), STOPPED], expect(text="Hi"), id="message_delta without usage"
    ),
    pytest.param(
        [started(), *say(0, "Hi"), ended(usage={}), STOPPED], expect(text="Hi"), id="message_delta with empty usage"
    ),
    pytest.param([started(), *say(0, "Hi"), STOPPED], expect(text="Hi"), id="no message_delta"),
    pytest.param([started(), *say(0, "Hi"), ended()], expect(text="Hi"), id="no message_stop"),
    pytest.param(
        [started(), begin(0, type="text"), delta(0, "text_delta", text="Hi"), stop(0), ended(), STOPPED],
        expect(text="Hi"),
        id="a text start without text",
    ),
    pytest.param(
        [
            started(),
            begin(0, type="thinking", signature=""),
            delta(0, "thinking_delta", thinking="Hm"),
            stop(0),
            *say(1, "Hi"),
            ended(),
            STOPPED,
        ],
        expect(text="Hi", thinking="Hm"),
        id="a thinking start without thinking",
    ),
    pytest.param(
        [started(), begin(0, type="thinking", thinking="Hm"), stop(0), *say(1, "Hi"), ended(), STOPPED],
        expect(text="Hi", thinking="Hm"),
        id="thinking without signature",
    ),
    pytest.param([frame.partition(b"\n")[2] for frame in (started(), *HI)], expect(text="Hi"), id="data-only frames"),
    pytest.param(
        [started(), *say(0, "Hi")[:2], *use(1, "a", "f", '{"x":1}')[:2], ended("tool_use"), STOPPED],
        expect(CALLED, text="Hi", calls=(A,)),
        id="no content_block_stop",
    ),
    pytest.param(
        [started(), delta(0, "text_delta", text="Hi"), stop(0), ended(), STOPPED],
        expect(text="Hi"),
        id="no content_block_start",
    ),
    pytest.param(
        [started(), *say(1, "Hi"), *use(2, "a", "f", '{"x":1}'), ended("tool_use"), STOPPED],
        expect(CALLED, text="Hi", calls=(A,)),
        id="the first index is 1",
    ),
    pytest.param(
        [
            started(),
            use(0, "a", "f")[0],
            use(1, "b", "g")[0],
            args(1, '{"y"'),
            args(0, '{"x"'),
            args(1, ":2}"),
            args(0, ":1}"),
            stop(0),
            stop(1),
            ended("tool_use"),
            STOPPED,
        ],
        expect(CALLED, calls=(A, B)),
        id="two tool blocks open and their deltas interleaved",
    ),
    pytest.param(
        [
            started(),
            begin(0, type="tool_use", id="a", name="f"),
            args(0, '{"x":1}'),
            stop(0),
            ended("tool_use"),
            STOPPED,
        ],
        expect(CALLED, calls=(A,)),
        id="a tool_use start without input",
    ),
    pytest.param(
        [started(), begin(0, type="tool_use", id="a", name="f", input={"x": 1}), stop(0), ended("tool_use"), STOPPED],
        expect(CALLED, calls=(A,)),
        id="a tool_use start with the whole input",
    ),
    pytest.param(
        [
            started(),
            begin(0, type="mystery", x=1),
            delta(0, "mystery_delta", y=2),
            stop(0),
            *say(1, "Hi"),
            ended(),
            STOPPED,
        ],
        expect(text="Hi"),
        id="an unknown block type",
    ),
    pytest.param(
        [started(), anthropic_frame({"type": "surprise", "x": 1}), *HI], expect(text="Hi"), id="an unknown SSE event"
    ),
    pytest.param(
        [started(), *say(0, "Hi"), started(id="m2"), *say(1, " you"), ended(), STOPPED],
        expect(text="Hi you"),
        id="a second message_start",
    ),
    pytest.param(
        [started(), *say(0, "Hi"), ended("max_tokens"), ended(None), STOPPED],
        expect(("max_tokens", "length"), text="Hi"),
        id="a second message_delta with null stop_reason",
    ),
    pytest.param([started(), ended(), STOPPED], expect(), id="no blocks at all"),
    pytest.param([started(), *HI, DONE], expect(text="Hi"), id="a trailing DONE without event"),
    pytest.param(
        [started(), *say(0, "Hi"), b"event: data\n" + DONE, ended(), STOPPED, b"event: data\n" + DONE],
        expect(text="Hi"),
        id="a DONE as an event of its own",
    ),
    pytest.param(
        [b": hello\n\n", *(f.replace(b"\n", b"\r\n") for f in (started(), *HI))],
        expect(text="Hi"),
        id="comments and CRLF",
    ),
    pytest.param(
        [
            started(),
            *say(0, "Hi"),
            anthropic_frame({"type": "ping"}),
            *use(1, "a", "f", ""),
            ended("tool_use"),
            STOPPED,
        ],
        expect(CALLED, text="Hi", calls=(("a", "f", "{}"),)),
        id="a tool without arguments",
    ),
    pytest.param(
        [
            started(usage={"input_tokens": 43, "output_tokens": 1}),
            *say(0, "Hi"),
            ended(usage={"input_tokens": 61, "output_tokens": 9}),
            STOPPED,
        ],
        expect(text="Hi", input_tokens=61, output_tokens=9),
        id="input_tokens corrected at the end",
    ),
]

CHUNKS = [
    pytest.param([ROLE, text("Hi"), STOP, DONE], expect(text="Hi"), id="no usage chunk"),
    pytest.param([text("Hi"), STOP, DONE], expect(text="Hi"), id="no role ever"),
    pytest.param([ROLE, text("Hi"), DONE], expect(text="Hi"), id="no finish_reason"),
    pytest.param(
        [ROLE, text("Hi"), choice(delta=None), choice(delta=None, finish_reason="stop"), DONE],
        expect(text="Hi"),
        id="a null delta",
    ),
    pytest.param(
        [ROLE, text("Hi"), choice(), choice(finish_reason="stop"), DONE], expect(text="Hi"), id="a missing delta"
    ),
    pytest.param(
        [
            openai_frame({"id": "", "model": "", "choices": [], "prompt_filter_results": []}),
            ROLE,
            text("Hi"),
            STOP,
            DONE,
        ],
        expect(text="Hi"),
        id="a first chunk with empty choices and id",
    ),
    pytest.param(
        [
            text("Hi", usage={**COUNTS, "completion_tokens": 1, "total_tokens": 13}),
            openai_chunk({}, "stop", usage=COUNTS),
            DONE,
        ],
        expect(text="Hi", input_tokens=12, output_tokens=5),
        id="usage on every chunk",
    ),
    pytest.param(
        [ROLE, pieces_of(piece('{"x":1}', "f", index=0, id="a")), TOOLS, DONE],
        expect(CALLED, calls=(A,)),
        id="a tool call without type",
    ),
    pytest.param(
        [ROLE, pieces_of(piece("", "f", id="a")), pieces_of(piece('{"x":1}')), TOOLS, DONE],
        expect(CALLED, calls=(A,)),
        id="a tool call without index",
    ),
    pytest.param(
        [
            ROLE,
            pieces_of(piece("", "f", index=0, id="a")),
            pieces_of(piece('{"x"', "f", index=0, id="a")),
            pieces_of(piece(":1}", "f", index=0, id="a")),
            TOOLS,
            DONE,
        ],
        expect(CALLED, calls=(A,)),
        id="id and name repeated in later chunks",
    ),
    pytest.param(
        [
            ROLE,
            pieces_of(piece("", "f", index=0, id="a")),
            pieces_of(piece('{"x":1}', "", index=0, id="")),
            TOOLS,
            DONE,
        ],
        expect(CALLED, calls=(A,)),
        id="id and name empty later",
    ),
    pytest.param(
        [ROLE, pieces_of(piece('{"x"', index=0)), pieces_of(piece(":1}", "f", index=0, id="a")), TOOLS, DONE],
        expect(CALLED, calls=(A,)),
        id="arguments before the name",
    ),
    pytest.param(
        [
            ROLE,
            pieces_of(piece("", "f", index=0, id="a")),
            pieces_of(piece("", "g", index=1, id="b")),
            pieces_of(piece('{"y"', index=1)),
            pieces_of(piece('{"x"', index=0)),
            pieces_of(piece(":2}", index=1)),
            pieces_of(piece(":1}", index=0)),
            TOOLS,
            DONE,
        ],
        expect(CALLED, calls=(A, B)),
        id="parallel calls interleaved",
    ),
    pytest.param(
        [ROLE, pieces_of(piece(None, "f", index=0, id="a")), pieces_of(piece("{}", index=0)), TOOLS, DONE],
        expect(CALLED, calls=(("a", "f", "{}"),)),
        id="arguments null and then an empty object",
    ),
    pytest.param(
        [ROLE, pieces_of(piece("", "f", index=0, id="a")), TOOLS, DONE],
        expect(CALLED, calls=(("a", "f", "{}"),)),
        id="empty arguments",
    ),
    pytest.param(
        [openai_chunk({"content": "Hi"}, ""), text(" you"), STOP, DONE],
        expect(text="Hi you"),
        id="an empty finish_reason before the end",
    ),
    pytest.param(
        [openai_chunk({"content": "Hi"}, "stop"), DONE], expect(text="Hi"), id="content and finish_reason in one chunk"
    ),
    pytest.param([text("Hi"), STOP, text(" you"), DONE], expect(text="Hi you"), id="content after finish_reason"),
    pytest.param(
        [
            openai_chunk({"reasoning_content": "Hm", "surprise": 1}),
            openai_chunk({"content": "Hi", "audio": None}),
            STOP,
            DONE,
        ],
        expect(text="Hi", thinking="Hm"),
        id="extra delta fields and reasoning_content",
    ),
    pytest.param(
        [openai_frame({"choices": [{"index": 1, "delta": {"content": "No"}}]}), text("Hi"), STOP, DONE],
        expect(text="Hi"),
        id="choice 1 before choice 0",
    ),
    pytest.param([ROLE, text("Hi"), STOP], expect(text="Hi"), id="no DONE"),
    pytest.param(
        [openai_chunk({"reasoning": "Hm"}), text("Hi"), STOP, DONE],
        expect(text="Hi", thinking="Hm"),
        id="reasoning under its other name",
    ),
    pytest.param(
        [ROLE, pieces_of(piece('{"x":1}', "f", index=1, id="a", type="function")), TOOLS, DONE],
        expect(CALLED, calls=(A,)),
        id="the first tool index is 1",
    ),
    pytest.param(
        [ROLE, pieces_of(WHOLE_A), openai_chunk({}, "stop"), DONE],
        expect(CALLED, calls=(A,)),
        id="stop beside a tool call",
    ),
    pytest.param([ROLE, text("Hi"), TOOLS, DONE], expect(text="Hi"), id="tool_calls without a call"),
    pytest.param([ROLE, text("Hi"), openai_chunk({}, "eos"), DONE], expect(text="Hi"), id="an unknown finish_reason"),
    pytest.param(
        [ROLE, openai_chunk({"content": "Hi"}, "stop", x_groq={"usage": COUNTS}), DONE],
        expect(text="Hi", input_tokens=12, output_tokens=5),
        id="usage under x_groq",
    ),
    pytest.param(
        [
            text("Hi"),
            openai_chunk({}, "stop", usage={"prompt_tokens": 307, "completion_tokens": 26, "total_tokens": 560}),
            DONE,
        ],
        expect(text="Hi", input_tokens=307, output_tokens=253),
        id="reasoning outside of completion_tokens",
    ),
]

STREAMS = [pytest.param("anthropic", *row.values, id=f"anthropic upstream: {row.id}") for row in MESSAGES]
STREAMS += [pytest.param("openai", *row.values, id=f"openai upstream: {row.id}") for row in CHUNKS]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("upstream", "frames", "expected"), STREAMS)
def test_a_misbehaving_stream_is_heard_as_a_correct_one(
    upstream: str, frames: Sequence[bytes], expected: dict[str, Said], shape: str
) -> None:
    for pieces in (frames, [b"".join(frames)]):
        made = generation()
        made.tools.add(name="f")
        heard = hear(pieces, request_from(shape, upstream, stream=True, made=made), shape)
        check_stream(heard)
        answer = said(heard)
        assert answer == counted(answer, expected[shape])
        assert answer.input_tokens > 0
        assert all(block["signature"] for block in thinking_blocks(folded(heard)))


def thinking_blocks(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [block for block in answer.get("content", ()) if isinstance(block, dict) and block["type"] == "thinking"]


@pytest.mark.parametrize("shape", SHAPES)
def test_calls_without_an_id_get_one_each(shape: str) -> None:
    frames = [
        ROLE,
        pieces_of(piece('{"x":1}', "f", index=0)),
        pieces_of(piece('{"y":2}', "g", index=1, id="")),
        TOOLS,
        DONE,
    ]
    answer = said(hear(frames, request_from(shape, "openai", stream=True), shape))
    first, second = answer.calls
    assert (first[1:], second[1:]) == (A[1:], B[1:])
    assert first[0] != second[0] != ""
