"""Every documented field of a Chat Completions request: what becomes of it, one row per field."""

import json
from typing import Any

import pytest
from mws.inference.v1 import generation_pb2 as pb

from edge.openai import errors, schema
from edge.openai.requests import read_chat
from edge.problems import BadFieldError

USER = {"role": "user", "content": "hi"}
CHAT = {"model": "m", "messages": [USER]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
SPEECH = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}

# Translated: any upstream gets it in its own words.
TRANSLATED: dict[str, tuple[Any, Any]] = {
    "max_completion_tokens": (5, lambda made: made.max_output_tokens == 5),
    "max_tokens": (6, lambda made: made.max_output_tokens == 6),
    "stream": (True, lambda made: made.stream),
    "temperature": (0.5, lambda made: made.temperature == 0.5),
    "top_p": (0.5, lambda made: made.top_p == 0.5),
    "top_k": (7, lambda made: made.top_k == 7),
    "seed": (-9007199254740991, lambda made: made.seed == -9007199254740991),
    "presence_penalty": (-2, lambda made: made.presence_penalty == -2),
    "frequency_penalty": (2, lambda made: made.frequency_penalty == 2),
    "stop": (["a", "", "b"], lambda made: list(made.stop_sequences) == ["a", "b"]),
    "reasoning_effort": ("low", lambda made: made.reasoning.effort == "low"),
    "response_format": ({"type": "json_object"}, lambda made: made.response_format.HasField("json_object")),
    "tools": ([TOOL], lambda made: made.tools[0].name == "f"),
    "functions": ([{"name": "g"}], lambda made: made.tools[0].name == "g" and not made.parallel_tool_calls),
}
# Kept for an upstream whose allow list has the name; dropped for every other.
FORWARDED: dict[str, Any] = {
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"50256": -100},
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "x"},
    "web_search_options": {"search_context_size": "low"},
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "moderation": {"model": "m"},
    "min_p": 0.1,
    "guided_json": {"type": "object"},
}
# Read, and of no consequence: they would change nothing here, or only together with another field.
DROPPED: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "modalities": ["text"],
    "audio": {"format": "wav", "voice": "alloy"},
    "stream_options": {"include_usage": True, "include_obfuscation": True},
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "function_call": "auto",
}


def read(**members: Any) -> pb.Generation:
    return read_chat(json.dumps(CHAT | members).encode()).generation


def refusal(**members: Any) -> dict[str, Any]:
    with pytest.raises(BadFieldError) as caught:
        read(**members)
    reply = errors.render(caught.value)
    assert (reply.status, dict(reply.headers)[b"x-should-retry"]) == (400, b"false")
    error: dict[str, Any] = json.loads(reply.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_no_field_is_forgotten() -> None:
    told = {"model", "messages", *TRANSLATED, *FORWARDED, *DROPPED} - {"min_p", "guided_json"}
    assert told == set(schema.ChatRequest.__struct_encode_fields__)


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_field_that_every_upstream_has_is_translated(name: str) -> None:
    value, holds = TRANSLATED[name]
    made = read(**{name: value})
    assert holds(made)
    assert not made.extra_fields_json


@pytest.mark.parametrize("name", FORWARDED)
def test_a_field_of_the_vendor_waits_for_an_allow_list(name: str) -> None:
    made = read(**{name: FORWARDED[name]})
    assert json.loads(made.extra_fields_json[name]) == FORWARDED[name]
    assert list(made.extra_fields_json) == [name]


@pytest.mark.parametrize("name", DROPPED)
def test_a_field_of_no_consequence_is_dropped(name: str) -> None:
    assert read(**{name: DROPPED[name]}) == read()


# What null means in a field that is not the vendor's, only an upstream that knows the field can tell.
@pytest.mark.parametrize("name", sorted({*TRANSLATED, *FORWARDED, *DROPPED} - {"top_k", "min_p", "guided_json"}))
def test_null_is_as_good_as_absent(name: str) -> None:
    assert read(**{name: None}) == read()


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        pytest.param({"n": 2}, "n", "unsupported_value", id="more than one choice"),
        pytest.param({"n": 129}, "n", "integer_above_max_value", id="more choices than exist"),
        pytest.param({"best_of": 3}, "best_of", "unsupported_value", id="the best of several"),
        pytest.param({"modalities": ["text", "audio"]}, "modalities", "unsupported_value", id="a spoken answer"),
        pytest.param({"modalities": ["smell"]}, "modalities[0]", "invalid_value", id="unknown modality"),
        pytest.param({"stop": list("abcde")}, "stop", "array_above_max_length", id="five stop sequences"),
        pytest.param({"stop": 5}, "stop", "invalid_type", id="stop as a number"),
        pytest.param({"temperature": 2.1}, "temperature", "decimal_above_max_value", id="too hot"),
        pytest.param({"temperature": -1}, "temperature", "decimal_below_min_value", id="too cold"),
        pytest.param({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value", id="top_logprobs"),
        pytest.param({"logit_bias": {"1": 101}}, "logit_bias", "integer_above_max_value", id="logit_bias"),
        pytest.param({"logprobs": "yes"}, "logprobs", "invalid_type", id="logprobs as text"),
        pytest.param({"metadata": {"a": 1}}, "metadata", "invalid_type", id="metadata that is no text"),
        pytest.param({"verbosity": "loud"}, "verbosity", "invalid_value", id="verbosity"),
        pytest.param({"reasoning_effort": "hard"}, "reasoning_effort", "invalid_value", id="reasoning_effort"),
        pytest.param({"service_tier": 1}, "service_tier", "invalid_type", id="service_tier"),
        pytest.param({"audio": "loud"}, "audio", "invalid_type", id="audio"),
        pytest.param({"prediction": "x"}, "prediction", "invalid_type", id="prediction"),
        pytest.param({"stream_options": True}, "stream_options", "invalid_type", id="stream_options"),
        pytest.param({"parallel_tool_calls": 1}, "parallel_tool_calls", "invalid_type", id="parallel_tool_calls"),
        pytest.param({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "invalid_value", id="tool_choice"),
        pytest.param(
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice.allowed_tools.tools",
            "invalid_value",
            id="no tool allowed",
        ),
        pytest.param({"functions": [{}]}, "functions[0].name", "missing_required_parameter", id="function, no name"),
        pytest.param({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", id="format"),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "missing_required_parameter",
            id="schema without a name",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A"}}]}]},
            "messages[0].content[0].input_audio.format",
            "missing_required_parameter",
            id="speech of an unknown format",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
            "messages[0].content[0].type",
            "missing_required_parameter",
            id="part without a type",
        ),
        pytest.param(
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "c", "type": "function"}]}]},
            "messages[1].tool_calls[0].function",
            "missing_required_parameter",
            id="call without a function",
        ),
    ],
)
def test_a_refusal_names_its_field(members: dict[str, Any], param: str, code: str) -> None:
    error = refusal(**members)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert f"'{param}'" in error["message"]


