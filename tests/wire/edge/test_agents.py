"""What coding agents send: a look at the door, long histories, many large tools, instructions in the middle."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as inference_pb

from services.runtime.calls import Call
from tests.wire.edge import events as ev
from tests.wire.edge.running_edge import GOOD_KEY, RunningEdge, admitted, started

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {f"p{at}": {"type": "string", "description": "What it is for. " * 8} for at in range(20)},
    "required": ["p0"],
    "additionalProperties": False,
}
TOOLS = [{"name": f"Tool{at}", "description": "How to use it. " * 80, "input_schema": SCHEMA} for at in range(24)]
LATE = {"name": "DeferredToolPlaceholder", "defer_loading": True, "description": "d", "input_schema": {}}
CACHED = {"cache_control": {"type": "ephemeral"}}
REQUEST: dict[str, Any] = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 32000,
    "stream": True,
    "thinking": {"type": "adaptive", "display": "omitted"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "metadata": {"user_id": json.dumps({"device_id": "0" * 64, "account_uuid": "", "session_id": "s"})},
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.330.d01; cc_entrypoint=sdk-cli;"},
        {"type": "text", "text": "You are an agent.", **CACHED},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "<system-reminder>…"}, {"type": "text", "text": "x"}]},
        {"role": "system", "content": [{"type": "text", "text": "# Environment"}]},
    ],
    "tools": [*TOOLS, LATE],
}
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,mid-conversation-system-2026-04-07",
    "x-app": "cli",
    "x-stainless-timeout": "NOT_GIVEN",
}


@pytest.mark.parametrize("path", ["/v1/messages?beta=true", "/v1/v1/messages?beta=true"])
async def test_a_first_turn_with_many_tools(edge: RunningEdge, path: str) -> None:
    assert len(json.dumps(REQUEST)) > 115_000
    async with edge.http(None) as client:
        assert (await client.head("/")).status_code == 200
        reply = await client.post(path, json=REQUEST, headers=HEADERS | {"x-api-key": GOOD_KEY})

    made = edge.inference.asked[0].generation
    assert reply.text.endswith('data: {"type":"message_stop"}\n\n')
    assert [tool.HasField("opaque") for tool in made.tools] == [False] * 24 + [True]
    assert [message.role for message in made.messages] == [pb.ROLE_SYSTEM, pb.ROLE_USER, pb.ROLE_SYSTEM]
    assert [block.text.text for block in made.messages[0].content] == ["You are an agent."]
    assert (made.reasoning.effort, made.reasoning.omit_text) == ("high", True)


def _turns(count: int) -> list[dict[str, Any]]:
    """A history of calls and their results, ids of an odd form among them."""
    turns: list[dict[str, Any]] = list(REQUEST["messages"])
    for at in range(count):
        call = {
            "type": "tool_use",
            "id": f"functions.Tool{at % 24}:{at}",
            "name": f"Tool{at % 24}",
            "input": {"p0": "x"},
        }
        result = {
            "type": "tool_result",
            "tool_use_id": call["id"],
            "content": "done " * 50,
            "is_error": False,
            **CACHED,
        }
        turns += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    return turns


async def test_a_loop_of_tools_goes_on_for_long(edge: RunningEdge) -> None:
    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        at = len(request.generation.messages)
        yield [admitted(request), started(), ev.call(f"functions.Bash:{at}", "Tool0"), ev.arguments('{"p0":"x"}')]
        yield [ev.finished(pb.FINISH_REASON_TOOL_CALLS)]

    edge.inference.script = script
    history: Any = _turns(300)
    async with edge.anthropic() as client:
        for _ in range(5):
            async with client.messages.stream(**REQUEST_OF_SDK, messages=history) as stream:
                answer = await stream.get_final_message()
            (call,) = answer.content
            assert call.type == "tool_use"
            assert (answer.stop_reason, call.input) == ("tool_use", {"p0": "x"})
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "done"}
            history += [{"role": "assistant", "content": [call.model_dump()]}, {"role": "user", "content": [result]}]

    last = edge.inference.asked[-1].generation
    assert len(last.messages) == 1 + 2 + 2 * 304
    assert last.messages[-1].content[0].tool_result.tool_call_id == last.messages[-2].content[0].tool_call.id
    assert last.messages[-1].content[0].tool_result.tool_call_id.startswith("functions.Bash:")


REQUEST_OF_SDK: Any = {name: REQUEST[name] for name in ("model", "max_tokens", "system", "tools")}


async def test_models_are_discovered(edge: RunningEdge) -> None:
    async with edge.http() as client:
        listed = (await client.get("/v1/models?limit=1000", headers=HEADERS)).json()

    assert {"data", "has_more", "first_id", "last_id"} <= listed.keys()
    assert all({"id", "type", "display_name", "created_at"} <= model.keys() for model in listed["data"])
    assert (listed["has_more"], listed["first_id"]) == (False, listed["data"][0]["id"])
