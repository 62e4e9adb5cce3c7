"""Reading a prompt: what is refused, what counts, and what an image leaves behind."""

import json
from collections.abc import Callable, Mapping

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.bounding import estimated_input_tokens
from services.routing_and_inference.prompt import drop_images, read_prompt
from services.runtime.errors import InvalidRequestError


def generation(*messages: Mapping[str, object], **fields: object) -> pb.Generation:
    return ParseDict({"messages": list(messages), **fields}, pb.Generation())


def user(*content: Mapping[str, object]) -> dict[str, object]:
    return {"role": "ROLE_USER", "content": list(content)}


def text(content: str) -> dict[str, object]:
    return {"text": {"text": content}}


IMAGE = {"image": {"url": "https://example.test/cat.png"}}


@pytest.mark.parametrize(
    ("read", "tokens"),
    [
        pytest.param(generation(user(text("x" * 8))), 2, id="text"),
        pytest.param(generation(user(text("x" * 9))), 3, id="rounded up"),
        pytest.param(generation(user(text("äöü€"))), 1, id="code points and not bytes"),
        pytest.param(generation({"role": "ROLE_SYSTEM", "content": [text("x" * 8)]}, user(text("x"))), 3, id="system"),
        pytest.param(generation(user({"thinking": {"text": "x" * 8, "signature": "s" * 99}})), 2, id="thinking"),
        pytest.param(
            generation(user({"tool_call": {"id": "i" * 99, "name": "name", "arguments_json": '{"a": 1, "b" : 2}'}})),
            5,  # name and {"a":1,"b":2}
            id="a tool call with compact arguments",
        ),
        pytest.param(
            generation(user({"tool_call": {"id": "i", "name": "na", "arguments_json": ""}})), 1, id="empty arguments"
        ),
        pytest.param(
            generation(user({"tool_call": {"id": "i", "name": "name", "arguments_json": "{oops"}})),
            3,
            id="arguments that are not JSON count as they are",
        ),
        pytest.param(
            generation(user({"tool_result": {"tool_call_id": "i", "content": [text("x" * 8), IMAGE]}})),
            1_602,
            id="a tool result with an image",
        ),
        pytest.param(generation(user({"document": {"text": "x" * 8, "title": "abcd"}})), 3, id="a document's text"),
        pytest.param(
            generation(user({"document": {"base64_data": "A" * 9999}}, text("x"))), 1601, id="base64 is no text"
        ),
        pytest.param(generation(user({"document": {"url": "https://x.test"}})), 1600, id="a document elsewhere"),
        pytest.param(
            generation(
                user(text("x")),
                tools=[{"name": "abc", "description": "de", "parameters_json": '{ "type" : "object" }'}],
            ),
            6,  # x abc de {"type":"object"}
            id="a tool",
        ),
        pytest.param(
            generation(
                user(text("xxxx")),
                tools=[
                    {
                        "name": "a",
                        "opaque": {"dialect": "DIALECT_ANTHROPIC", "type": "custom", "json": "{}" + " " * 99},
                    },
                    {"name": "b", "opaque": {"dialect": "DIALECT_ANTHROPIC", "type": "bash_1", "json": '{"b":1}'}},
                ],
            ),
            3,  # xxxx {"b":1}
            id="tools of a kind count, deferred ones do not",
        ),
        pytest.param(generation(user(IMAGE)), 1_600, id="an image"),
        pytest.param(generation(user(text(""))), 1, id="at least one"),
    ],
)
def test_every_kind_of_block_counts(read: pb.Generation, tokens: int) -> None:
    assert estimated_input_tokens(read_prompt(read, has_vision=True).size) == tokens


def test_images_count_nothing_where_nobody_sees_them() -> None:
    prompt = read_prompt(generation(user(IMAGE, text("x" * 8))), has_vision=False)

    assert (estimated_input_tokens(prompt.size), prompt.dropped_images) == (2, 1)


OK = user(text("x"))