def test_numbers_are_called_what_they_are() -> None:
    assert refusal(n=0)["message"] == "Invalid 'n': integer below minimum value. Expected a value >= 1."
    assert refusal(top_p=2)["message"] == "Invalid 'top_p': decimal above maximum value. Expected a value <= 1."


def test_the_newer_limit_of_tokens_wins() -> None:
    assert read(max_completion_tokens=3, max_tokens=9).max_output_tokens == 3
    assert read(max_completion_tokens=None, max_tokens=9).max_output_tokens == 9


def test_every_role_has_its_place() -> None:
    turns = [
        {"role": "developer", "content": "d", "name": "n"},
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": [{"type": "text", "text": "u"}, IMAGE, SPEECH]},
        {"role": "assistant", "content": None, "refusal": "no", "audio": {"id": "a"}},
        {"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}},
        {"role": "function", "name": "g", "content": "r"},
    ]
    messages = read(messages=turns).messages

    roles = [pb.ROLE_SYSTEM, pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_ASSISTANT, pb.ROLE_USER]
    assert [message.role for message in messages] == roles
    assert (messages[0].name, messages[3].content[0].text.text) == ("n", "no")
    speech = messages[2].content[2].opaque
    assert (speech.dialect, json.loads(speech.json)) == (pb.DIALECT_OPENAI, SPEECH)
    assert messages[2].content[1].image.detail == "low"
    assert messages[4].content[0].tool_call.id == messages[5].content[0].tool_result.tool_call_id


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        pytest.param("none", pb.ToolChoice.MODE_NONE, "", id="none"),
        pytest.param("auto", pb.ToolChoice.MODE_AUTO, "", id="auto"),
        pytest.param("required", pb.ToolChoice.MODE_REQUIRED, "", id="required"),
        pytest.param({"type": "function", "function": {"name": "f"}}, pb.ToolChoice.MODE_NAMED, "f", id="function"),
        pytest.param({"type": "custom", "custom": {"name": "c"}}, pb.ToolChoice.MODE_NAMED, "c", id="custom"),
        pytest.param(
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "custom", "custom": {"name": "c"}}]},
            },
            pb.ToolChoice.MODE_REQUIRED,
            "",
            id="allowed",
        ),
    ],
)
def test_every_form_of_tool_choice_is_read(choice: Any, mode: int, name: str) -> None:
    made = read(tools=[TOOL, {"type": "custom", "custom": {"name": "c"}}], tool_choice=choice)
    assert (made.tool_choice.mode, made.tool_choice.name) == (mode, name)
    names = [tool.name for tool in made.tools]
    assert names == (["c"] if isinstance(choice, dict) and "allowed_tools" in choice else ["f", "c"])


def test_what_speaks_of_tools_is_dropped_where_there_are_none() -> None:
    made = read(tools=[], tool_choice="required", parallel_tool_calls=False)
    assert not made.HasField("tool_choice")
    assert not made.HasField("parallel_tool_calls")


def test_unknown_content_reaches_an_upstream_of_the_same_dialect_as_it_came() -> None:
    part = {"type": "video_url", "video_url": {"url": "https://example.org/v"}}
    extended = {"type": "text", "text": "t", "annotations": [1]}
    first, second = read(messages=[{"role": "user", "content": [part, extended]}]).messages[0].content

    assert (first.opaque.type, json.loads(first.opaque.json)) == ("video_url", part)
    assert (second.text.text, json.loads(second.extra_json)) == ("t", {"annotations": [1]})


def test_a_format_by_schema_travels_as_it_came() -> None:
    wanted = {"name": "w", "strict": True, "description": "d", "schema": {"type": "object", "b": 1, "a": 2}}
    made = read(response_format={"type": "json_schema", "json_schema": wanted}).response_format.json_schema
    assert (made.name, made.strict, made.description) == ("w", True, "d")
    assert made.schema_json == json.dumps(wanted["schema"])


def test_no_tokens_are_asked_of_nobody() -> None:
    ask = read_chat(json.dumps(CHAT | {"max_completion_tokens": 0}).encode())
    assert ask.generates_nothing
