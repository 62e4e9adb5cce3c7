"""Neutral generations as Chat Completions requests: the tables of the translation."""

import json
from typing import Any

import pytest
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.catalog import Option
from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.routing_and_inference.upstreams.openai_request import write_request
from tests.builders import generation, upstream_request

ANTHROPIC, OPENAI = pb.DIALECT_ANTHROPIC, pb.DIALECT_OPENAI
USER, ASSISTANT, SYSTEM = pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_SYSTEM


def block(**kind: Any) -> pb.ContentBlock:
    return pb.ContentBlock(**kind)


def text(value: str, **more: Any) -> pb.ContentBlock:
    return block(text=pb.TextBlock(text=value), **more)


def call(call_id: str, name: str = "f", arguments: str = '{"x": 1}') -> pb.ContentBlock:
    return block(tool_call=pb.ToolCallBlock(id=call_id, name=name, arguments_json=arguments))


def result(call_id: str, *content: pb.ContentBlock, is_error: bool = False) -> pb.ContentBlock:
    return block(tool_result=pb.ToolResultBlock(tool_call_id=call_id, content=content, is_error=is_error))


def turn(role: "pb.Role.ValueType", *content: pb.ContentBlock, name: str = "") -> pb.Message:
    return pb.Message(role=role, content=content, name=name)


IMAGE = block(image=pb.ImageBlock(base64_data="aGk=", media_type="image/png"))
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
RESULT_LABEL = {"type": "text", "text": "[content of the result of tool call a]"}


def body(
    made: pb.Generation, dialect: "pb.Dialect.ValueType" = ANTHROPIC, thinking: bool = False, **options: Option
) -> Any:
    return json.loads(write_request(upstream_request(made, dialect=dialect, thinking=thinking, options=options)).body)


