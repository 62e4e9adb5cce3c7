"""What a Messages request may hold, member by member: where it ends up, and how a fault in it is named."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mws.inference.v1 import generation_pb2 as pb

from edge.anthropic import errors
from edge.anthropic.requests import read_messages
from edge.anthropic.schema import MessagesRequest
from edge.problems import BadFieldError

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
CACHE = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
BASE: dict[str, Any] = {"model": "m", "max_tokens": 5000, "messages": [USER]}


def read(**members: Any) -> pb.Generation:
    return read_messages(json.dumps(BASE | members).encode()).generation


def fault(**members: Any) -> str:
    with pytest.raises(BadFieldError) as caught:
        read(**members)
    return str(json.loads(errors.render(caught.value, "id").body)["error"]["message"])


def said(*blocks: Any, role: str = "user") -> list[Any]:
    return [{"role": role, "content": list(blocks)}]


def block(value: Any) -> pb.ContentBlock:
    """The one block of a user's turn."""
    (found,) = read(messages=said(value)).messages[0].content
    return found


T = {"type": "text", "text": "x"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
FAULTS = [
    pytest.param(
        {"messages": said(T, {"type": 5})},
        "messages.0.content.1.type: Input should be a valid string",
        id="kind that is no text",
    ),
    pytest.param(
        {"messages": said(T, {"text": "x"})}, "messages.0.content.1.type: Field required", id="block without a kind"
    ),
    pytest.param(
        {"messages": said({"type": "text", "text": 5})},
        "messages.0.content.0.text.text: Input should be a valid string",
        id="text that is none",
    ),
    pytest.param(
        {"messages": said({"type": "image"})},
        "messages.0.content.0.image.source: Field required",
        id="image without a source",
    ),
    pytest.param(
        {"messages": said({"type": "image", "source": {"type": "base64", "data": ""}})},
        "messages.0.content.0.image.source.base64: image cannot be empty",
        id="empty image",
    ),
    pytest.param(
        {"messages": said({"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": "AA"}})},
        "messages.0.content.0.image.source.base64.media_type: "
        "Input should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'",
        id="image of another kind",
    ),
    pytest.param(
        {"messages": said({"type": "document", "source": {"type": "text"}})},
        "messages.0.content.0.document.source.text.data: Field required",
        id="document without its text",
    ),
    pytest.param(
        {"messages": said({"type": "search_result", "source": "s", "title": "t"})},
        "messages.0.content.0.search_result.content: Field required",
        id="search result without content",
    ),
    pytest.param(
        {"messages": said({"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text"}]})},
        "messages.0.content.0.search_result.content.0.text: Field required",
        id="search result with half a text",
    ),
    pytest.param(
        {
            "messages": said(
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [T, {"type": "image", "source": {"type": "url"}}],
                }
            )
        },
        "messages.0.content.0.tool_result.content.1.image.source.url.url: Field required",
        id="image in a result without its URL",
    ),
    pytest.param(
        {"messages": said({"type": "tool_result"})},
        "messages.0.content.0.tool_result.tool_use_id: Field required",
        id="result of no call",
    ),
    pytest.param(
        {"messages": said({"type": "tool_use", "id": "i", "name": "f", "input": {}})},
        "messages.0.content.0: `tool_use` blocks can only be in `assistant` messages",
        id="call by the user",
    ),
    pytest.param(
        {"messages": [USER, *said({"type": "tool_result", "tool_use_id": "t"}, role="assistant")]},
        "messages.1.content.0: `tool_result` blocks can only be in `user` messages",
        id="result by the model",
    ),
    pytest.param(
        {"messages": said({"type": "thinking", "thinking": "", "signature": "s"})},
        "messages.0.content.0: `thinking` blocks can only be in `assistant` messages",
        id="reasoning of the user",
    ),
    pytest.param(
        {"messages": [USER, *said(IMAGE, role="system")]},
        "messages.1.content.0: `image` blocks can only be in `user` or `assistant` messages",
        id="image in instructions",
    ),
    pytest.param(
        {
            "messages": said(
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_result", "tool_use_id": "u"}]}
            )
        },
        "messages.0.content.0.tool_result.content.0.type: This block has no place in a tool_result",
        id="result inside a result",
    ),
    pytest.param({"system": [{"type": "text"}]}, "system.0.text: Field required", id="instructions without text"),
    pytest.param(
        {"stop_sequences": ["END", " \n"]},
        "stop_sequences: each stop sequence must contain non-whitespace",
        id="blank stop sequence",
    ),
    pytest.param(
        {"stop_sequences": "END"}, "stop_sequences: Input should be a valid list", id="stop sequences as text"
    ),
    pytest.param(
        {"metadata": {"user_id": 5}}, "metadata.user_id: Input should be a valid string", id="user id that is a number"
    ),
    pytest.param({"service_tier": "gold"}, "service_tier: 'gold' is not an accepted value", id="unknown tier"),
    pytest.param({"speed": 2}, "speed: Input should be a valid string", id="speed that is a number"),
    pytest.param(
        {"thinking": {"type": "enabled", "budget_tokens": 1023}},
        "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024",
        id="small budget",
    ),
    pytest.param(
        {"thinking": {"type": "enabled", "budget_tokens": 5000}},
        "`max_tokens` must be greater than `thinking.budget_tokens`.",
        id="budget over the answer",
    ),
    pytest.param(
        {"thinking": {"type": "deep"}}, "thinking.type: 'deep' is not an accepted value", id="unknown thinking"
    ),
    pytest.param(
        {"output_config": {"effort": "huge"}},
        "output_config.effort: 'huge' is not an accepted value",
        id="unknown effort",
    ),
    pytest.param(
        {"output_config": {"format": {"type": "xml"}}},
        "output_config.format.type: Input should be 'json_schema'",
        id="unknown format",
    ),
    pytest.param({"mcp_servers": {}}, "mcp_servers: Input should be a valid list", id="MCP servers that are no list"),
    pytest.param(
        {"context_management": []},
        "context_management: Input should be a valid dictionary",
        id="context management that is a list",
    ),
    pytest.param({"tools": [TOOL, TOOL]}, "tools: Tool names must be unique.", id="a tool twice"),
    pytest.param(
        {"tools": [{"name": "f", "input_schema": {}, "description": 5}]},
        "tools.0.custom.description: Input should be a valid string",
        id="description that is a number",
    ),
    pytest.param(
        {"tools": [TOOL], "tool_choice": {"type": "tool"}},
        "tool_choice.tool.name: Field required",
        id="choice of no tool",
    ),
    pytest.param({"tools": {}}, "tools: Input should be a valid list", id="tools that are no list"),
    pytest.param({"top_k": 1.5}, "top_k: Input should be a valid integer", id="fractional top_k"),
    pytest.param({"model": 5}, "model: Input should be a valid string", id="model that is a number"),
]


