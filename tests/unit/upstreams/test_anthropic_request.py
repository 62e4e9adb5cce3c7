"""Neutral generations as Anthropic Messages requests: the tables of the translation."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.catalog import Option
from services.routing_and_inference.ports import UpstreamFailure
from services.routing_and_inference.upstreams import tool_ids
from services.routing_and_inference.upstreams.anthropic_request import write_request
from tests.builders import generation, upstream_request

ANTHROPIC, OPENAI = pb.DIALECT_ANTHROPIC, pb.DIALECT_OPENAI
USER, ASSISTANT, SYSTEM = pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_SYSTEM
Choice, Reasoning = pb.ToolChoice, pb.Reasoning


def text(value: str, **more: Any) -> pb.ContentBlock:
    return pb.ContentBlock(text=pb.TextBlock(text=value), **more)


def call(call_id: str, arguments: str = '{"x": 1}') -> pb.ContentBlock:
    return pb.ContentBlock(tool_call=pb.ToolCallBlock(id=call_id, name="f", arguments_json=arguments))


def result(call_id: str, *content: pb.ContentBlock, is_error: bool = False) -> pb.ContentBlock:
    return pb.ContentBlock(tool_result=pb.ToolResultBlock(tool_call_id=call_id, content=content, is_error=is_error))


def turn(role: "pb.Role.ValueType", *content: pb.ContentBlock) -> pb.Message:
    return pb.Message(role=role, content=content)


def body(made: pb.Generation, dialect: "pb.Dialect.ValueType" = OPENAI, **options: Option) -> Any:
    request = upstream_request(made, upstream="anthropic", dialect=dialect, options=options)
    return json.loads(write_request(request).body)


def t(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def use(call_id: str, value: Any = None) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": "f", "input": {"x": 1} if value is None else value}


def answered(call_id: str, *content: Any, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "tool_result", "tool_use_id": call_id}
    return {**made, "content": list(content), **more} if content else {**made, **more}


@pytest.mark.parametrize(
    ("turns", "system", "messages"),
    [
        pytest.param([turn(SYSTEM, text("Be brief")), turn(USER, text("Hi"))], [t("Be brief")],
                     [("user", [t("Hi")])], id="leading instructions"),
        pytest.param([turn(USER, text("Hi")), turn(SYSTEM, text("In French"))], None,
                     [("user", [t("Hi"), t("In French")])], id="later instructions join the user's turn"),
        pytest.param([turn(USER, text("Go")), turn(ASSISTANT, call("a")), turn(SYSTEM, text("Careful")),
                      turn(USER, result("a", text("1")))], None,
                     [("user", [t("Go")]), ("assistant", [use("a")]), ("user", [answered("a", t("1")), t("Careful")])],
                     id="nothing stands between a call and its result"),
        pytest.param([turn(USER, text("Go")), turn(ASSISTANT, text(""), call("a"), call("b")),
                      turn(USER, result("a", text("1"))), turn(USER, result("b", text("2"))), turn(USER,
                      text("And?"))], None,
                     [("user", [t("Go")]), ("assistant", [use("a"), use("b")]),
                      ("user", [answered("a", t("1")), answered("b", t("2")), t("And?")])],
                      id="results are one turn, first"),
        pytest.param([turn(USER, text("Also"), result("a", is_error=True))], None,
                     [("user", [answered("a", is_error=True), t("Also")])], id="a failed tool without words"),
        pytest.param([turn(ASSISTANT, call("functions.f:0")), turn(USER, result("functions.f:0", text("1")))], None,
                     [("assistant", [use(tool_ids.encode("functions.f:0"))]),
                      ("user", [answered(tool_ids.encode("functions.f:0"), t("1"))])],
                      id="ids are encoded alike on both sides"),
        pytest.param([turn(USER, text("Hi")), turn(ASSISTANT, call("a", ""), call("b", "{oops"), call("c", "[1]"))],
                     None,
                     [("user", [t("Hi")]), ("assistant", [use("a", {}), use("b", {}), use("c", {"value": [1]})])],
                     id="arguments that are no object"),
        pytest.param([turn(USER, text("Hi")), turn(ASSISTANT, text("I think "))], None,
                     [("user", [t("Hi")]), ("assistant", [t("I think")])], id="a prefill loses its trailing space"),
        pytest.param([turn(USER, text("Hi")), turn(ASSISTANT, text("  "))], None, [("user", [t("Hi")])],
                     id="a prefill of spaces is none"),
        pytest.param([turn(USER, text(""))], None, [("user", [t("[content omitted]")])], id="an empty turn"),
        pytest.param([turn(USER, pb.ContentBlock(image=pb.ImageBlock(base64_data="aGk=")),
                      pb.ContentBlock(image=pb.ImageBlock(url="https://x/y")))], None,
                     [("user", [{"type": "image", "source": {"type": "base64", "media_type": "image/jpeg",
                     "data": "aGk="}},
                                {"type": "image", "source": {"type": "url", "url": "https://x/y"}}])], id="images"),
        pytest.param([turn(USER, pb.ContentBlock(document=pb.DocumentBlock(text="b", title="T", context="C")))], None,
                     [("user", [{"type": "document", "title": "T", "context": "C",
                       "source": {"type": "text", "media_type": "text/plain", "data": "b"}}])], id="a document"),
        pytest.param([turn(ASSISTANT, pb.ContentBlock(thinking=pb.ThinkingBlock(text="a")),
                      pb.ContentBlock(thinking=pb.ThinkingBlock(text="b", signature="s")), text("x")),
                      turn(USER, text("y"))], None,
                     [("assistant", [{"type": "thinking", "thinking": "b", "signature": "s"}, t("x")]), ("user",
                     [t("y")])],
                     id="reasoning without proof is dropped"),
        pytest.param([turn(USER, text("Hi", extra_json='{"prompt_cache_breakpoint":1}'),
                     pb.ContentBlock(opaque=pb.OpaqueBlock(
                      dialect=OPENAI, type="mystery", json='{"a":1}')))], None, [("user", [t("Hi")])],
                     id="what only the other dialect knows is dropped"),
    ],
)  # fmt: skip
def test_turns_of_an_openai_caller(turns: list[pb.Message], system: Any, messages: list[Any]) -> None:
    written = body(pb.Generation(messages=turns))
    assert written.get("system") == system
    assert [(message["role"], message["content"]) for message in written["messages"]] == messages


def test_what_an_anthropic_caller_sent_reaches_its_upstream_unchanged() -> None:
    search = '{"type":"search_result","source":"s","title":"t","content":[]}'
    made = pb.Generation(
        messages=[
            turn(SYSTEM, text("Be brief", extra_json='{"cache_control":{"type":"ephemeral"}}')),
            turn(
                USER,
                text("Hi"),
                pb.ContentBlock(opaque=pb.OpaqueBlock(dialect=ANTHROPIC, type="search_result", json=search)),
            ),
            turn(SYSTEM, text("# Environment")),
        ],
        tools=[
            pb.Tool(name="f", parameters_json='{"$schema":"x"}', extra_json='{"defer_loading":true}'),
            pb.Tool(name="web_search", opaque=pb.OpaqueBlock(dialect=ANTHROPIC, type="w", json='{"type":"w"}')),
        ],
        reasoning=Reasoning(mode=Reasoning.MODE_ENABLED, budget_tokens=2000, effort="high", omit_text=True),
        temperature=1.5,
        top_p=0.9,
        top_k=3,
        extra_fields_json={"metadata": '{"user_id":"u"}', "speed": '"fast"'},
    )
    assert body(made, ANTHROPIC, forward_fields=["metadata"], server_tools=["w"]) == {
        "model": "model-1",
        "max_tokens": 8192,
        "system": [{**t("Be brief"), "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [t("Hi"), json.loads(search)]},
            {"role": "system", "content": [t("# Environment")]},
        ],
        "tools": [{"name": "f", "input_schema": {"$schema": "x"}, "defer_loading": True}, {"type": "w"}],
        "thinking": {"type": "enabled", "budget_tokens": 2000, "display": "omitted"},
        "output_config": {"effort": "high"},
        "temperature": 1.5,
        "top_p": 0.9,
        "top_k": 3,
        "metadata": {"user_id": "u"},
    }


TOOL = pb.Tool(name="f", description="d", parameters_json='{"properties":{}}')
WRITTEN_TOOL = {"name": "f", "description": "d", "input_schema": {"properties": {}, "type": "object"}}
SCHEMA = pb.ResponseFormat(json_schema=pb.JsonSchemaFormat(schema_json='{"a":1}'))


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        pytest.param({"max_output_tokens": 9}, {"max_tokens": 9}, id="the limit"),
        pytest.param({"stream": True}, {"stream": True}, id="a stream"),
        pytest.param({"stop_sequences": ["a", " \n", "b"]}, {"stop_sequences": ["a", "b"]},
                     id="stops of spaces are refused"),
        pytest.param({"temperature": 1.7}, {"temperature": 1.0}, id="temperature ends at 1"),
        pytest.param({"temperature": 0.2, "top_p": 0.3}, {"temperature": 0.2}, id="only one of temperature and top_p"),
        pytest.param({"seed": 1, "presence_penalty": 1}, {}, id="unknown sampling is dropped"),
        pytest.param({"tools": [TOOL]}, {"tools": [WRITTEN_TOOL]}, id="a tool"),
        pytest.param({"tools": [TOOL], "tool_choice": Choice(mode=Choice.MODE_REQUIRED)},
                     {"tools": [WRITTEN_TOOL], "tool_choice": {"type": "any"}}, id="required"),
        pytest.param({"tools": [TOOL], "tool_choice": Choice(mode=Choice.MODE_NONE), "parallel_tool_calls": False},
                     {"tools": [WRITTEN_TOOL], "tool_choice": {"type": "none"}}, id="none"),
        pytest.param({"tools": [TOOL], "tool_choice": Choice(mode=Choice.MODE_NAMED, name="f"),
                     "parallel_tool_calls": False},
                     {"tools": [WRITTEN_TOOL], "tool_choice": {"type": "tool", "name": "f",
                     "disable_parallel_tool_use": True}},
                     id="one tool, one call"),
        pytest.param({"tools": [TOOL], "parallel_tool_calls": False},
                     {"tools": [WRITTEN_TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
                     id="one call at most"),
        pytest.param({"tool_choice": Choice(mode=Choice.MODE_REQUIRED)}, {}, id="a choice without tools"),
        pytest.param({"response_format": SCHEMA}, {"output_config": {"format": {"type": "json_schema",
                     "schema": {"a": 1}}}},
                     id="a schema"),
        pytest.param({"reasoning": Reasoning(effort="medium"), "temperature": 0.3},
                     {"thinking": {"type": "enabled", "budget_tokens": 4096}},
                     id="an effort is a budget, without sampling"),
        pytest.param({"reasoning": Reasoning(effort="high"), "max_output_tokens": 1500}, {"max_tokens": 1500},
                     id="no room to reason"),
        pytest.param({"reasoning": Reasoning(effort="none")}, {}, id="no reasoning"),
        pytest.param({"reasoning": Reasoning(effort="high"), "tools": [TOOL],
                     "tool_choice": Choice(mode=Choice.MODE_REQUIRED)},
                     {"tools": [WRITTEN_TOOL], "tool_choice": {"type": "any"}}, id="no reasoning before a forced tool"),
    ],
)  # fmt: skip
def test_settings(fields: dict[str, Any], written: dict[str, Any]) -> None:
    sent = body(generation("Hi", **fields))
    del sent["messages"]
    assert sent == {"model": "model-1", "max_tokens": 8192, **written}


def test_a_json_object_is_asked_for_in_words() -> None:
    made = generation(response_format=pb.ResponseFormat(json_object=pb.JsonObjectFormat()))
    assert "JSON object" in body(made)["system"][0]["text"]


def test_instructions_alone_are_a_question() -> None:
    made = pb.Generation(messages=[turn(SYSTEM, text("Say hi"))])
    assert body(made)["messages"] == [{"role": "user", "content": [t("Say hi")]}]


def test_a_forced_tool_that_the_upstream_cannot_have_is_refused() -> None:
    custom = pb.Tool(name="grep", opaque=pb.OpaqueBlock(dialect=OPENAI, type="custom", json="{}"))
    with pytest.raises(UpstreamFailure, match="rejected"):
        body(generation(tools=[custom], tool_choice=Choice(mode=Choice.MODE_NAMED, name="grep")))


@given(st.text(min_size=1))
def test_any_tool_id_survives(call_id: str) -> None:
    encoded = tool_ids.encode(call_id)
    assert tool_ids.decode(encoded) == call_id
    assert encoded.replace("-", "").replace("_", "").isalnum() or set(encoded) <= {"-", "_"}
    assert encoded.isascii()


@pytest.mark.parametrize("foreign", ["mwsid_!", "mwsid_a", "mwsid_////", "toolu_1"])
def test_an_id_that_we_did_not_write_stays_itself(foreign: str) -> None:
    assert tool_ids.decode(foreign) == foreign


@pytest.mark.parametrize(
    ("kind", "options", "is_sent"),
    [
        pytest.param("web_search_20260318", {}, False, id="a tool that its provider is paid for stays out"),
        pytest.param("code_execution_20260521", {}, False, id="so does one that runs code there"),
        pytest.param("tool_of_2031", {}, False, id="and one that nobody knows the price of"),
        pytest.param("web_search_20260318", {"server_tools": ["web_search_"]}, True, id="unless the upstream has it"),
        pytest.param("bash_20250124", {}, True, id="a tool that the caller runs costs nothing"),
        pytest.param("custom", {}, True, id="nor does one that is still deferred"),
    ],
)
def test_paid_tools_run_where_they_are_priced(kind: str, options: dict[str, Option], is_sent: bool) -> None:
    opaque = pb.OpaqueBlock(dialect=ANTHROPIC, type=kind, json='{"name":"n"}')
    made = generation(tools=[pb.Tool(name="n", opaque=opaque)])
    assert body(made, ANTHROPIC, **options).get("tools") == ([{"name": "n"}] if is_sent else None)
    if not is_sent:
        made.tool_choice.mode, made.tool_choice.name = Choice.MODE_NAMED, "n"
        with pytest.raises(UpstreamFailure, match="rejected"):
            body(made, ANTHROPIC, **options)


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        pytest.param({"only_between_tools": True}, {"type": "between_tools"}, id="only after the results of tools"),
        pytest.param({"budget_tokens": 2048, "summarize_text": True},
                     {"type": "enabled", "budget_tokens": 2048, "display": "summarized"}, id="summarized"),
        pytest.param({"omit_text": True}, {"type": "adaptive", "display": "omitted"}, id="omitted"),
    ],
)  # fmt: skip
def test_reasoning_is_asked_for_as_the_caller_did(fields: dict[str, Any], written: dict[str, Any]) -> None:
    made = generation(reasoning=Reasoning(mode=Reasoning.MODE_ENABLED, **fields))
    assert body(made, ANTHROPIC)["thinking"] == written
