"""Frames of both upstream dialects, as tables of streams need them: short to write, wrong where they are told to be.

Owns abbreviations only; knows nothing of how they are read.
"""

from typing import Any

from tests.fakes import anthropic_frame, openai_chunk, openai_frame

DONE = b"data: [DONE]\n\n"

# ---- Anthropic-dialect upstreams ----

OPENING = {"id": "m", "type": "message", "role": "assistant", "content": [], "usage": {"input_tokens": 5}}
STOPPED = anthropic_frame({"type": "message_stop"})


def started(**changes: Any) -> bytes:
    message = {name: value for name, value in {**OPENING, **changes}.items() if value is not ...}
    return anthropic_frame({"type": "message_start", "message": message})


def begin(index: int, **block: Any) -> bytes:
    return anthropic_frame({"type": "content_block_start", "index": index, "content_block": block})


def delta(index: int, kind: str, **value: Any) -> bytes:
    return anthropic_frame({"type": "content_block_delta", "index": index, "delta": {"type": kind, **value}})


def stop(index: int) -> bytes:
    return anthropic_frame({"type": "content_block_stop", "index": index})


def ended(reason: str | None = "end_turn", **more: Any) -> bytes:
    fields = {"delta": {"stop_reason": reason, "stop_sequence": None}, "usage": {"output_tokens": 3}, **more}
    return anthropic_frame({"type": "message_delta", **{k: v for k, v in fields.items() if v is not ...}})


def say(index: int, text: str) -> list[bytes]:
    return [begin(index, type="text", text=""), delta(index, "text_delta", text=text), stop(index)]


def args(index: int, piece: str) -> bytes:
    return delta(index, "input_json_delta", partial_json=piece)


def use(index: int, call_id: str, name: str, *pieces: str) -> list[bytes]:
    block = begin(index, type="tool_use", id=call_id, name=name, input={})
    return [block, *(args(index, piece) for piece in pieces), stop(index)]


# ---- OpenAI-compatible upstreams ----

ROLE, STOP = openai_chunk({"role": "assistant", "content": ""}), openai_chunk({}, "stop")
TOOLS = openai_chunk({}, "tool_calls")
COUNTS = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}


def text(value: str, **more: Any) -> bytes:
    return openai_chunk({"content": value}, **more)


def pieces_of(*pieces: dict[str, Any]) -> bytes:
    return openai_chunk({"tool_calls": list(pieces)})


def piece(arguments: str | None = "", name: str | None = None, **more: Any) -> dict[str, Any]:
    """A fragment of a call."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"function": function, **more}


WHOLE_A = piece('{"x":1}', "f", index=0, id="a", type="function")
WHOLE_B = piece('{"y":2}', "g", index=1, id="b", type="function")


def choice(**fields: Any) -> bytes:
    return openai_frame({"choices": [{"index": 0, **fields}]})
