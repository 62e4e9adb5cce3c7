"""What the simulated upstream answers to a prompt: thinking, text and tool calls, the same for the same prompt.

Pure: no clock, no sending. The conventions are documented in `docs/simulated_upstream.md`; keep both in step.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.upstreams.runs import is_json
from services.routing_and_inference.upstreams.simulated_values import ValueMaker

LABEL = "[simulated]"
_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 1600
_MOST_QUOTED = 400  # characters of a tool's result that the answer repeats
_MOST_READ = 20_000  # characters of the prompt's end that conventions are looked for in

_CALL_LINE = re.compile(r"^[ \t]*call[ \t]+([\w.:/-]+)[ \t]*(\{.*\})?[ \t]*$", re.MULTILINE | re.IGNORECASE)
_SAY_LINE = re.compile(r"^[ \t]*say[ \t]+(\S.*)$", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_][\w'-]{2,}")
_DULL_WORDS = (
    "compare define describe explain list name summarise summarize",
    "a about all also an and any are because been but can could did does for from get give had has have",
    "here how i if in into is it its just like make may me more most my not now of on one only or other",
    "our out please should so some tell than that the their them then there these they this to up use",
    "using was we were what when where which who why will with would write you your",
)
_DULL = frozenset(word for line in _DULL_WORDS for word in line.split())
_OPENINGS = (
    "You asked about {topic}. This answer was made without a model, so it says nothing true about it, but it has the "
    "form of one.",
    "On {topic}: no model has read this question. What follows only has the length and the shape of an answer.",
    "Here is a stand-in for an answer about {topic}. It is the same every time the same question is asked.",
)
_MIDDLES = (
    "A real answer would begin with {first}, say how it relates to {second}, and give an example.",
    "The part about {first} would come first, since {second} depends on it.",
    "Most of the work lies in {first}; {second} follows from it almost by itself.",
    "If {first} matters more to you than {second}, say so, and the answer would be arranged the other way round.",
)
_CLOSINGS = (
    "To sum up: {topic}.",
    "Ask again with other words, and this text changes with them.",
    "That is all there is to say about {topic} without a model.",
)


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A tool call to make."""

    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class MadeAnswer:
    """A whole answer, cut where the limits say."""

    thinking: str
    text: str
    calls: tuple[MadeCall, ...]
    reason: "pb.FinishReason.ValueType"
    stop_sequence: str
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int


def answer(generation: pb.Generation, *, thinks: bool) -> MadeAnswer:
    """The answer to a prompt; `thinks`: the profile is one that reasons."""
    prompt = _Prompt(generation)
    calls = _calls(generation, prompt)
    thinking = _thinking(prompt, calls) if thinks and _wants_thinking(generation) else ""
    text = "" if calls else _text(generation, prompt)
    return _cut(generation, prompt, thinking, text, calls)