@pytest.mark.parametrize(("members", "message"), FAULTS)
def test_a_fault_is_named_where_it_is(members: dict[str, Any], message: str) -> None:
    assert fault(**members) == message


@pytest.mark.parametrize(
    "members",
    [
        pytest.param(CACHE, id="on the request"),
        pytest.param({"system": [T | CACHE]}, id="on instructions"),
        pytest.param({"tools": [TOOL | CACHE]}, id="on a tool"),
        pytest.param({"tools": [TOOL | CACHE | {"defer_loading": True}]}, id="on a deferred tool"),
        pytest.param({"tools": [{"type": "bash_20250124", "name": "bash"} | CACHE]}, id="on a tool of a kind"),
        pytest.param({"messages": said(T | CACHE)}, id="on text"),
        pytest.param({"messages": said(IMAGE | CACHE)}, id="on an image"),
        pytest.param(
            {
                "messages": [
                    USER,
                    *said({"type": "tool_use", "id": "i", "name": "f", "input": {}} | CACHE, role="assistant"),
                ]
            },
            id="on a call",
        ),
        pytest.param(
            {"messages": said({"type": "tool_result", "tool_use_id": "t", "content": [T | CACHE]} | CACHE)},
            id="on a result and in it",
        ),
        pytest.param(
            {"messages": said({"type": "search_result", "source": "s", "title": "t", "content": [T | CACHE]} | CACHE)},
            id="on a search result and in it",
        ),
        pytest.param(
            {"messages": said({"type": "document", "source": {"type": "content", "content": [T | CACHE]}} | CACHE)},
            id="on a document and in it",
        ),
        pytest.param(
            {"messages": said({"type": "novel", "content": [{"type": "deep", "content": [T | CACHE]}]} | CACHE)},
            id="on what nobody knows, however deep",
        ),
    ],
)
def test_cache_control_is_ignored_wherever_it_stands(members: dict[str, Any]) -> None:
    assert b"cache_control" not in read(**members).SerializeToString()


