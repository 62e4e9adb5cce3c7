"""Mints every id of the system: UUIDv7 text (RFC 9562).

Owns minting and reading the time inside an id; knows nothing of what the ids name.
"""

import os
import time
import uuid

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62


def new_id() -> str:
    """A fresh UUIDv7: 48 bits of Unix milliseconds, then 74 random bits, as 36 characters."""
    random_bits = int.from_bytes(os.urandom(10), "big")
    value = (time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80
    value |= _VERSION_7 | (random_bits >> 68) << 64 | _VARIANT | random_bits & 0x3FFF_FFFF_FFFF_FFFF
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def unix_ms_of(id_text: str) -> int:
    """When a UUIDv7 was minted, in Unix milliseconds. Raises ValueError unless the text is a canonical UUIDv7."""
    value = uuid.UUID(id_text)
    if str(value) != id_text or value.version != 7:
        raise ValueError("not a canonical UUIDv7")
    return value.int >> 80