@pytest.mark.parametrize(
    ("read", "field"),
    [
        pytest.param(generation(), "messages", id="no messages"),
        pytest.param(generation({"content": [text("x")]}), "messages[0].role", id="no role"),
        pytest.param(generation(user()), "messages[0].content", id="an empty turn of the user"),
        pytest.param(generation(user({})), "messages[0].content[0]", id="a block without a kind"),
        pytest.param(generation(user({"image": {}})), "messages[0].content[0].image", id="an image from nowhere"),
        pytest.param(generation(user({"document": {}})), "messages[0].content[0].document", id="a document too"),
        pytest.param(generation(user({"tool_call": {"name": "a"}})), "messages[0].content[0].tool_call.id", id="no id"),
        pytest.param(
            generation(user({"tool_call": {"id": "a"}})), "messages[0].content[0].tool_call.name", id="no name"
        ),
        pytest.param(
            generation(user({"tool_result": {}})),
            "messages[0].content[0].tool_result.tool_call_id",
            id="a result of nothing",
        ),
        pytest.param(
            generation(user({"tool_result": {"tool_call_id": "a", "content": [{"thinking": {}}]}})),
            "messages[0].content[0].tool_result.content[0]",
            id="a result that thinks",
        ),
        pytest.param(
            generation(user({"opaque": {"json": "[]"}})), "messages[0].content[0].opaque.json", id="opaque is an object"
        ),
        pytest.param(
            generation(user({"text": {"text": "x"}, "extra_json": "{"})),
            "messages[0].content[0].extra_json",
            id="extra fields are an object",
        ),
        pytest.param(generation(OK, tools=[{}]), "tools[0].name", id="a tool without a name"),
        pytest.param(generation(OK, tools=[{"name": "x" * 129}]), "tools[0].name", id="a tool with a long one"),
        pytest.param(
            generation(OK, tools=[{"name": "a", "parameters_json": "[]"}]), "tools[0].parameters_json", id="a list"
        ),
        pytest.param(
            generation(OK, tools=[{"name": "a", "parameters_json": "{"}]),
            "tools[0].parameters_json",
            id="half a schema",
        ),
        pytest.param(generation(OK, max_output_tokens=0), "max_output_tokens", id="no output at all"),
        pytest.param(generation(OK, temperature=2.1), "temperature", id="too hot"),
        pytest.param(generation(OK, temperature="NaN"), "temperature", id="no number"),
        pytest.param(generation(OK, top_p=-0.1), "top_p", id="top_p"),
        pytest.param(generation(OK, top_k=0), "top_k", id="top_k"),
        pytest.param(generation(OK, presence_penalty=3), "presence_penalty", id="presence"),
        pytest.param(generation(OK, frequency_penalty=-3), "frequency_penalty", id="frequency"),
        pytest.param(generation(OK, stop_sequences=["a", ""]), "stop_sequences", id="an empty stop"),
        pytest.param(generation(OK, tool_choice={"mode": "MODE_NAMED"}), "tool_choice.name", id="a choice of nothing"),
        pytest.param(generation(OK, reasoning={"effort": "extreme"}), "reasoning.effort", id="an effort"),
        pytest.param(generation(OK, reasoning={"budget_tokens": 0}), "reasoning.budget_tokens", id="a budget"),
        pytest.param(generation(OK, response_format={}), "response_format", id="a format without a kind"),
        pytest.param(
            generation(OK, response_format={"json_schema": {"schema_json": "1"}}),
            "response_format.json_schema.schema_json",
            id="a schema that is none",
        ),
        pytest.param(generation(OK, extra_fields_json={"x": "{"}), "extra_fields_json[x]", id="an extra field"),
    ],
)
def test_a_broken_rule_names_its_field(read: pb.Generation, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_prompt(read, has_vision=True)

    assert [violation.field for violation in caught.value.violations] == [f"generation.{field}"]


def test_a_wild_request_is_refused_with_a_few_of_its_faults() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_prompt(generation(*[{}] * 5_000), has_vision=True)

    assert len(caught.value.violations) == 20


@pytest.mark.parametrize(
    ("content", "left"),
    [
        pytest.param([IMAGE], ["[image omitted]"], id="a turn of images"),
        pytest.param([IMAGE, text("a"), IMAGE], ["a"], id="a turn with text"),
        pytest.param([text("a")], ["a"], id="a turn without images"),
    ],
)
def test_images_leave_text_or_a_placeholder(content: list[dict[str, object]], left: list[str]) -> None:
    turn = generation(user(*content), user({"tool_result": {"tool_call_id": "i", "content": content}}))
    drop_images(turn)

    assert [block.text.text for block in turn.messages[0].content] == left
    assert [block.text.text for block in turn.messages[1].content[0].tool_result.content] == left


blocks: Callable[..., st.SearchStrategy[dict[str, object]]] = lambda: st.one_of(  # noqa: E731
    st.text(max_size=30).map(text),
    st.just(IMAGE),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3).map(
        lambda value: {"tool_call": {"id": "i", "name": "n", "arguments_json": json.dumps(value, indent=2)}}
    ),
)


@given(st.lists(st.lists(blocks(), min_size=1, max_size=4).map(lambda items: user(*items)), min_size=1, max_size=5))
def test_what_stays_without_images_measures_the_same(messages: list[dict[str, object]]) -> None:
    whole = generation(*messages)
    before = read_prompt(whole, has_vision=False)
    omitted = sum(all("image" in block for block in m["content"]) for m in messages)  # type: ignore[attr-defined]
    drop_images(whole)
    after = read_prompt(whole, has_vision=True)

    assert after.size.images == 0
    assert after.size.ascii_characters == before.size.ascii_characters + omitted * len("[image omitted]")
