"""Mints every id of the system: UUIDv7 text (RFC 9562).

Owns minting and reading the time inside an id; knows nothing of what the ids name.
"""

import os
import re
import time

_VARIANT_OF = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))  # two random bits behind the two fixed ones
_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}").fullmatch


def new_id() -> str:
    """A fresh UUIDv7: 48 bits of Unix milliseconds, then 74 random bits, as 36 characters."""
    time_digits = f"{time.time_ns() // 1_000_000:012x}"
    digits = os.urandom(10).hex()
    tail = f"{_VARIANT_OF[digits[3]]}{digits[4:7]}-{digits[7:19]}"
    return f"{time_digits[:8]}-{time_digits[8:]}-7{digits[:3]}-{tail}"


def unix_ms_of(id_text: str) -> int:
    """When a UUIDv7 was minted, in Unix milliseconds. Raises ValueError unless the text is a canonical UUIDv7."""
    if _CANONICAL(id_text) is None:
        raise ValueError("not a canonical UUIDv7")
    return int(id_text[:8] + id_text[9:13], 16)
