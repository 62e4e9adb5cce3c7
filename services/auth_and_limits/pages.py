"""Page tokens: where the next page begins, sealed with the filters that it belongs to.

Owns their form and check; refuses to query. A token of another list, or of other filters, is no token of ours.
"""

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

DEFAULT_SIZE = 100
LARGEST_SIZE = 1000
_SEAL_BYTES = 12

T = TypeVar("T")


class PageTokenError(ValueError):
    """The token is not one of ours, or of another filter."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted: `size` items beyond `after_id` (empty: from the start)."""

    size: int
    after_id: str = ""


class PageTokens:
    """Seals and opens page tokens under a secret of the process's deployment."""

    def __init__(self, secret: bytes) -> None:
        self._secret = hmac.digest(secret, b"page tokens", "sha256")

    def seal(self, last_id: str, *filters: str) -> str:
        """The token for what follows `last_id`."""
        return base64.urlsafe_b64encode(self._seal(last_id, filters) + last_id.encode()).decode()

    def open(self, token: str, *filters: str) -> str:
        """The id that a token stands for. Raises PageTokenError."""
        try:
            content = base64.b64decode(token, altchars=b"-_", validate=True)
            seal, last_id = content[:_SEAL_BYTES], content[_SEAL_BYTES:].decode()
        except (binascii.Error, ValueError) as error:
            raise PageTokenError("not a page token") from error
        if not hmac.compare_digest(seal, self._seal(last_id, filters)):
            raise PageTokenError("not a page token of this list")
        return last_id

    def _seal(self, last_id: str, filters: Sequence[str]) -> bytes:
        content = json.dumps([last_id, *filters]).encode()
        return hmac.digest(self._secret, content, "sha256")[:_SEAL_BYTES]


def cut(items: Sequence[T], size: int) -> tuple[Sequence[T], bool]:
    """A page out of up to `size + 1` items, and whether more follow."""
    return items[:size], len(items) > size