def test_cache_control_in_arguments_is_an_argument() -> None:
    use = {"type": "server_tool_use", "id": "s", "name": "n", "input": CACHE} | CACHE
    made = read(messages=[USER, *said(use, role="assistant")]).messages[1].content[0].opaque

    assert json.loads(made.json) == {"type": "server_tool_use", "id": "s", "name": "n", "input": CACHE}


def test_a_search_result_is_kept_whole_and_can_be_said_elsewhere() -> None:
    found = {
        "type": "search_result",
        "source": "https://a.test",
        "title": "A",
        "content": [T],
        "citations": {"enabled": True},
    }
    for value in (found, found | {"new": 1}):
        made = block(value).opaque
        assert (json.loads(made.json), made.type, made.text) == (value, "search_result", "A\nhttps://a.test\nx")
    inside = block({"type": "tool_result", "tool_use_id": "t", "content": [found]}).tool_result.content[0]
    assert json.loads(inside.opaque.json) == found


def test_a_document_of_blocks_keeps_its_places() -> None:
    value = {"type": "document", "title": "D", "source": {"type": "content", "content": [T, IMAGE]}}

    made = block(value).opaque
    assert (json.loads(made.json), made.text) == (value, "D\nx")


def test_images_stand_inside_results() -> None:
    made = block({"type": "tool_result", "tool_use_id": "t", "content": [T, IMAGE], "is_error": True}).tool_result

    assert [part.WhichOneof("kind") for part in made.content] == ["text", "image"]
    assert (made.content[1].image.base64_data, made.is_error) == ("AA", True)


def test_unknown_members_of_known_blocks_are_kept() -> None:
    assert json.loads(block(T | {"shiny": [1.50]}).extra_json) == {"shiny": [1.5]}


ADDITION = {
    "type": "tool_addition",
    "tool": {"type": "tool_definition", "definition": {"name": "now", "input_schema": {"type": "object"}} | CACHE},
}


def change(kind: str, name: str) -> dict[str, Any]:
    return {"type": kind, "tool": {"type": "tool_reference", "name": name}}


@pytest.mark.parametrize(
    ("tools", "blocks", "offered"),
    [
        pytest.param(None, [ADDITION], ["now"], id="a tool is added to none"),
        pytest.param([TOOL], [ADDITION], ["f", "now"], id="a tool is added"),
        pytest.param([TOOL], [change("tool_removal", "f")], [], id="a tool is taken away"),
        pytest.param(
            [TOOL], [change("tool_removal", "f"), change("tool_addition", "f")], ["f"], id="the last word holds"
        ),
        pytest.param(
            [TOOL | {"defer_loading": True}], [change("tool_addition", "f")], ["f"], id="a deferred tool is called for"
        ),
        pytest.param([TOOL | {"name": "now", "description": "old"}], [ADDITION], ["now"], id="a tool is defined anew"),
    ],
)
def test_instructions_change_the_tools(tools: Any, blocks: list[Any], offered: list[str]) -> None:
    made = read(tools=tools, messages=[USER, *said(*blocks, role="system")])

    assert [tool.name for tool in made.tools if not tool.HasField("opaque")] == offered
    assert [message.role for message in made.messages] == [pb.ROLE_USER]
    assert all(not tool.description for tool in made.tools)


