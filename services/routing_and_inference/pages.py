"""Page tokens of lists that do not change while the process lives: a position, bound to its filter.

Owns their form; refuses to know what is listed.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import TypeVar

from services.runtime.errors import FieldViolation, InvalidRequestError

MAX_PAGE = 1_000
DEFAULT_PAGE = 100

_Item = TypeVar("_Item")


def page_of(items: Sequence[_Item], page_size: int, page_token: str, bound_to: str) -> tuple[Sequence[_Item], str]:
    """A page, and the token of the next one (empty: there is none). Raises InvalidRequestError."""
    if not 0 <= page_size <= MAX_PAGE:
        raise _invalid("page_size", f"must be 0..{MAX_PAGE}")
    start = _position(page_token, bound_to) if page_token else 0
    end = start + (page_size or DEFAULT_PAGE)
    return items[start:end], _token(end, bound_to) if end < len(items) else ""


def _token(position: int, bound_to: str) -> str:
    return base64.urlsafe_b64encode(f"{position}.{_seal(position, bound_to)}".encode()).decode()


def _position(token: str, bound_to: str) -> int:
    try:
        position, _, seal = base64.urlsafe_b64decode(token).decode().partition(".")
        if seal == _seal(int(position), bound_to):
            return int(position)
    except (binascii.Error, ValueError):
        pass
    raise _invalid("page_token", "is not one of ours, or belongs to another filter")


def _seal(position: int, bound_to: str) -> str:
    return hashlib.sha256(f"page {position} {bound_to}".encode()).hexdigest()[:16]


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field} {description}", violations=[FieldViolation(field, description)])
