"""Bodies that are refused: the field is named, in both shapes."""

import contextlib
import json
from typing import Any

import pytest

from edge.anthropic import errors as anthropic
from edge.anthropic.requests import read_count_tokens, read_messages
from edge.openai import errors as openai
from edge.openai.requests import read_chat
from edge.problems import BadFieldError

USER = {"role": "user", "content": "hi"}
MESSAGES: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [USER]}
CHAT: dict[str, Any] = {"model": "m", "messages": [USER]}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def _body(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"{", "The request body is not valid JSON", id="cut JSON"),
        pytest.param(b'{"model":"\xff"}', "The request body is not valid JSON", id="not UTF-8"),
        pytest.param(b"[]", "Input should be a valid dictionary", id="not an object"),
        pytest.param({"model": "m", "messages": [USER]}, "max_tokens: Field required", id="no max_tokens"),
        pytest.param({"max_tokens": 1, "messages": [USER]}, "model: Field required", id="no model"),
        pytest.param({"model": "m", "max_tokens": 1}, "messages: Field required", id="no messages"),
        pytest.param(MESSAGES | {"messages": []}, "messages: at least one message is required", id="empty messages"),
        pytest.param(MESSAGES | {"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 0", id="-1"),
        pytest.param(MESSAGES | {"max_tokens": 1.5}, "max_tokens: Input should be a valid integer", id="1.5"),
        pytest.param(MESSAGES | {"max_tokens": None}, "max_tokens: Field required", id="null max_tokens"),
        pytest.param(MESSAGES | {"temperature": 2}, "temperature: Input should be less than or equal to 1.0", id="hot"),
        pytest.param(MESSAGES | {"stream": "yes"}, "stream: Input should be a valid boolean", id="stream as text"),
        pytest.param(
            MESSAGES | {"messages": [USER, {"role": "bot", "content": "x"}]},
            "messages.1.role: Input should be 'user', 'assistant' or 'system'",
            id="unknown role",
        ),
        pytest.param(
            MESSAGES | {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content: Input should be a valid string or list",
            id="content of a wrong type",
        ),
        pytest.param(
            MESSAGES | {"messages": [{"role": "user", "content": ""}]},
            "messages.0.content: user messages must have non-empty content",
            id="empty user message",
        ),
        pytest.param(
            MESSAGES | {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
            "messages.0.content.0.type: Field required",
            id="block without a type",
        ),
        pytest.param(
            MESSAGES | {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text.text: Field required",
            id="text block without text",
        ),
        pytest.param(
            MESSAGES | {"messages": [{"role": "user", "content": [{"type": "text", "zz": 1}]}]},
            "messages.0.content.0.text.text: Field required",
            id="text block without text, with an unknown member",
        ),
        pytest.param(
            MESSAGES | {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "ftp"}}]}]},
            "messages.0.content.0.image.source.type: Input should be one of 'base64', 'url', 'file'",
            id="unknown image source",
        ),
        pytest.param(
            MESSAGES | {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]},
            "messages.0.content.0.image.source.url.url: Field required",
            id="image without a URL",
        ),
        pytest.param(
            MESSAGES
            | {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "n", "input": 1}]}
                ]
            },
            "messages.0.content.0.tool_use.input: Input should be a valid dictionary",
            id="tool input that is no object",
        ),
        pytest.param(
            MESSAGES | {"tools": [{"name": "f"}]}, "tools.0.custom.input_schema: Field required", id="no schema"
        ),
        pytest.param(MESSAGES | {"tools": [TOOL, {}]}, "tools.1.custom.name: Field required", id="no tool name"),
        pytest.param(
            MESSAGES | {"tools": [TOOL | {"input_schema": "x"}]},
            "tools.0.custom.input_schema: Input should be a JSON Schema object with type 'object'",
            id="schema that is text",
        ),
        pytest.param(
            MESSAGES | {"tools": [TOOL | {"input_schema": {"type": "string"}}]},
            "tools.0.custom.input_schema.type: Input should be 'object'",
            id="schema of a string",
        ),
        pytest.param(
            MESSAGES | {"tools": [TOOL | {"input_schema": {"type": "object", "properties": []}}]},
            "tools.0.custom.input_schema.properties: Input should be a valid dictionary",
            id="schema with a list of properties",
        ),
        pytest.param(
            MESSAGES | {"tools": [TOOL | {"input_schema": {"type": "object", "properties": {"a": 1}}}]},
            "tools.0.custom.input_schema.properties.a: Input should be a JSON Schema",
            id="property that is no schema",
        ),
        pytest.param(
            MESSAGES
            | {"tools": [TOOL | {"input_schema": {"type": "object", "properties": {"a": {"type": "strnig"}}}}]},
            "tools.0.custom.input_schema.properties.a.type: 'strnig' is not an accepted value",
            id="property of a type that does not exist",
        ),
        pytest.param(
            MESSAGES | {"tools": [TOOL, TOOL | {"input_schema": {"anyOf": [True, {"items": [{"not": 5}]}]}}]},
            "tools.1.custom.input_schema.anyOf.1.items.0.not: Input should be a JSON Schema",
            id="schema that is bad far down",
        ),
        pytest.param(
            MESSAGES | {"tools": [TOOL | {"input_schema": {"$defs": {"a": {"enum": "x"}}}}]},
            "tools.0.custom.input_schema.$defs.a.enum: Input should be a valid list",
            id="definition with an enum that is no list",
        ),
        pytest.param(
            MESSAGES | {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}},
            "tool_choice.name: Tool 'g' not found in provided tools",
            id="choice of an unknown tool",
        ),
        pytest.param(
            MESSAGES | {"thinking": {"type": "enabled"}},
            "thinking.enabled.budget_tokens: Field required",
            id="thinking without a budget",
        ),
        pytest.param(
            MESSAGES | {"tool_choice": {"type": "x"}}, "tool_choice.type: 'x' is not an accepted value", id="x"
        ),
    ],
)
def test_messages(body: Any, expected: str) -> None:
    with pytest.raises(BadFieldError) as caught:
        read_messages(_body(body))

    assert json.loads(anthropic.render(caught.value, "id").body)["error"]["message"] == expected


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        pytest.param(b"{", None, None, id="cut JSON"),
        pytest.param(b"3", None, "invalid_type", id="not an object"),
        pytest.param({"messages": [USER]}, "model", "missing_required_parameter", id="no model"),
        pytest.param({"model": "m"}, "messages", "missing_required_parameter", id="no messages"),
        pytest.param(CHAT | {"messages": []}, "messages", "empty_array", id="empty messages"),
        pytest.param(CHAT | {"n": 2}, "n", "unsupported_value", id="two choices"),
        pytest.param(CHAT | {"n": 0}, "n", "integer_below_min_value", id="no choice"),
        pytest.param(CHAT | {"max_tokens": -1}, "max_tokens", "integer_below_min_value", id="fewer than no tokens"),
        pytest.param(
            CHAT | {"tools": [{"type": "custom", "custom": {"name": 5}}]},
            "tools[0].custom.name",
            "invalid_type",
            id="tool of another kind with a number for a name",
        ),
        pytest.param(CHAT | {"temperature": "hot"}, "temperature", "invalid_type", id="temperature as text"),
        pytest.param(CHAT | {"top_p": 2}, "top_p", "decimal_above_max_value", id="top_p"),
        pytest.param(CHAT | {"messages": [{"role": "user"}]}, "messages[0].content", "invalid_type", id="no content"),
        pytest.param(
            CHAT | {"messages": [{"role": "x", "content": ""}]}, "messages[0].role", "invalid_value", id="role"
        ),
        pytest.param(
            CHAT | {"messages": [{"role": "tool", "content": "r"}]},
            "messages[0].tool_call_id",
            "missing_required_parameter",
            id="tool result without an id",
        ),
        pytest.param(
            CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].image_url.url",
            "invalid_value",
            id="image URL of an unknown kind",
        ),
        pytest.param(
            CHAT | {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
            "tools[0].function.parameters",
            "invalid_value",
            id="schema that is text",
        ),
        pytest.param(
            CHAT | {"tools": [{"type": "function", "function": {"parameters": {}}}]},
            "tools[0].function.name",
            "missing_required_parameter",
            id="function without a name",
        ),
        pytest.param(
            CHAT | {"tools": [{"type": "function"}]},
            "tools[0].function",
            "missing_required_parameter",
            id="no function",
        ),
        pytest.param(
            CHAT
            | {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice.function.name",
            "invalid_value",
            id="choice of an unknown tool",
        ),
        pytest.param(
            CHAT | {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
            id="format without a schema",
        ),
    ],
)
def test_chat(body: Any, param: str | None, code: str | None) -> None:
    with pytest.raises(BadFieldError) as caught:
        read_chat(_body(body))

    error = json.loads(openai.render(caught.value).body)["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_unusual_schemas_are_taken() -> None:
    tuple_items = {"type": ["array", "null"], "items": [{"type": "string"}, True], "additionalItems": False}
    schemas: list[dict[str, Any]] = [
        {},
        {"type": ["object", "null"]},
        {"type": "object", "properties": {"location": "bar", "unit": {"type": "string"}}},
        {"properties": {"type": {"type": "string"}, "required": {"enum": [1, None, {}]}, "a": tuple_items}},
        {"type": "object", "properties": None, "required": None, "items": None, "$comment": 5, "format": 7},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "additionalProperties": {"$ref": "#/$defs/a"}}}},
    ]
    tools = [{"name": f"f{at}", "input_schema": schema} for at, schema in enumerate(schemas)]
    assert len(read_messages(_body(MESSAGES | {"tools": tools})).generation.tools) == len(tools)


def test_numbers_that_nobody_means_are_not_defects() -> None:
    thinking = {"type": "enabled", "budget_tokens": 10**30}
    assert read_count_tokens(_body(MESSAGES | {"max_tokens": 10**30})).generation.max_output_tokens == 2**53 - 1
    body = _body(MESSAGES | {"thinking": thinking, "tools": [TOOL]})
    assert read_messages(body).generation.reasoning.budget_tokens == 2**53 - 1


def test_counting_needs_no_max_tokens() -> None:
    assert not read_count_tokens(_body({"model": "m", "messages": [USER]})).generation.HasField("max_output_tokens")


@pytest.mark.parametrize("depth", [500, 50_000])
def test_deep_nesting_is_harmless(depth: int) -> None:
    body = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}],"extra":%b%b}' % (
        b"[" * depth,
        b"]" * depth,
    )
    with contextlib.nullcontext() if depth == 500 else pytest.raises(BadFieldError, match="not valid JSON"):
        read_messages(body)
