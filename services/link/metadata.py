"""Metadata as a frame carries it: key, value, key, value, as bytes.

Owns that form and its limit; refuses to know any key.
"""

from collections.abc import Iterable

from services.link.frames import METADATA_BYTES
from services.runtime.calls import Metadata
from services.runtime.errors import InvalidRequestError

_BINARY_SUFFIX = "-bin"


def encode(metadata: Metadata) -> tuple[list[bytes], int]:
    """The frame's list, and the bytes that it takes at most."""
    flat = [part.encode() if isinstance(part, str) else bytes(part) for pair in metadata for part in pair]
    size_bytes = sum(map(len, flat)) + 4 * len(flat)
    if size_bytes > METADATA_BYTES:
        raise InvalidRequestError("the call's metadata is too large", metadata={"limit_bytes": str(METADATA_BYTES)})
    return flat, size_bytes


def decode(flat: Iterable[bytes]) -> Metadata:
    """The pairs of a frame's list; a value that its key says is text, but is not UTF-8, is mended."""
    parts = iter(flat)
    pairs: list[tuple[str, str | bytes]] = []
    for key_bytes, value in zip(parts, parts, strict=False):
        key = _text(key_bytes)
        pairs.append((key, value if key.endswith(_BINARY_SUFFIX) else _text(value)))
    return pairs


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode(errors="replace")
