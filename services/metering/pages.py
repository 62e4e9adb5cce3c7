"""Page tokens: opaque, bound to the filter that they continue.

Owns their form; refuses to know what is listed.
"""

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Sequence
from typing import Any

from services.runtime.errors import FieldViolation, InvalidRequestError

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
_POSITION = struct.Struct(">qq")
_SEAL_BYTES = 8

Position = tuple[int, int]
"""(instant in microseconds, row) of the last record of a page."""


def page_limit(page_size: int, *, default: int = DEFAULT_PAGE) -> int:
    """How many records a page has. Raises InvalidRequestError."""
    if not 0 <= page_size <= MAX_PAGE:
        raise _invalid("page_size", f"must be 0..{MAX_PAGE}")
    return page_size or default


def write_token(position: Position, *bound_to: str) -> str:
    """The token of the page that starts after a position."""
    packed = _POSITION.pack(*position)
    return base64.urlsafe_b64encode(packed + _seal(packed, bound_to)).decode().rstrip("=")


def read_token(token: str, *bound_to: str) -> Position | None:
    """The position in a token; None for the first page. Raises InvalidRequestError."""
    if not token:
        return None
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    packed, seal = raw[: _POSITION.size], raw[_POSITION.size :]
    if len(packed) != _POSITION.size or seal != _seal(packed, bound_to):
        raise _invalid("page_token", "is not one of ours, or belongs to another filter")
    instant_us, row_id = _POSITION.unpack(packed)
    return instant_us, row_id


def write_cursor(values: Sequence[str | int], *bound_to: str) -> str:
    """A token that holds several values."""
    packed = json.dumps(list(values), ensure_ascii=False, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_seal(packed, bound_to) + packed).decode().rstrip("=")


def read_cursor(token: str, field: str, *bound_to: str) -> list[Any] | None:
    """The values in a token; None for an empty one. Raises InvalidRequestError."""
    if not token:
        return None
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raw = b""
    seal, packed = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
    if not packed or seal != _seal(packed, bound_to):
        raise _invalid(field, "is not one of ours, or belongs to another request")
    values: list[Any] = json.loads(packed)
    return values


def _seal(packed: bytes, bound_to: tuple[str, ...]) -> bytes:
    """Binds a position to its filter. No secret is needed: a forged position shows nothing beyond that filter."""
    return hashlib.sha256(packed + "\0".join(("mws page", *bound_to)).encode()).digest()[:_SEAL_BYTES]


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} {description}", violations=[FieldViolation(field, description)])