def tool_message(call_id: str, content: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def calls_message(*ids: str, content: str | None = None) -> dict[str, Any]:
    made = [{"id": i, "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}} for i in ids]
    return {"role": "assistant", "content": content, "tool_calls": made}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("turns", "messages"),
    [
        pytest.param([turn(USER, text("Hi"))], [user("Hi")], id="one text is a string"),
        pytest.param([turn(USER, text("a"), text("b"))], [user([{"type": "text", "text": "a"}, {"type": "text",
                     "text": "b"}])],
                     id="several texts are parts"),
        pytest.param([turn(SYSTEM, text("Be"), text("brief")), turn(USER, text("Hi"))],
                     [{"role": "system", "content": "Be\n\nbrief"}, user("Hi")], id="system blocks are joined"),
        pytest.param([turn(SYSTEM, text("x-anthropic-billing-header: cc=1"), text("Be brief")), turn(USER, text("Hi"))],
                     [{"role": "system", "content": "Be brief"}, user("Hi")], id="the billing line is dropped"),
        pytest.param([turn(USER, text("Hi")), turn(SYSTEM, text("Now in French"))],
                     [user("Hi"), {"role": "system", "content": "Now in French"}],
                     id="a later system turn stays in place"),
        pytest.param([turn(USER, text("Look"), IMAGE)], [user([{"type": "text", "text": "Look"}, IMAGE_PART])],
                     id="an image"),
        pytest.param([turn(USER, block(image=pb.ImageBlock(base64_data="aGk=")))],
                     [user([{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,aGk="}}])],
                     id="an image without type is a JPEG"),
        pytest.param([turn(USER, block(image=pb.ImageBlock(url="https://x/y.png", detail="low")))],
                     [user([{"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}])],
                     id="an image by its address"),
        pytest.param([turn(USER, block(document=pb.DocumentBlock(text="body", title="T", context="C")))],
                     [user("T\nC\nbody")], id="a text document"),
        pytest.param([turn(USER, block(document=pb.DocumentBlock(base64_data="aGk=", media_type="application/pdf",
                      title="a.pdf")))],
                     [user([{"type": "file", "file": {"filename": "a.pdf",
                     "file_data": "data:application/pdf;base64,aGk="}}])],
                     id="a PDF"),
        pytest.param([turn(USER, block(opaque=pb.OpaqueBlock(dialect=ANTHROPIC, type="search_result", json="{}")))],
                     [user("[content omitted]")], id="content of another dialect leaves a placeholder"),
        pytest.param([turn(USER, block(opaque=pb.OpaqueBlock(
                         dialect=ANTHROPIC, type="search_result", json="{}", text="Found"))),
                      turn(ASSISTANT, call("a")),
                      turn(USER, result("a", block(opaque=pb.OpaqueBlock(
                         dialect=ANTHROPIC, type="document", json="{}", text="Read"))))],
                     [user("Found"), calls_message("a"), tool_message("a", "Read")],
                     id="or what it says"),
        pytest.param([turn(USER, text("Go")), turn(ASSISTANT, text("On it"), call("a")), turn(USER, result("a",
                     text("42")))],
                     [user("Go"), calls_message("a", content="On it"), tool_message("a", "42")], id="a tool turn"),
        pytest.param([turn(ASSISTANT, call("a"), call("b")), turn(USER, text("Also"), result("a", text("1")),
                      result("b", text("2")))],
                     [calls_message("a", "b"), tool_message("a", "1"), tool_message("b", "2"), user("Also")],
                     id="results come before the user's text"),
        pytest.param([turn(ASSISTANT, call("a"), call("b")), turn(USER, result("a", text("see"), IMAGE), result("b",
                     text("2")))],
                     [calls_message("a", "b"), tool_message("a", "see"), tool_message("b", "2"),
                      user([RESULT_LABEL, IMAGE_PART])], id="an image of a result follows all results"),
        pytest.param([turn(ASSISTANT, call("a")), turn(SYSTEM, text("Careful")), turn(USER, result("a", text("1")))],
                     [calls_message("a"), tool_message("a", "1"), {"role": "system", "content": "Careful"}],
                     id="nothing stands between a call and its result"),
        pytest.param([turn(ASSISTANT, call("a")), turn(USER, result("a"))], [calls_message("a"), tool_message("a", "")],
                     id="a result without content"),
        pytest.param([turn(ASSISTANT, call("a")), turn(USER, result("a", text("boom"), is_error=True))],
                     [calls_message("a"), tool_message("a", "Error: boom")], id="a failed tool says so"),
        pytest.param([turn(ASSISTANT, call("a")), turn(USER, result("a", text("Error: boom"), is_error=True))],
                     [calls_message("a"), tool_message("a", "Error: boom")], id="a failure that says so is left alone"),
        pytest.param([turn(ASSISTANT, call("a")), turn(USER, result("a", text("x"), text("y")))],
                     [calls_message("a"), tool_message("a", "x\ny")], id="texts of a result are joined by lines"),
        pytest.param([turn(ASSISTANT, call("functions.f:0"))], [calls_message("functions.f:0")],
                     id="tool ids stay verbatim"),
        pytest.param([turn(USER, text("a")), turn(USER, text("b"))], [user("a\n\nb")],
                     id="adjacent user turns are one"),
        pytest.param([turn(ASSISTANT, text("a")), turn(ASSISTANT, call("a"))], [calls_message("a", content="a")],
                     id="adjacent answers are one"),
        pytest.param([turn(ASSISTANT, block(thinking=pb.ThinkingBlock(text="Hm", signature="s")),
                      block(redacted_thinking=pb.RedactedThinkingBlock(data="x")), text("Hi"))],
                     [{"role": "assistant", "content": "Hi"}], id="reasoning is not sent back"),
        pytest.param([turn(USER, text("Hi")), turn(ASSISTANT, text("I"))], [user("Hi"), {"role": "assistant",
                     "content": "I"}],
                     id="a prefill is the last message"),
        pytest.param([turn(ASSISTANT)], [{"role": "assistant", "content": ""}], id="an empty answer"),
    ],
)  # fmt: skip
def test_turns_of_an_anthropic_caller(turns: list[pb.Message], messages: list[Any]) -> None:
    assert body(pb.Generation(messages=turns))["messages"] == messages


@pytest.mark.parametrize(
    ("turns", "messages"),
    [
        pytest.param([turn(USER, text("a"), name="ann"), turn(USER, text("b"))], [{**user("a"), "name": "ann"},
                     user("b")],
                     id="adjacent turns and names stay"),
        pytest.param([turn(USER, text("a", extra_json='{"prompt_cache_breakpoint": {}}'))],
                     [user([{"type": "text", "text": "a", "prompt_cache_breakpoint": {}}])],
                     id="unknown members ride along"),
        pytest.param([turn(USER, block(opaque=pb.OpaqueBlock(dialect=OPENAI, type="input_audio",
                      json='{"type":"input_audio","input_audio":{"data":"x"}}')))],
                     [user([{"type": "input_audio", "input_audio": {"data": "x"}}])], id="unknown parts ride along"),
        pytest.param([turn(ASSISTANT, block(tool_call=pb.ToolCallBlock(id="a", name="f", arguments_json="{}"),
                      extra_json='{"extra_content":{"sig":1}}'))],
                     [{"role": "assistant", "content": None, "tool_calls": [{"extra_content": {"sig": 1}, "id": "a",
                       "type": "function", "function": {"name": "f", "arguments": "{}"}}]}],
                     id="a provider's signature on a call is echoed"),
    ],
)  # fmt: skip
def test_turns_of_an_openai_caller_pass_unchanged(turns: list[pb.Message], messages: list[Any]) -> None:
    assert body(pb.Generation(messages=turns), OPENAI)["messages"] == messages


def with_tools(*tools: pb.Tool, **fields: Any) -> pb.Generation:
    return generation("Hi", tools=tools, **fields)


Choice, Reasoning = pb.ToolChoice, pb.Reasoning
F = pb.Tool(name="f", description="d", parameters_json='{"type":"object","properties":{}}')
F_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
SERVER_TOOL = pb.Tool(
    name="web_search", opaque=pb.OpaqueBlock(dialect=ANTHROPIC, type="web_search_20250305", json="{}")
)


@pytest.mark.parametrize(
    ("made", "fields"),
    [
        pytest.param(generation(max_output_tokens=5), {"max_tokens": 5}, id="the limit"),
        pytest.param(generation(stream=True), {"stream": True, "stream_options": {"include_usage": True}},
                     id="a stream"),
        pytest.param(generation(stop_sequences=list("abcdef")), {"stop": ["a", "b", "c", "d"]},
                     id="at most four stops"),
        pytest.param(generation(temperature=1.5, top_p=0.5, seed=3, presence_penalty=1, frequency_penalty=-1),
                     {"temperature": 1.5, "top_p": 0.5, "seed": 3, "presence_penalty": 1.0, "frequency_penalty": -1.0},
                     id="sampling"),
        pytest.param(generation(top_k=5), {}, id="top_k is unknown here"),
        pytest.param(with_tools(F), {"tools": [F_TOOL]}, id="a tool"),
        pytest.param(with_tools(pb.Tool(name="f")), {"tools": [{"type": "function", "function": {"name": "f",
                     "parameters":
                     {"type": "object", "properties": {}}}}]}, id="a tool without schema"),
        pytest.param(with_tools(pb.Tool(name="f", parameters_json='{"$schema":"x","additionalProperties":false}')),
                     {"tools": [{"type": "function", "function": {"name": "f", "parameters":
                     {"additionalProperties": False, "type": "object", "properties": {}}}}]},
                     id="a schema is completed"),
        pytest.param(with_tools(pb.Tool(name="f", parameters_json='{"type":"object","properties":{}}', strict=True)),
                     {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters":
                     {"type": "object", "properties": {}}}}]}, id="a strict tool"),
        pytest.param(with_tools(F, SERVER_TOOL), {"tools": [F_TOOL]}, id="server tools of another dialect are unseen"),
        pytest.param(generation(tool_choice=Choice(mode=Choice.MODE_REQUIRED), parallel_tool_calls=False), {},
                     id="without tools there is nothing to choose"),
        pytest.param(with_tools(F, tool_choice=Choice(mode=Choice.MODE_AUTO)), {"tools": [F_TOOL],
                     "tool_choice": "auto"},
                     id="auto"),
        pytest.param(with_tools(F, tool_choice=Choice(mode=Choice.MODE_REQUIRED)),
                     {"tools": [F_TOOL], "tool_choice": "required"}, id="required"),
        pytest.param(with_tools(F, tool_choice=Choice(mode=Choice.MODE_NONE)), {"tools": [F_TOOL],
                     "tool_choice": "none"},
                     id="none"),
        pytest.param(with_tools(F, tool_choice=Choice(mode=Choice.MODE_NAMED, name="f"), parallel_tool_calls=False),
                     {"tools": [F_TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}},
                      "parallel_tool_calls": False}, id="one tool, one call"),
        pytest.param(generation(response_format=pb.ResponseFormat(json_object=pb.JsonObjectFormat())),
                     {"response_format": {"type": "json_object"}}, id="a JSON object"),
        pytest.param(generation(response_format=pb.ResponseFormat(json_schema=pb.JsonSchemaFormat(schema_json='{"a":1}'))),
                     {"response_format": {"type": "json_schema", "json_schema": {"name": "output", "schema": {"a": 1},
                      "strict": True}}}, id="a schema of the other dialect"),
        pytest.param(generation(response_format=pb.ResponseFormat(json_schema=pb.JsonSchemaFormat(name="n",
                     schema_json="{}",
                     strict=False, description="d"))), {"response_format": {"type": "json_schema", "json_schema":
                     {"name": "n", "schema": {}, "strict": False, "description": "d"}}}, id="a named schema"),
        pytest.param(generation(reasoning=Reasoning(mode=Reasoning.MODE_ENABLED, budget_tokens=9000)), {},
                     id="reasoning of a profile that does not reason"),
        pytest.param(generation(extra_fields_json={"logit_bias": "{}"}), {}, id="unknown fields of another dialect"),
    ],
)  # fmt: skip
def test_settings(made: pb.Generation, fields: dict[str, Any]) -> None:
    assert body(made) == {"model": "model-1", "messages": body(made)["messages"], **fields}


@pytest.mark.parametrize(
    ("reasoning", "effort"),
    [
        pytest.param(Reasoning(mode=Reasoning.MODE_DISABLED), "none", id="off"),
        pytest.param(Reasoning(mode=Reasoning.MODE_ENABLED, budget_tokens=1024), "low", id="a small budget"),
        pytest.param(Reasoning(mode=Reasoning.MODE_ENABLED, budget_tokens=4096), "medium", id="a budget"),
        pytest.param(Reasoning(mode=Reasoning.MODE_ENABLED, budget_tokens=32000), "high", id="a large budget"),
        pytest.param(Reasoning(effort="xhigh"), "high", id="an effort that few know"),
        pytest.param(Reasoning(mode=Reasoning.MODE_ADAPTIVE), None, id="adaptive says nothing"),
    ],
)
def test_reasoning_of_a_thinking_profile(reasoning: pb.Reasoning, effort: str | None) -> None:
    assert body(generation(reasoning=reasoning), thinking=True).get("reasoning_effort") == effort


def test_options_of_the_upstream_change_the_form() -> None:
    made = generation(max_output_tokens=5, stream=True, top_k=7, reasoning=Reasoning(mode=Reasoning.MODE_DISABLED))
    made.extra_fields_json["min_p"] = "0.1"
    made.extra_fields_json["store"] = "true"
    written = body(
        made,
        OPENAI,
        max_tokens_field="max_completion_tokens",
        stream_usage=False,
        forward_fields=["min_p", "top_k", "model"],
        reasoning="enable_thinking",
    )
    del written["messages"]
    assert written == {
        "model": "model-1",
        "max_completion_tokens": 5,
        "stream": True,
        "min_p": 0.1,
        "top_k": 7,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_long_and_odd_tool_names_are_shortened_and_read_back() -> None:
    long, odd = "a" * 100, "mcp.server/tool"
    made = with_tools(pb.Tool(name=long), pb.Tool(name=odd), tool_choice=Choice(mode=Choice.MODE_NAMED, name=long))
    made.messages.add(role=ASSISTANT).content.append(call("a", odd))
    written = write_request(upstream_request(made))
    sent = json.loads(written.body)
    names = [tool["function"]["name"] for tool in sent["tools"]]
    assert all(len(name) <= 64 and "." not in name for name in names)
    assert [written.tool_names[name] for name in names] == [long, odd]
    assert sent["tool_choice"]["function"]["name"] == names[0]
    assert sent["messages"][-1]["tool_calls"][0]["function"]["name"] == names[1]


def test_a_forced_tool_that_the_upstream_cannot_have_is_refused() -> None:
    with pytest.raises(UpstreamFailure) as refused:
        body(with_tools(SERVER_TOOL, tool_choice=Choice(mode=Choice.MODE_NAMED, name="web_search")))
    assert (refused.value.kind, refused.value.retryable) == (FailureKind.REJECTED, False)


def test_a_callers_schema_is_sent_as_it_came() -> None:
    schema = '{ "type":"object", "properties":{"b":{},"a":{}}, "x":1.0 }'
    made = with_tools(pb.Tool(name="f", parameters_json=schema))
    assert schema.encode() in write_request(upstream_request(made)).body
