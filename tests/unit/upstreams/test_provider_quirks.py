"""What providers do otherwise than their dialect says: the catalogue's options, each with the request that it makes."""

import json
from pathlib import Path
from typing import Any

import pytest
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.catalog import Capabilities, Option
from services.routing_and_inference.catalog_file import CatalogError, load
from services.routing_and_inference.ports import FailureKind, UpstreamFailure, UpstreamRequest
from services.routing_and_inference.upstream_options import OPTIONS, PROVIDERS
from services.routing_and_inference.upstreams import anthropic_request, openai_request, tool_ids
from services.routing_and_inference.upstreams.prefill import GO_ON
from tests.builders import fold, generation, profile, read_answer, upstream_request
from tests.fakes import anthropic_frame, openai_chunk, openai_frame

ANTHROPIC, OPENAI = pb.DIALECT_ANTHROPIC, pb.DIALECT_OPENAI
USER, ASSISTANT, SYSTEM = pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_SYSTEM
DONE = b"data: [DONE]\n\n"
QUIRKS: Any = PROVIDERS


def text(value: str) -> pb.ContentBlock:
    return pb.ContentBlock(text=pb.TextBlock(text=value))


def call(call_id: str, name: str = "f") -> pb.ContentBlock:
    return pb.ContentBlock(tool_call=pb.ToolCallBlock(id=call_id, name=name, arguments_json='{"x":1}'))


def result(call_id: str) -> pb.ContentBlock:
    return pb.ContentBlock(tool_result=pb.ToolResultBlock(tool_call_id=call_id, content=[text("ok")]))


def opaque(kind: str, value: Any, dialect: "pb.Dialect.ValueType" = ANTHROPIC) -> pb.ContentBlock:
    return pb.ContentBlock(opaque=pb.OpaqueBlock(dialect=dialect, type=kind, json=json.dumps(value)))


def turns(*said: tuple["pb.Role.ValueType", list[pb.ContentBlock]]) -> pb.Generation:
    return pb.Generation(messages=[pb.Message(role=role, content=content) for role, content in said])


def to_openai(made: pb.Generation, dialect: "pb.Dialect.ValueType" = ANTHROPIC, **options: Option) -> Any:
    request = upstream_request(made, dialect=dialect, options=options, thinking=True)
    return json.loads(openai_request.write_request(request).body)


def to_anthropic(made: pb.Generation, dialect: "pb.Dialect.ValueType" = OPENAI, **options: Option) -> Any:
    request = upstream_request(made, upstream="anthropic", dialect=dialect, options=options)
    return json.loads(anthropic_request.write_request(request).body)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_every_option_of_every_provider_is_one_that_the_catalogue_knows() -> None:
    for name, options in PROVIDERS.items():
        for option, value in options.items():
            assert isinstance(list(value) if isinstance(value, tuple) else value, OPTIONS[option]), (name, option)


CATALOGUE = """
default_profile: dragon
profiles:
  dragon:
    display_name: Dragon
    context_tokens: 1000
    max_output_tokens: 100
    price: {input_nano_usd: 1, output_nano_usd: 1}
    upstreams: [{dialect: openai, base_url: "http://x", provider: PROVIDER, options: {files: true}}]
"""


def test_a_provider_s_quirks_are_defaults_of_its_upstreams(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text(CATALOGUE.replace("PROVIDER", "mistral"))
    (target,) = load(file, lambda name: None).profiles[0].upstreams
    assert target.options == {"stream_usage": False, "tool_ids": "alnum9", "files": True}
    file.write_text(CATALOGUE.replace("PROVIDER", "nobody"))
    with pytest.raises(CatalogError, match="unknown provider 'nobody'"):
        load(file, lambda name: None)


def test_usage_is_asked_for_whatever_the_caller_says_unless_the_provider_refuses() -> None:
    made = generation(stream=True)
    assert to_openai(made, OPENAI)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in to_openai(made, OPENAI, **QUIRKS["mistral"])


def test_a_reasoning_model_gets_no_sampling_and_another_limit() -> None:
    made = generation(temperature=0.5, top_p=0.9, max_output_tokens=9)
    made.messages.insert(0, pb.Message(role=SYSTEM, content=[text("Be brief")]))
    written = to_openai(made, **QUIRKS["openai_reasoning"])
    assert (written["max_completion_tokens"], written["messages"][0]["role"]) == (9, "developer")
    assert not {"temperature", "top_p", "max_tokens"} & written.keys()


def test_an_upstream_without_tool_choice_is_not_told_one() -> None:
    made = generation(tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED), parallel_tool_calls=False)
    made.tools.add(name="f")
    assert {"tool_choice", "parallel_tool_calls"} <= to_openai(made).keys()
    assert not {"tool_choice", "parallel_tool_calls"} & to_openai(made, **QUIRKS["ollama"]).keys()