def estimate(characters: int) -> int:
    """Tokens at four characters each, rounded up."""
    return -(-characters // _CHARACTERS_PER_TOKEN)


class _Prompt:
    """What the conventions need to know of a prompt."""

    def __init__(self, generation: pb.Generation) -> None:
        last = next((m for m in reversed(generation.messages) if m.role != pb.ROLE_SYSTEM), generation.messages[-1])
        self.is_prefilled = last.role == pb.ROLE_ASSISTANT
        asked = next((m for m in reversed(generation.messages) if m.role == pb.ROLE_USER), last)
        self.question = "\n".join(_texts(asked.content))[-_MOST_READ:]
        self.results = [] if self.is_prefilled else [b.tool_result for b in last.content if b.HasField("tool_result")]
        self.characters = _size(generation)
        seen = dict.fromkeys(word for word in _WORD.findall(self.question) if word.lower() not in _DULL)
        self.words = list(seen)[:64]
        digest = hashlib.sha256(f"{self.question}\0{len(generation.messages)}".encode("utf-8", "replace")).digest()
        self._choices = iter(digest * 4)

    def choose(self, options: Sequence[str]) -> str:
        return options[next(self._choices) % len(options)]

    def word(self) -> str:
        return self.choose(self.words) if self.words else "the question"

    @property
    def names(self) -> list[str]:
        """Words for made-up arguments: names come before other words."""
        proper = [w for w in self.words if w[0].isupper() and not self.question.lstrip().startswith(w)]
        return proper + [w for w in self.words if w not in proper]


def _texts(blocks: Iterable[pb.ContentBlock]) -> list[str]:
    return [block.text.text for block in blocks if block.HasField("text") and block.text.text]


def _size(generation: pb.Generation) -> int:
    """Characters of the prompt, by the rule of four characters per token."""
    size = sum(_block_size(block) for message in generation.messages for block in message.content)
    for tool in generation.tools:
        size += len(tool.name) + len(tool.description) + len(tool.parameters_json) + len(tool.opaque.json)
    return size


def _block_size(block: pb.ContentBlock) -> int:
    kind = block.WhichOneof("kind")
    if kind == "text":
        return len(block.text.text)
    if kind == "tool_call":
        return len(block.tool_call.name) + len(block.tool_call.arguments_json)
    if kind == "tool_result":
        return sum(_block_size(inner) for inner in block.tool_result.content)
    if kind == "image":
        return _TOKENS_PER_IMAGE * _CHARACTERS_PER_TOKEN
    if kind == "document":
        return len(block.document.text) + len(block.document.base64_data) * 3 // 4 + len(block.document.title)
    return len(block.thinking.text) + len(block.redacted_thinking.data) + len(block.opaque.json)


def _wants_thinking(generation: pb.Generation) -> bool:
    reasoning = generation.reasoning
    if not generation.HasField("reasoning") or reasoning.mode == pb.Reasoning.MODE_DISABLED:
        return False
    return reasoning.effort != "none"


def _calls(generation: pb.Generation, prompt: _Prompt) -> tuple[MadeCall, ...]:
    choice = generation.tool_choice
    tools = {tool.name: tool for tool in generation.tools if not tool.HasField("opaque")}
    if not tools or choice.mode == pb.ToolChoice.MODE_NONE or prompt.is_prefilled:
        return ()
    if choice.mode == pb.ToolChoice.MODE_NAMED:
        tools = {name: tool for name, tool in tools.items() if name == choice.name}
    calls = [] if prompt.results and not _CALL_LINE.search(prompt.question) else _asked_calls(tools, prompt)
    if not calls and choice.mode in (pb.ToolChoice.MODE_REQUIRED, pb.ToolChoice.MODE_NAMED):
        calls = [_made_call(tool, prompt) for tool in list(tools.values())[:1]]
    if generation.HasField("parallel_tool_calls") and not generation.parallel_tool_calls:
        calls = calls[:1]
    return tuple(calls)


def _asked_calls(tools: dict[str, pb.Tool], prompt: _Prompt) -> list[MadeCall]:
    """Lines `call NAME {…}`; without any, tools that the question tells to use, in the order of their mention."""
    calls = []
    for name, arguments in _CALL_LINE.findall(prompt.question):
        if name in tools:
            stated = arguments and is_json(arguments)
            calls.append(MadeCall(name, arguments) if stated else _made_call(tools[name], prompt))
    if calls:
        return calls
    mentioned = []
    for name, tool in tools.items():
        told = re.search(
            rf"\b(?:use|using|call|invoke|run|try)\b[^.!?\n]*?\b{re.escape(name)}\b", prompt.question, re.I
        )
        if told:
            mentioned.append((told.end(), tool))
    return [_made_call(tool, prompt) for _, tool in sorted(mentioned, key=lambda found: found[0])]


def _made_call(tool: pb.Tool, prompt: _Prompt) -> MadeCall:
    words = [word for word in prompt.names if word not in tool.name]
    return MadeCall(tool.name, _made_json(tool.parameters_json, words))


def _made_json(schema_json: str, words: Sequence[str]) -> str:
    schema = msgspec.json.decode(schema_json or "{}")
    value = ValueMaker(schema if isinstance(schema, dict) else {}, words).make() if schema else {}
    return msgspec.json.encode(value).decode()


def _thinking(prompt: _Prompt, calls: Sequence[MadeCall]) -> str:
    if calls:
        plan = f"I should call {', '.join(call.name for call in calls)} before I answer."
    elif prompt.results:
        plan = "The tools have answered; what is left is to report what they said."
    else:
        plan = f"The question turns on {prompt.word()}. I will write about it, with no model to ask."
    return f"(simulated reasoning) {plan}"


def _text(generation: pb.Generation, prompt: _Prompt) -> str:
    form = generation.response_format.WhichOneof("kind")
    if form == "json_schema":
        return _made_json(generation.response_format.json_schema.schema_json, prompt.names)
    if said := _SAY_LINE.search(prompt.question):
        return said[1].rstrip()
    if form == "json_object":
        return msgspec.json.encode({"simulated": True, "answer": _prose(prompt)}).decode()
    if prompt.results:
        return f"{LABEL} {_report(prompt.results)}"
    return _prose(prompt) if prompt.is_prefilled else f"{LABEL} {_prose(prompt)}"


def _report(results: Sequence[pb.ToolResultBlock]) -> str:
    lines = []
    for result in results:
        said = " ".join(_texts(result.content)) or "nothing that is text"
        verb = "failed with" if result.is_error else "answered"
        quoted = said if len(said) <= _MOST_QUOTED else f"{said[:_MOST_QUOTED]}…"
        lines.append(f"The tool {verb}: {quoted}")
    return "\n\n".join(lines)


def _prose(prompt: _Prompt) -> str:
    topic = ", ".join(prompt.words[:4]) or "your question"
    paragraphs = [prompt.choose(_OPENINGS).format(topic=topic)]
    for _ in range(1 + next(prompt._choices) % 3):
        sentences = [
            prompt.choose(_MIDDLES).format(first=prompt.word(), second=prompt.word())
            for _ in range(2 + next(prompt._choices) % 2)
        ]
        paragraphs.append(" ".join(sentences))
    paragraphs.append(prompt.choose(_CLOSINGS).format(topic=topic))
    return "\n\n".join(paragraphs)


def _cut(
    generation: pb.Generation, prompt: _Prompt, thinking: str, text: str, calls: tuple[MadeCall, ...]
) -> MadeAnswer:
    reason = pb.FINISH_REASON_TOOL_CALLS if calls else pb.FINISH_REASON_STOP
    text, matched = _stopped(text, generation.stop_sequences)
    if matched:
        reason = pb.FINISH_REASON_STOP_SEQUENCE
    left = generation.max_output_tokens * _CHARACTERS_PER_TOKEN if generation.HasField("max_output_tokens") else 1 << 40
    whole = len(thinking) + len(text) + sum(len(call.name) + len(call.arguments_json) for call in calls)
    if whole > left:
        reason, matched = pb.FINISH_REASON_LENGTH, ""
        thinking = thinking[:left]
        text = text[: left - len(thinking)]
        calls = _cut_calls(calls, left - len(thinking) - len(text))
    written = len(thinking) + len(text) + sum(len(call.name) + len(call.arguments_json) for call in calls)
    return MadeAnswer(
        thinking=thinking,
        text=text,
        calls=calls,
        reason=reason,
        stop_sequence=matched,
        input_tokens=max(estimate(prompt.characters), 1),
        output_tokens=max(estimate(written), 1),
        reasoning_tokens=estimate(len(thinking)),
    )


def _cut_calls(calls: Sequence[MadeCall], left: int) -> tuple[MadeCall, ...]:
    kept = []
    for call in calls:
        left -= len(call.name)
        if left <= 0:
            break
        kept.append(MadeCall(call.name, call.arguments_json[:left]))
        left -= len(call.arguments_json)
    return tuple(kept)


def _stopped(text: str, stop_sequences: Iterable[str]) -> tuple[str, str]:
    """The text up to the first stop sequence, and that sequence; at one place the longest wins."""
    found = [(at, -len(stop), stop) for stop in stop_sequences if (at := text.find(stop)) >= 0]
    if not found:
        return text, ""
    at, _, stop = min(found)
    return text[:at], stop
