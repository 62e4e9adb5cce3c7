"""count_tokens: 4 characters per token, rounded up, and no kind of block, tool or instruction that counts nothing."""

import json
from typing import Any

import pytest

from edge.anthropic.requests import read_count_tokens
from services.routing_and_inference.prompt import read_prompt

USER = {"role": "user", "content": "hi"}
T = {"type": "text", "text": "x" * 40}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 4000}}


def count(*turns: Any, has_vision: bool = True, **members: Any) -> int:
    body = {"model": "m", "messages": [*turns] or [USER], **members}
    return read_prompt(read_count_tokens(json.dumps(body).encode()).generation, has_vision=has_vision).estimated_tokens


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


@pytest.mark.parametrize(
    ("characters", "tokens"), [(1, 1), (4, 1), (5, 2), (400, 100), (401, 101)], ids=lambda number: str(number)
)
def test_four_characters_are_a_token_and_a_rest_is_one(characters: int, tokens: int) -> None:
    assert count({"role": "user", "content": "ä" * characters}) == tokens


BLOCKS = [
    pytest.param(user(T), 10, id="text"),
    pytest.param(user(IMAGE), 1600, id="image"),
    pytest.param(user(PDF), 1600, id="document in bytes"),
    pytest.param(user({"type": "document", "source": {"type": "url", "url": "https://x.test"}}), 1600,
                 id="document elsewhere"),
    pytest.param(user({"type": "document", "title": "abcd", "source": {"type": "text", "data": "x" * 40}}), 11,
                 id="document in text"),
    pytest.param(user({"type": "tool_result", "tool_use_id": "t", "content": "x" * 40}), 10, id="result"),
    pytest.param(user({"type": "tool_result", "tool_use_id": "t", "content": [T, IMAGE]}), 1610,
                 id="result with an image"),
    pytest.param(assistant({"type": "tool_use", "id": "t", "name": "name", "input": {"a": "x" * 32}}), 11, id="call"),
    pytest.param(assistant({"type": "thinking", "thinking": "x" * 40, "signature": "s"}), 10, id="reasoning"),
    pytest.param(assistant({"type": "redacted_thinking", "data": "x" * 40}), 10, id="redacted reasoning"),
    pytest.param({"role": "system", "content": [T]}, 10, id="instructions"),
]  # fmt: skip


@pytest.mark.parametrize(("turn", "tokens"), BLOCKS)
def test_every_kind_of_block_counts(turn: dict[str, Any], tokens: int) -> None:
    assert count(user(T | {"text": "x" * 4}), turn) == 1 + tokens


OTHERS = [
    pytest.param(user({"type": "search_result", "source": "s", "title": "t", "content": [T]}), id="search result"),
    pytest.param(user({"type": "document", "source": {"type": "content", "content": [T]}}), id="document of blocks"),
    pytest.param(user({"type": "container_upload", "file_id": "f"}), id="file"),
    pytest.param(assistant({"type": "server_tool_use", "id": "s", "name": "n", "input": {}}), id="provider's call"),
    pytest.param(assistant({"type": "web_search_tool_result", "tool_use_id": "s", "content": []}), id="its result"),
    pytest.param(assistant({"type": "novel", "a": 1}), id="what nobody knows"),
]


@pytest.mark.parametrize("turn", OTHERS)
def test_blocks_without_a_neutral_form_count_as_their_json(turn: dict[str, Any]) -> None:
    text = json.dumps(turn["content"][0])

    assert count(USER, turn) == pytest.approx(len(text) / 4, abs=6)


def test_tools_and_instructions_count() -> None:
    tool = {"name": "abcd", "description": "x" * 40, "input_schema": {"type": "object"}}

    assert count(system="x" * 40) == 11
    assert count(system=[T, T]) == 21
    assert count(tools=[tool]) == -(-(2 + 4 + 40 + 17) // 4)
    assert count(tools=[tool | {"defer_loading": True}]) == 1
    assert count(tools=[tool | {"input_examples": [{"a": "x" * 40}]}]) > count(tools=[tool]) + 10


def test_images_count_nothing_where_nobody_sees_them() -> None:
    assert count(user(T, IMAGE), has_vision=False) == 10
