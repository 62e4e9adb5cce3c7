"""Reads answers of OpenAI-compatible upstreams, whole or streamed, into events; a whole answer is read as one chunk.

Owns the quirks of the vendors that speak this dialect; refuses to know HTTP and how the request was written.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.ports import UpstreamFailure
from services.routing_and_inference.upstreams import counts, errors, payloads
from services.routing_and_inference.upstreams.custom_calls import CustomCalls, CustomPiece
from services.routing_and_inference.upstreams.runs import RunWriter, ToolCall
from services.routing_and_inference.upstreams.stops import StopScanner

_NOTHING = msgspec.Raw()
_NO_USAGE = TokenUsage()
_DONE = b"[DONE]"
_ABSENT = frozenset({b"", b"null", b"{}", b"[]", b'""', b"false"})


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolPiece(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    custom: CustomPiece | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolPiece] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct):
    index: int | None = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # vLLM: the stop string that matched, or a token id
    matched_stop: str | int | None = None  # SGLang: the same
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


class _GroqPart(msgspec.Struct):
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    x_groq: _GroqPart | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode

_REASONS: Mapping[str, "pb.FinishReason.ValueType"] = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "max_tokens": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "function_call": pb.FINISH_REASON_TOOL_CALLS,
    "tool_use": pb.FINISH_REASON_TOOL_CALLS,
    "content_filter": pb.FINISH_REASON_REFUSAL,
    "safety": pb.FINISH_REASON_REFUSAL,
    "refusal": pb.FINISH_REASON_REFUSAL,
    "stop_sequence": pb.FINISH_REASON_STOP,
    "model_length": pb.FINISH_REASON_CONTEXT_FULL,
}
# Reasons that are failures: the provider gave up, and said so in the place where others say that they are done.
_FAILURES: Mapping[str, Callable[[], UpstreamFailure]] = {
    "error": errors.failed,
    "abort": errors.cut,
    "aborted": errors.cut,
    "cancelled": errors.cut,
    "insufficient_system_resource": errors.overloaded,
}


def mint_tool_call_id() -> str:
    """An id for a call to which the upstream gave none, or one that it had given before."""
    return f"call_{secrets.token_hex(12)}"


class OpenAiAnswer:
    """One per answer: feed it chunks, then `end` it. Raises UpstreamFailure for what cannot become an answer.

    `scanner` looks for the stop sequences that the upstream was not told; `tool_id` reads ids of ours back.
    """

    def __init__(
        self,
        runs: RunWriter,
        stop_sequences: Sequence[str],
        scanner: StopScanner | None = None,
        tool_id: Callable[[str], str] | None = None,
    ) -> None:
        self._runs = runs
        self._scanner = scanner
        self._tool_id = tool_id
        self._stop_sequences = frozenset(stop_sequences)
        self._calls: dict[int | str, ToolCall] = {}
        self._custom: CustomCalls | None = None
        self._last_call: ToolCall | None = None
        self._finish = ""
        self._matched_stop = ""
        self._refused = False
        self._usage = _NOTHING
        self.opening_usage: TokenUsage | None = _NO_USAGE  # usage comes last in this dialect
        self.finished = False  # a finish reason has arrived; usage and stray content may follow

    def feed(self, name: bytes, payload: bytes) -> bool:
        """One payload: a chunk of a stream, a whole answer, or `[DONE]`, after which nothing counts."""
        try:
            chunk = _decode_chunk(payload)
        except errors.UNREADABLE as error:
            if payload.lstrip().startswith(_DONE):
                return True
            if not payload.strip():
                return False
            chunk = _lenient_chunk(
                payload if isinstance(error, msgspec.ValidationError) else payloads.repaired(payload)
            )
        if chunk.usage is not _NOTHING or chunk.error is not _NOTHING or chunk.x_groq is not None:
            self._read_envelope(chunk)
        if chunk.choices is None:
            _refuse_bare_error(payload, is_error=name == b"error", had_usage=chunk.usage is not _NOTHING)
        else:
            for choice in chunk.choices:
                if not choice.index:
                    self._read_choice(choice)
        return self._scanner is not None and bool(self._scanner.matched)

    def end(self, *, done: bool) -> GenerationEvent:
        """The last event; what the runs still hold comes before it."""
        if not self.finished and (not done or self._runs.is_empty or self._runs.has_incomplete_call):
            raise errors.cut()
        if failure := _FAILURES.get(self._finish):
            raise failure()
        if self._scanner is not None:
            self._runs.text(self._scanner.end())
        self._runs.end()
        if self._custom is not None:
            self._custom.write(self._runs)
        event = GenerationEvent()
        finished = event.finished
        finished.reason = reason = self._reason()
        if reason == pb.FINISH_REASON_STOP_SEQUENCE:
            finished.stop_sequence = self._matched_stop
        finished.usage.SetInParent()
        if self._usage is not _NOTHING:
            counts.of_openai(self._usage, finished.usage)
        return event

    def _read_choice(self, choice: _Choice) -> None:
        if choice.error is not _NOTHING and bytes(choice.error) not in _ABSENT:
            raise errors.of_error_in_answer({"error": payloads.decode(choice.error)})
        delta = choice.delta or choice.message
        if delta is not None:
            self._read_delta(delta)
        if choice.finish_reason:
            self._finish = choice.finish_reason
            self.finished = True
            if self._stop_sequences:
                self._note_stop(choice)
        if choice.usage is not _NOTHING and bytes(choice.usage) not in _ABSENT:
            self._usage = choice.usage

    def _read_delta(self, delta: _Delta) -> None:
        if thinking := delta.reasoning_content or delta.reasoning:
            self._runs.thinking(thinking)
        if delta.content:
            self._runs.text(delta.content if self._scanner is None else self._scan(delta.content))
        if delta.refusal:
            self._refused = True
            self._runs.text(delta.refusal)
        if delta.tool_calls and not (self._scanner is not None and self._scanner.matched):
            for position, piece in enumerate(delta.tool_calls):
                self._read_tool_piece(piece, position, len(delta.tool_calls))
        if delta.function_call is not None:
            self._read_tool_piece(_ToolPiece(index=0, function=delta.function_call), 0, 1)

    def _scan(self, content: str) -> str:
        assert self._scanner is not None
        text = self._scanner.feed(content)
        if self._scanner.matched:  # the upstream may go on, but its answer ends here
            self.finished = True
            self._finish, self._matched_stop = "stop", self._scanner.matched
        return text

    def _read_tool_piece(self, piece: _ToolPiece, position: int, pieces: int) -> None:
        if piece.custom is not None:
            self._custom = self._custom or CustomCalls()
            self._custom.read(position if piece.index is None else piece.index, piece.id or "", piece.custom)
            return
        function = piece.function or _Function()
        call, key = self._find_call(piece, position, pieces)
        if piece.id and self._tool_id is not None:
            piece.id = self._tool_id(piece.id)
        if call is None or _begins_another(call, piece.id, function):
            call = self._runs.tool_call(piece.id or "", function.name or "")
            self._calls[key] = call
        else:
            if piece.id and not call.call_id:
                call.call_id = piece.id
            if function.name and not call.started and function.name != call.name:
                call.name += function.name
        self._last_call = call
        if function.arguments:
            self._runs.arguments(call, function.arguments)

    def _find_call(self, piece: _ToolPiece, position: int, pieces: int) -> tuple[ToolCall | None, int | str]:
        """The call that a piece belongs to, by its index, else its id, else its place; and the key for a new one."""
        if piece.index is not None:
            return self._calls.get(piece.index), piece.index
        if piece.id:
            return self._calls.get(piece.id), piece.id
        if pieces == 1 and self._last_call is not None:
            return self._last_call, f"last {len(self._calls)}"
        return self._calls.get(f"place {position}"), f"place {position}"

    def _note_stop(self, choice: _Choice) -> None:
        for value in (choice.matched_stop, choice.stop_reason):
            if isinstance(value, str) and value in self._stop_sequences:
                self._matched_stop = value

    def _read_envelope(self, chunk: _Chunk) -> None:
        if bytes(chunk.error) not in _ABSENT:
            raise errors.of_error_in_answer({"error": payloads.decode(chunk.error)})
        if chunk.usage is not _NOTHING and bytes(chunk.usage) not in _ABSENT:
            self._usage = chunk.usage
        elif chunk.x_groq is not None:
            if bytes(chunk.x_groq.error) not in _ABSENT:
                raise errors.of_error_in_answer({"error": payloads.decode(chunk.x_groq.error)})
            if bytes(chunk.x_groq.usage) not in _ABSENT:
                self._usage = chunk.x_groq.usage

    def _reason(self) -> "pb.FinishReason.ValueType":
        reason = _REASONS.get(self._finish.lower(), pb.FINISH_REASON_STOP)
        if reason == pb.FINISH_REASON_TOOL_CALLS and not self._runs.has_tools:
            return pb.FINISH_REASON_STOP
        if reason == pb.FINISH_REASON_STOP:
            if self._runs.has_tools:  # many open models say `stop` beside their calls
                return pb.FINISH_REASON_TOOL_CALLS
            if self._refused:
                return pb.FINISH_REASON_REFUSAL
            if self._matched_stop:
                return pb.FINISH_REASON_STOP_SEQUENCE
        return reason


def _begins_another(call: ToolCall, piece_id: str | None, function: _Function) -> bool:
    """A piece with the same index may begin a further call: some upstreams number every call 0."""
    if not function.name:
        return False
    if piece_id:
        return bool(call.call_id) and piece_id != call.call_id
    return bool(call.name and function.arguments) and call.is_complete()


def _refuse_bare_error(payload: bytes, *, is_error: bool, had_usage: bool) -> None:
    """Without choices it may be an error that nobody wrapped, or something to ignore."""
    body = payloads.decode(payload)
    if not isinstance(body, Mapping):
        raise errors.malformed()
    if (
        is_error
        or body.get("object") == "error"
        or body.get("type") == "error"
        or (not had_usage and ("message" in body or "detail" in body))
    ):
        raise errors.of_error_in_answer(body)


def _lenient_chunk(payload: bytes) -> _Chunk:
    """The same chunk from an upstream whose fields have unusual types; what makes no sense is left out."""
    body = payloads.decode(payload)
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, Mapping):
        raise errors.malformed()
    choices = body.get("choices")
    groq = body.get("x_groq")
    return _Chunk(
        choices=[_lenient_choice(c) for c in choices if isinstance(c, Mapping)] if isinstance(choices, list) else None,
        usage=_raw(body.get("usage")),
        error=_raw(body.get("error")),
        x_groq=_GroqPart(_raw(groq.get("usage")), _raw(groq.get("error"))) if isinstance(groq, Mapping) else None,
    )


def _lenient_choice(choice: Mapping[str, Any]) -> _Choice:
    delta, message = choice.get("delta"), choice.get("message")
    return _Choice(
        index=counts.count(choice.get("index")) or 0,
        delta=_lenient_delta(delta) if isinstance(delta, Mapping) else None,
        message=_lenient_delta(message) if isinstance(message, Mapping) else None,
        finish_reason=_text(choice.get("finish_reason")),
        stop_reason=_text(choice.get("stop_reason")),
        matched_stop=_text(choice.get("matched_stop")),
        usage=_raw(choice.get("usage")),
        error=_raw(choice.get("error")),
    )


def _lenient_delta(delta: Mapping[str, Any]) -> _Delta:
    calls = delta.get("tool_calls")
    function = delta.get("function_call")
    return _Delta(
        content=_text(delta.get("content")),
        reasoning_content=_text(delta.get("reasoning_content")),
        reasoning=_text(delta.get("reasoning")),
        refusal=_text(delta.get("refusal")),
        tool_calls=[_lenient_piece(c) for c in calls if isinstance(c, Mapping)] if isinstance(calls, list) else None,
        function_call=_lenient_function(function) if isinstance(function, Mapping) else None,
    )


def _lenient_piece(piece: Mapping[str, Any]) -> _ToolPiece:
    function = piece.get("function")
    call_id = piece.get("id")
    return _ToolPiece(
        index=counts.count(piece.get("index")),
        id=str(call_id) if isinstance(call_id, str | int) else None,
        function=_lenient_function(function) if isinstance(function, Mapping) else None,
    )


def _lenient_function(function: Mapping[str, Any]) -> _Function:
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    return _Function(name=_text(function.get("name")), arguments=arguments)


def _text(value: object) -> str | None:
    """A text, or the texts of a list of parts joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        return "".join(part for part in parts if isinstance(part, str))
    return None


def _raw(value: object) -> msgspec.Raw:
    return _NOTHING if value is None else msgspec.Raw(msgspec.json.encode(value))
