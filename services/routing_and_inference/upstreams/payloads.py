"""JSON payloads of upstreams: decoded, or repaired first when only their characters are broken.

Owns what counts as readable; refuses to know what payloads mean.
"""

import json
from typing import Any

import msgspec

from services.routing_and_inference.upstreams import errors


def decode(payload: bytes | msgspec.Raw) -> Any:
    """The value. Raises UpstreamFailure (MALFORMED)."""
    try:
        return msgspec.json.decode(payload)
    except errors.UNREADABLE:
        raise errors.malformed() from None


def repaired(payload: bytes) -> bytes:
    """The same JSON with U+FFFD for invalid UTF-8 and for halves of surrogate pairs, both of which msgspec refuses."""
    try:
        value = json.loads(payload.decode("utf-8", "replace"))
        text = json.dumps(value, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    except (ValueError, RecursionError):
        raise errors.malformed() from None
    return text.encode()
