"""API keys as text: minted, recognised, digested.

Owns the form `mws_live_` + 36 random base62 characters + 6 of checksum; refuses to store, log or compare a key.
"""

import hashlib
import hmac
import zlib
from collections.abc import Callable

PREFIX = "mws_live_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_LENGTH = 36
_CHECKSUM_LENGTH = 6
_LENGTH = len(PREFIX) + _SECRET_LENGTH + _CHECKSUM_LENGTH
_SHOWN_LENGTH = len(PREFIX) + 4


def mint(random_bytes: Callable[[int], bytes]) -> str:
    """A new key. 256 random bits over 62^36 values leave no bias that counts."""
    secret = _base62(int.from_bytes(random_bytes(32), "big"), _SECRET_LENGTH)
    return PREFIX + secret + _checksum(secret)


def is_well_formed(text: str) -> bool:
    """Whether the text can be a key at all: for scanners of leaked secrets. Decisions look every text up, alike."""
    if len(text) != _LENGTH or not text.startswith(PREFIX) or not text.isascii():
        return False
    body = text.removeprefix(PREFIX)
    return hmac.compare_digest(body[_SECRET_LENGTH:], _checksum(body[:_SECRET_LENGTH]))


def shown_prefix(text: str) -> str:
    """The first characters, for people to recognise a key by."""
    return text[:_SHOWN_LENGTH]


def digest(text: str) -> bytes:
    """What crosses service boundaries in place of the key."""
    return hashlib.sha256(text.encode()).digest()


def stored_digest(pepper: bytes, key_digest: bytes) -> bytes:
    """What is stored: without the pepper, a stolen table can not even be checked against a guess."""
    return hmac.digest(pepper, key_digest, "sha256")


def _checksum(secret: str) -> str:
    return _base62(zlib.crc32(secret.encode()), _CHECKSUM_LENGTH)


def _base62(value: int, length: int) -> str:
    characters = []
    for _ in range(length):
        value, index = divmod(value, 62)
        characters.append(_ALPHABET[index])
    return "".join(characters)
