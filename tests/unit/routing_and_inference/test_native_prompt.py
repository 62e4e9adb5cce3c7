"""Requests that are forwarded whole: what is measured in them, and what may be written anew."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.routing_and_inference.catalog import Kind, Price, Profile
from services.routing_and_inference.native_prompt import read_native, with_members
from services.runtime.errors import InvalidRequestError

PROFILE = Profile(
    "m", Kind.GENERATION, Price(input_nano_usd=3, output_nano_usd=5, search_unit_nano_usd=11), (), context_tokens=9_000
)


def prompt(**members: Any) -> Any:
    return read_native(json.dumps({"messages": [], **members}).encode())


def user(*blocks: Any) -> list[Any]:
    return [{"role": "user", "content": list(blocks)}]


PNG = {"type": "base64", "media_type": "image/png", "data": "x" * 4_000}


@pytest.mark.parametrize(
    ("members", "size"),
    [
        pytest.param({"system": "abc"}, (3, 0, 0, 0, False), id="text"),
        pytest.param({"system": "añ😀"}, (1, 2, 0, 0, False), id="characters that are not ASCII"),
        pytest.param({"messages": user({"type": "image", "source": PNG})}, (15, 0, 1, 0, False), id="an image"),
        pytest.param(
            {"messages": user({"type": "document", "title": "T", "source": PNG})},
            (16, 0, 0, 3_000, False),
            id="a document",
        ),
        pytest.param(
            {"messages": user({"type": "document", "source": {"type": "url", "url": "https://a"}})},
            (15, 0, 0, 0, True),
            id="a document that only the upstream can fetch",
        ),
        pytest.param(
            {"tools": [{"name": "f", "input_schema": {"type": "object"}}]},
            (27, 0, 0, 0, False),
            id="a tool with its schema",
        ),
        pytest.param(
            {"messages": user({"type": "tool_result", "content": [{"type": "image", "source": PNG}]})},
            (37, 0, 1, 0, False),
            id="an image in a tool's answer",
        ),
        pytest.param({"metadata": {"user_id": "somebody"}}, (0, 0, 0, 0, False), id="what is no prompt"),
    ],
)
def test_every_kind_of_content_is_measured(members: dict[str, Any], size: tuple[Any, ...]) -> None:
    found = prompt(**members).size

    assert (
        found.ascii_characters,
        found.other_characters,
        found.images,
        found.document_bytes,
        found.has_unknown_document,
    ) == size


@pytest.mark.parametrize(
    ("tools", "grows", "searches"),
    [
        pytest.param([{"name": "f", "input_schema": {}}], False, 0, id="the caller's own"),
        pytest.param([{"type": "bash_20250124", "name": "bash"}], False, 0, id="one that the caller runs"),
        pytest.param([{"type": "web_search_20250305", "name": "s", "max_uses": 2}], True, 2, id="a search"),
        pytest.param([{"type": "web_search_20250305", "name": "s"}], True, 5, id="a search without a maximum"),
        pytest.param([{"type": "code_execution_20250825", "name": "c"}], True, 0, id="one that the upstream runs"),
        pytest.param([{"type": "of_next_year", "name": "n"}], True, 0, id="one that nobody knows"),
    ],
)
def test_tools_of_the_upstream_may_fill_the_context(tools: list[Any], grows: bool, searches: int) -> None:
    found = prompt(tools=tools)

    assert (found.grows, found.searches) == (grows, searches)
    if grows:
        assert found.bound(PROFILE, 100).amount_nano_usd == 9_000 * 3 + 100 * 5 + searches * 11


@pytest.mark.parametrize("body", [b"", b"[]", b'"text"', b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        read_native(body)


def test_depth_costs_no_stack() -> None:
    nested: Any = "deep"
    for _ in range(300):
        nested = [{"a": nested}]

    assert prompt(system=nested).size.ascii_characters == 304


_TEXT = st.text(max_size=5)


@settings(max_examples=25)
@given(st.dictionaries(_TEXT, st.none() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT, max_size=4))
def test_members_written_anew_leave_all_others_byte_for_byte(members: dict[str, Any]) -> None:
    body = json.dumps({**members, "model": "before"}).encode()

    after = with_members(body, model="after", stream=True)

    assert json.loads(after) == {**members, "model": "after", "stream": True}
    for name, value in members.items():
        if name not in ("model", "stream"):
            assert json.dumps(value).encode() in after