def test_what_an_upstream_cannot_fetch_or_read_is_said_in_words() -> None:
    image = pb.ContentBlock(image=pb.ImageBlock(url="https://a/b.png"))
    file = pb.ContentBlock(document=pb.DocumentBlock(base64_data="aGk=", title="a.pdf"))
    made = turns((USER, [text("See"), image, file]))
    said = [part["text"] for part in to_openai(made, **QUIRKS["ollama"])["messages"][0]["content"]]
    assert said == ["See", "[image omitted: it is not fetched from addresses]", "[document omitted: a.pdf]"]
    kinds = [part["type"] for part in to_openai(made)["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "file"]


def test_schema_keywords_go_but_properties_of_the_same_name_stay() -> None:
    schema = {
        "$schema": "x",
        "type": "object",
        "properties": {"const": {"const": 1, "type": "integer"}, "list": {"items": {"additionalProperties": False}}},
        "required": ["const"],
        "additionalProperties": False,
    }
    made = generation()
    made.tools.add(name="f", parameters_json=json.dumps(schema))
    (tool,) = to_openai(made, OPENAI, **QUIRKS["gemini"])["tools"]
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {"const": {"type": "integer"}, "list": {"items": {}}},
        "required": ["const"],
    }


def test_earlier_reasoning_goes_back_where_the_upstream_wants_it() -> None:
    thought = pb.ContentBlock(thinking=pb.ThinkingBlock(text="Hm", signature="s"))
    made = turns((USER, [text("a")]), (ASSISTANT, [thought, text("b")]), (USER, [text("c")]))
    assert to_openai(made)["messages"][1] == {"role": "assistant", "content": "b"}
    written = to_openai(made, history_reasoning="reasoning_content")["messages"][1]
    assert written == {"role": "assistant", "content": "b", "reasoning_content": "Hm"}


PREFILLED = turns((USER, [text("a")]), (ASSISTANT, [text("Once")]))


def test_a_prefill_is_continued_by_whatever_means_there_are() -> None:
    last = {"role": "assistant", "content": "Once"}
    plain, vllm = to_openai(PREFILLED), to_openai(PREFILLED, **QUIRKS["vllm"])
    assert (plain["messages"][-1], vllm["messages"][-1]) == (last, last)
    assert (vllm["continue_final_message"], vllm["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in plain
    assert to_anthropic(PREFILLED)["messages"][-1]["role"] == "assistant"
    assert to_anthropic(PREFILLED, prefill=False)["messages"][-1] == user(GO_ON)
    without = profile(capabilities=Capabilities(prefill=False))
    request = upstream_request(PREFILLED)
    unable = UpstreamRequest("id", 1, PREFILLED, ANTHROPIC, without, request.target)
    assert json.loads(openai_request.write_request(unable).body)["messages"][-1] == user(GO_ON)


def test_instructions_inside_the_conversation_keep_their_place() -> None:
    made = turns(
        (SYSTEM, [text("Head")]), (USER, [text("a")]), (ASSISTANT, [call("1")]), (SYSTEM, [text("Now")]),
        (USER, [result("1")]), (SYSTEM, [text("Then")]),
    )  # fmt: skip
    kept = [(m["role"], m["content"]) for m in to_openai(made)["messages"]]
    assert kept == [("system", "Head"), ("user", "a"), ("assistant", None), ("tool", "ok"), ("system", "Now"),
                    ("system", "Then")]  # fmt: skip
    folded = [(m["role"], m["content"]) for m in to_openai(made, system_in_messages="fold")["messages"]]
    assert folded == [("system", "Head"), ("user", "a"), ("assistant", None), ("tool", "ok"), ("user", "Now\n\nThen")]
    roles = [m["role"] for m in to_anthropic(made, ANTHROPIC, system_in_messages="fold")["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert "system" in [m["role"] for m in to_anthropic(made, ANTHROPIC)["messages"]]


def test_tools_that_a_conversation_brings_or_takes_away_reach_other_dialects() -> None:
    added = {"tool": {"type": "tool_definition", "definition": {"name": "g", "input_schema": {"type": "object"}}}}
    removed = {"type": "tool_removal", "tool": {"type": "tool_reference", "tool_name": "f"}}
    made = turns((USER, [text("a")]), (SYSTEM, [opaque("tool_addition", {"type": "tool_addition", **added})]))
    assert [tool["function"]["name"] for tool in to_openai(made)["tools"]] == ["g"]
    made.tools.add(name="f")
    made.messages.add(role=SYSTEM, content=[opaque("tool_removal", removed)])
    assert [tool["function"]["name"] for tool in to_openai(made)["tools"]] == ["g"]
    assert len(to_openai(made)["messages"]) == 1


@pytest.mark.parametrize(
    ("option", "sent"),
    [
        pytest.param("verbatim", "functions.f:0", id="verbatim"),
        pytest.param("encoded", tool_ids.encode("functions.f:0"), id="encoded"),
        pytest.param("alnum9", tool_ids.nine("functions.f:0"), id="nine letters and digits"),
    ],
)
def test_ids_are_rewritten_towards_an_upstream_that_forbids_them(option: str, sent: str) -> None:
    made = turns((USER, [text("a")]), (ASSISTANT, [call("functions.f:0")]), (USER, [result("functions.f:0")]))
    messages = to_openai(made, tool_ids=option)["messages"]
    assert (messages[1]["tool_calls"][0]["id"], messages[2]["tool_call_id"]) == (sent, sent)
    blocks = [m["content"][-1] for m in to_anthropic(made, tool_ids=option)["messages"]]
    assert (blocks[1]["id"], blocks[2]["tool_use_id"]) == (sent, sent)
    request = upstream_request(generation(stream=True), options={"tool_ids": option})
    piece = {"index": 0, "id": sent, "function": {"name": "f", "arguments": "{}"}}
    (heard, _) = fold(read_answer([openai_chunk({"tool_calls": [piece]}), openai_chunk({}, "stop"), DONE], request))
    assert heard[1] == (sent if option == "alnum9" else "functions.f:0")


def test_names_that_an_upstream_does_not_take_come_back_as_they_were() -> None:
    name = "mcp.server/" + "long" * 40
    for upstream, write, longest in (("openai", to_openai, 64), ("anthropic", to_anthropic, 128)):
        made = turns((USER, [text("a")]), (ASSISTANT, [call("1", name)]), (USER, [result("1")]))
        made.tools.add(name=name)
        made.tool_choice.mode, made.tool_choice.name = pb.ToolChoice.MODE_NAMED, name
        written = write(made)
        if upstream == "openai":
            sent = written["tools"][0]["function"]["name"]
            used = written["messages"][1]["tool_calls"][0]["function"]["name"]
            chosen = written["tool_choice"]["function"]["name"]
        else:
            sent = written["tools"][0]["name"]
            used, chosen = written["messages"][1]["content"][0]["name"], written["tool_choice"]["name"]
        assert sent == used == chosen != name
        assert len(sent) <= longest
        made.stream = True
        request = upstream_request(made, upstream=upstream)
        frames = {
            "openai": [openai_chunk({"tool_calls": [{"index": 0, "id": "2", "function": {"name": sent}}]}), DONE],
            "anthropic": [
                anthropic_frame({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use",
                                 "id": "2", "name": sent}}),
                anthropic_frame({"type": "message_stop"}),
            ],
        }  # fmt: skip
        assert fold(read_answer(frames[upstream], request))[0] == ("call", "2", name, "")


def test_an_earlier_call_of_a_tool_that_is_no_longer_offered_is_renamed_too() -> None:
    made = turns((USER, [text("a")]), (ASSISTANT, [call("1", "a.b")]), (USER, [result("1")]))
    name = to_openai(made)["messages"][1]["tool_calls"][0]["function"]["name"]
    assert name.startswith("a_b_")


# ---- stop sequences beyond what an upstream takes ----

STOPS = ["s1", "s2", "s3", "s4", "END", "E"]


def frames_of(*texts: str) -> list[bytes]:
    usage = openai_frame({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    return [*(openai_chunk({"content": piece}) for piece in texts), openai_chunk({}, "stop"), usage, DONE]


@pytest.mark.parametrize(
    ("pieces", "runs"),
    [
        pytest.param(["a EN", "D b"], [("text", "a "), ("finish", "stop_sequence", "E")], id="the first match wins"),
        pytest.param(["no match"], [("text", "no match"), ("finish", "stop")], id="no match"),
        pytest.param(["a STO"], [("text", "a STO"), ("finish", "stop")], id="a beginning that stays one"),
        pytest.param(["a S", "T", "OP b"], [("text", "a "), ("finish", "stop_sequence", "STOP")], id="in three pieces"),
        pytest.param(["STOP"], [("finish", "stop_sequence", "STOP")], id="nothing but the sequence"),
    ],
)
def test_more_stop_sequences_than_an_upstream_takes_are_applied_by_us(
    pieces: list[str], runs: list[tuple[str, ...]]
) -> None:
    stops = [*STOPS[:4], *(["STOP"] if "STO" in "".join(pieces) or "S" in pieces[0] else STOPS[4:])]
    made = generation(stream=True, stop_sequences=stops)
    assert to_openai(made)["stop"] == STOPS[:4]
    assert to_openai(made, most_stops=0)["stop"] == stops
    assert fold(read_answer(frames_of(*pieces), upstream_request(made))) == runs
    assert fold(read_answer(frames_of(*"".join(pieces)), upstream_request(made))) == runs


# ---- one call only ----


def test_an_upstream_that_ignores_the_wish_for_one_call_is_heard_as_if_it_had_not() -> None:
    pieces = [{"index": n, "id": f"c{n}", "function": {"name": "f", "arguments": "{}"}} for n in range(3)]
    frames = [openai_chunk({"tool_calls": pieces}), openai_chunk({}, "tool_calls"), DONE]
    made = generation(stream=True, parallel_tool_calls=False)
    assert fold(read_answer(frames, upstream_request(made))) == [("call", "c0", "f", "{}"), ("finish", "tool_calls")]
    many = fold(read_answer(frames, upstream_request(generation(stream=True))))
    assert [run[1] for run in many] == ["c0", "c1", "c2", "tool_calls"]


# ---- towards Anthropic ----


def test_an_answer_by_schema_may_be_the_input_of_a_forced_tool() -> None:
    made = generation(stream=True)
    made.response_format.json_schema.schema_json = '{"type":"object"}'
    assert to_anthropic(made)["output_config"]["format"] == {"type": "json_schema", "schema": {"type": "object"}}
    written = to_anthropic(made, **QUIRKS["anthropic_compatible"])
    assert written["tool_choice"] == {"type": "tool", "name": "give_answer"}
    assert "output_config" not in written
    request = upstream_request(made, upstream="anthropic", options={"json_schema": "tool"})
    block = {"type": "tool_use", "id": "t", "name": "give_answer", "input": {}}
    piece = {"type": "input_json_delta", "partial_json": '{"a": 1}'}
    frames = [
        anthropic_frame({"type": "content_block_start", "index": 0, "content_block": block}),
        anthropic_frame({"type": "content_block_delta", "index": 0, "delta": piece}),
        anthropic_frame({"type": "content_block_stop", "index": 0}),
        anthropic_frame({"type": "message_delta", "delta": {"stop_reason": "tool_use"}}),
        anthropic_frame({"type": "message_stop"}),
    ]
    heard = [("text", '{"a":1}'), ("finish", "stop")]
    assert fold(read_answer(frames, request)) == heard
    whole = {"type": "message", "content": [{**block, "input": {"a": 1}}], "stop_reason": "tool_use"}
    assert fold(read_answer([json.dumps(whole).encode()], request, whole=True)) == heard


def test_sampling_is_left_out_for_a_version_that_refuses_it() -> None:
    made = generation(temperature=0.5, top_p=0.5, top_k=3)
    assert {"temperature", "top_k"} <= to_anthropic(made, ANTHROPIC).keys()
    written = to_anthropic(made, ANTHROPIC, anthropic_version="2026-10-21")
    assert not {"temperature", "top_p", "top_k"} & written.keys()


def test_the_end_user_is_told_where_metadata_may_pass() -> None:
    made = generation(extra_fields_json={"user": '"u-1"'})
    assert to_anthropic(made, **QUIRKS["anthropic"])["metadata"] == {"user_id": "u-1"}
    assert "metadata" not in to_anthropic(made)


def test_effort_is_said_where_the_upstream_knows_it() -> None:
    made = generation(reasoning=pb.Reasoning(effort="minimal"), max_output_tokens=9000)
    assert to_anthropic(made)["thinking"] == {"type": "enabled", "budget_tokens": 1024}
    assert to_anthropic(made, reasoning="effort")["output_config"] == {"effort": "low"}
    assert not {"thinking", "output_config"} & to_anthropic(made, reasoning="none").keys()


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(turns((USER, [text("a"), opaque("input_audio", {}, OPENAI)])), id="audio"),
        pytest.param(turns((ASSISTANT, [opaque("custom", {}, OPENAI)])), id="a call of a custom tool"),
        pytest.param(
            pb.Generation(
                messages=[pb.Message(role=USER, content=[text("a")])],
                tools=[pb.Tool(name="t", opaque=pb.OpaqueBlock(dialect=OPENAI, type="custom", json="{}"))],
            ),
            id="a custom tool",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_and_not_left_out(made: pb.Generation) -> None:
    with pytest.raises(UpstreamFailure) as refused:
        to_anthropic(made)
    assert (refused.value.kind, bool(refused.value.message)) == (FailureKind.REJECTED, True)
