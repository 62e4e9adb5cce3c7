"""Reads a request that will be forwarded whole: measures its prompt, and writes what is the gateway's to say.

Owns no rule of the dialect but where text, images and documents stand in it; everything else passes as it came.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from services.routing_and_inference.bounding import (
    RATE_OUTPUT_TOKENS,
    Bound,
    PromptSize,
    TextMeter,
    estimated_input_tokens,
    input_bound_tokens,
)
from services.routing_and_inference.catalog import Profile
from services.runtime.errors import FieldViolation, InvalidRequestError

USUAL_SEARCHES = 5  # held for a search tool that states no `max_uses`
# Tools that the caller runs. All others run at the upstream, where their results become prompt that nobody has seen.
_CALLERS_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
_SEARCH = "web_search_"

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


class NativePrompt(msgspec.Struct, frozen=True):
    """A measured prompt. `grows`: the upstream may add to it, so that only its context bounds it."""

    size: PromptSize
    estimated_tokens: int
    grows: bool
    searches: int  # web searches that the upstream may make

    def bound(self, profile: Profile, max_output_tokens: int) -> Bound:
        """The bound of the call."""
        price = profile.price
        input_tokens = profile.context_tokens if self.grows else input_bound_tokens(self.size, profile.context_tokens)
        return Bound(
            input_nano_usd=input_tokens * price.dearest_input_nano_usd + self.searches * price.search_unit_nano_usd,
            output_tokens=max_output_tokens,
            output_nano_usd_per_token=price.output_nano_usd,
            rate_tokens=self.estimated_tokens + min(max_output_tokens, RATE_OUTPUT_TOKENS),
        )


def read_native(body: bytes) -> NativePrompt:
    """Measures a request. Raises InvalidRequestError if it is not a JSON object."""
    try:
        request = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise _invalid("body_json", "must be a JSON object")
    measure = _Measure()
    for name in ("system", "messages", "tools"):
        measure.add(request.get(name))
    tools = request.get("tools")
    upstreams_tools = [tool for tool in tools if _runs_at_upstream(tool)] if isinstance(tools, list) else []
    size = PromptSize(
        ascii_characters=measure.text.ascii_characters,
        other_characters=measure.text.other_characters,
        images=measure.images,
        document_bytes=measure.document_bytes,
        has_unknown_document=measure.has_unknown_document,
    )
    return NativePrompt(
        size,
        estimated_input_tokens(size),
        grows=bool(upstreams_tools or request.get("mcp_servers")),
        searches=sum(map(_searches, upstreams_tools)),
    )


def with_members(body: bytes, **members: object) -> bytes:
    """The same request with some of its members written anew, all others byte for byte."""
    fields = _fields.decode(body)
    fields.update({name: msgspec.Raw(_encode(value)) for name, value in members.items()})
    return _encode(fields)


def _runs_at_upstream(tool: object) -> bool:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    return isinstance(kind, str) and not kind.startswith(_CALLERS_TOOLS)


def _searches(tool: Mapping[str, Any]) -> int:
    if not tool["type"].startswith(_SEARCH):
        return 0
    most = tool.get("max_uses")
    return most if isinstance(most, int) and most > 0 else USUAL_SEARCHES


class _Measure:
    """Adds up what stands in a value, without recursion: nesting is the caller's choice."""

    def __init__(self) -> None:
        self.text = TextMeter()
        self.images = 0
        self.document_bytes = 0
        self.has_unknown_document = False

    def add(self, value: object) -> None:
        pending = [value]
        while pending:
            item = pending.pop()
            if isinstance(item, str):
                self.text.add(item)
            elif isinstance(item, list):
                pending += item
            elif isinstance(item, dict):
                pending += self._members(item)
            elif item is not None:
                self.text.add(str(item))

    def _members(self, item: dict[str, Any]) -> list[object]:
        kind = item.get("type")
        if kind == "image":
            self.images += 1
            return []
        if kind == "document":
            self._document(item.get("source"))
            return [item.get(name) for name in ("title", "context")]
        for name in item:
            self.text.add(name)
        return list(item.values())

    def _document(self, source: object) -> None:
        kind = source.get("type") if isinstance(source, dict) else None
        data = source.get("data") if isinstance(source, dict) else None
        if kind == "base64" and isinstance(data, str):
            self.document_bytes += len(data) * 3 // 4
        elif kind in ("text", "content"):
            self.add(source)
        else:
            self.has_unknown_document = True


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {description}", violations=[FieldViolation(field, description)])
