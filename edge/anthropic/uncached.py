"""JSON that is passed on as it came, but for `cache_control`, which is accepted and ignored wherever it stands.

Owns finding it in blocks, in the blocks inside them, and in tools; refuses to look into arguments and schemas.
"""

from typing import Any

import msgspec
from msgspec import Raw

from edge.decoding import decode, fields_of
from edge.problems import Path

_NAME = "cache_control"
_WORD = b'"cache_control"'
_NESTED = ("content", "source")  # where blocks hold blocks
_items = msgspec.json.Decoder(list[Raw])
_encode = msgspec.json.Encoder().encode


def without_cache_control(raw: Raw, path: Path) -> Raw:
    """The same JSON without it; the very same text when there is none."""
    text = bytes(raw)
    if _WORD not in text:
        return raw
    if text[:1] == b"[":
        return Raw(_encode([without_cache_control(item, path) for item in decode(_items, raw, path)]))
    if text[:1] != b"{":
        return raw
    members: dict[str, Any] = dict(fields_of(raw, path))
    members.pop(_NAME, None)
    for name in _NESTED:
        if name in members:
            members[name] = without_cache_control(members[name], path)
    return Raw(_encode(members))
