"""Mints every id of the system: UUIDv7 text (RFC 9562).

Owns minting and reading the time inside an id; knows nothing of what the ids name.
"""

import os
import re
import time

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}").fullmatch


def new_id() -> str:
    """A fresh UUIDv7: 48 bits of Unix milliseconds, then 74 random bits, as 36 characters."""
    random_bits = int.from_bytes(os.urandom(10), "big")
    value = (time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80
    value |= _VERSION_7 | (random_bits >> 68) << 64 | _VARIANT | random_bits & 0x3FFF_FFFF_FFFF_FFFF
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def unix_ms_of(id_text: str) -> int:
    """When a UUIDv7 was minted, in Unix milliseconds. Raises ValueError unless the text is a canonical UUIDv7."""
    if _CANONICAL(id_text) is None:
        raise ValueError("not a canonical UUIDv7")
    return int(id_text[:8] + id_text[9:13], 16)