def test_deferred_tools_wait_for_a_reference() -> None:
    late = [
        TOOL | {"defer_loading": True},
        {"name": "DeferredToolPlaceholder", "defer_loading": True, "input_schema": {}},
    ]
    call = {"type": "tool_use", "id": "t", "name": "search", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_reference", "tool_name": "f"}]}
    found = [USER, *said(call, role="assistant"), *said(result)]

    assert [tool.HasField("opaque") for tool in read(tools=late).tools] == [True, True]
    assert [tool.HasField("opaque") for tool in read(tools=late, messages=found).tools] == [False, True]


def test_instructions_may_be_for_one_turn() -> None:
    passing = {
        "role": "system",
        "content": "only now",
        "clear_at": "next_user_message",
        "output_config": {"effort": "low"},
    }
    lasting = {"role": "system", "content": "always", "clear_at": "never"}
    reply = {"role": "assistant", "content": "ok"}
    now = read(messages=[USER, passing, lasting])
    later = read(messages=[USER, passing, lasting, reply, USER])

    assert [message.content[0].text.text for message in now.messages] == ["hi", "only now", "always"]
    assert [message.content[0].text.text for message in later.messages] == ["hi", "always", "ok", "hi"]
    assert (now.reasoning.effort, later.reasoning.effort) == ("low", "")


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        pytest.param(
            {"type": "adaptive", "display": "summarized"},
            {"mode": pb.Reasoning.MODE_ADAPTIVE, "summarize_text": True},
            id="adaptive",
        ),
        pytest.param(
            {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
            {"mode": pb.Reasoning.MODE_ENABLED, "budget_tokens": 1024, "omit_text": True},
            id="enabled",
        ),
        pytest.param({"type": "disabled"}, {"mode": pb.Reasoning.MODE_DISABLED}, id="disabled"),
        pytest.param(
            {"type": "between_tools"},
            {"mode": pb.Reasoning.MODE_ENABLED, "only_between_tools": True},
            id="between tools",
        ),
    ],
)
def test_thinking(given: dict[str, Any], fields: dict[str, Any]) -> None:
    assert read(thinking=given).reasoning == pb.Reasoning(**fields)


def test_a_budget_may_exceed_an_answer_that_calls_tools() -> None:
    made = read(thinking={"type": "enabled", "budget_tokens": 9000}, tools=[TOOL])
    assert made.reasoning.budget_tokens == 9000


@pytest.mark.parametrize(
    ("choice", "mode", "parallel"),
    [
        ({"type": "auto"}, pb.ToolChoice.MODE_AUTO, None),
        ({"type": "auto", "disable_parallel_tool_use": True}, pb.ToolChoice.MODE_AUTO, False),
        ({"type": "any", "disable_parallel_tool_use": False}, pb.ToolChoice.MODE_REQUIRED, None),
        ({"type": "tool", "name": "f", "disable_parallel_tool_use": True}, pb.ToolChoice.MODE_NAMED, False),
        ({"type": "none"}, pb.ToolChoice.MODE_NONE, None),
    ],
)
def test_tool_choice(choice: dict[str, Any], mode: "pb.ToolChoice.Mode.ValueType", parallel: bool | None) -> None:
    made = read(tools=[TOOL], tool_choice=choice)

    assert made.tool_choice.mode == mode
    assert (made.parallel_tool_calls if made.HasField("parallel_tool_calls") else None) == parallel


DEAR: dict[str, Any] = {
    "service_tier": "auto",
    "speed": "fast",
    "inference_geo": "us",
    "container": {"id": "c"},
    "mcp_servers": [{"type": "url", "url": "https://m.test", "name": "m"}],
    "context_management": {"edits": []},
    "metadata": {"user_id": "u"},
    "novel": 1,
}
DROPPED = {"fallbacks": [{"model": "x"}], "fallback_credit_token": "t", "billing_policy": {"type": "billing_policy"}}


def test_what_changes_the_price_is_carried_for_an_allow_list_or_dropped() -> None:
    assert {name: json.loads(value) for name, value in read(**DEAR, **DROPPED).extra_fields_json.items()} == DEAR


def test_every_member_that_the_sdk_can_send_is_known() -> None:
    from anthropic.types.beta.message_create_params import MessageCreateParamsBase

    outside_the_body = {"betas", "user_profile_id", "workspace_id"}
    known = set(MessagesRequest.__struct_encode_fields__)
    assert set(MessageCreateParamsBase.__annotations__) - outside_the_body <= known


def test_every_member_has_a_row_in_the_document() -> None:
    page = (Path(__file__).parents[3] / "docs" / "dialects.md").read_text()
    section = page.split("## Anthropic: `POST /v1/messages`")[1].split("### The answer")[0]
    rows = {name for line in section.splitlines() if line.startswith("|") for name in re.findall(r"`([a-z_]+)", line)}

    assert set(MessagesRequest.__struct_encode_fields__) <= rows


def test_blocks_are_bounded() -> None:
    half = {"role": "user", "content": [T] * 50_001}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [T] * 10_001}

    assert fault(messages=[half, half]) == "messages.1.content: at most 100000 blocks are accepted"
    assert fault(messages=said(result)) == "messages.0.content.0.tool_result.content: at most 10000 blocks are accepted"
