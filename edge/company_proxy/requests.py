"""Reads requests of the company proxy: JSON, then the schema, then the combinations that make no sense.

Owns the 422 list as FastAPI words it, and the few 400s; refuses to change the body, which is forwarded as it came.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from mws.inference.v1 import generation_pb2 as pb
from pydantic import TypeAdapter, ValidationError

from edge.ask import Ask
from edge.company_proxy.errors import InvalidBodyError
from edge.company_proxy.schema import ApplicationName, MessagesRequest
from services.runtime.errors import InvalidRequestError

_MOST_PROBLEMS = 50
_MOST_INPUT_CHARACTERS = 4_096  # of the part of a body that a problem quotes
_application = TypeAdapter(ApplicationName)
Problem = Mapping[str, Any]


def read_messages(body: bytes) -> Ask:
    """What was asked for. Raises InvalidBodyError, or InvalidRequestError for a combination that makes no sense."""
    request = validated(body)
    check_combination(request)
    generation = pb.Generation(max_output_tokens=request.max_tokens, stream=bool(request.stream))
    return Ask(model=request.model, generation=generation, dialect=pb.DIALECT_ANTHROPIC)


def validated(body: bytes) -> MessagesRequest:
    """The body, checked against its schema. Raises InvalidBodyError."""
    if not body:
        raise InvalidBodyError([{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}])
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise _not_json(body) from None
    try:
        return MessagesRequest.model_validate(value)
    except ValidationError as error:
        raise InvalidBodyError(problems_of(error, "body")) from None


def read_application(header: bytes | None) -> str:
    """The application that the usage is attributed to; empty without one. Raises InvalidBodyError."""
    if not header:
        return ""
    try:
        return _application.validate_python(header.decode("utf-8", "backslashreplace"))
    except ValidationError as error:
        raise InvalidBodyError(problems_of(error, "header", "x-application-name")) from None


def problems_of(error: ValidationError, *place: str) -> list[Problem]:
    """The validator's list, under a place. What it quotes of the request is cut to a size that can be sent back."""
    return [
        {
            "type": found["type"],
            "loc": [*place, *found["loc"]],
            "msg": found["msg"],
            "input": _quoted(found["input"]),
            **({"ctx": {name: _plain(value) for name, value in found["ctx"].items()}} if "ctx" in found else {}),
        }
        for found in error.errors(include_url=False)[:_MOST_PROBLEMS]
    ]


def check_combination(request: MessagesRequest) -> None:
    """Refuses what the schema allows part by part, and what every upstream would refuse."""
    thinking, choice = request.thinking, request.tool_choice
    thinks = thinking is not None and thinking.type == "enabled"
    if thinks and thinking is not None and thinking.budget_tokens is None:
        raise InvalidRequestError("thinking.budget_tokens is required when thinking is enabled")
    if thinks and thinking is not None and (thinking.budget_tokens or 0) >= request.max_tokens:
        raise InvalidRequestError("max_tokens must be greater than thinking.budget_tokens")
    if choice is None or choice.type not in ("any", "tool"):
        return
    if thinks:
        raise InvalidRequestError("thinking may not be enabled when tool_choice forces tool use")
    if not request.tools:
        raise InvalidRequestError("tool_choice may only be specified while providing tools")
    if choice.type == "tool" and choice.name not in {tool.name for tool in request.tools}:
        raise InvalidRequestError("tool_choice.name is not among tools")


def _not_json(body: bytes) -> InvalidBodyError:
    """What FastAPI says, whose parser tells the place; what that one takes nevertheless has none."""
    position, why = 0, "Invalid JSON text"
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        position, why = error.pos, error.msg
    except (ValueError, RecursionError):
        pass
    problem = {
        "type": "json_invalid",
        "loc": ["body", position],
        "msg": "JSON decode error",
        "input": {},
        "ctx": {"error": why},
    }
    return InvalidBodyError([problem])


def _quoted(value: object) -> object:
    """A part of the request as it was, or a text in its place when it is too large to send back."""
    if isinstance(value, str):
        return _sendable(value if len(value) <= _MOST_INPUT_CHARACTERS else value[:_MOST_INPUT_CHARACTERS] + "…")
    if isinstance(value, Sequence | Mapping):
        try:
            text = msgspec.json.encode(value)
        except (ValueError, TypeError, OverflowError, RecursionError):
            return "(cannot be quoted)"
        return value if len(text) <= _MOST_INPUT_CHARACTERS else "(too large to be quoted)"
    return value


def _sendable(text: str) -> str:
    """JSON may hold halves of surrogate pairs, which UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
