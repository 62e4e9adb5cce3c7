"""Tool call ids for an upstream that does not take every character: written reversibly, read back in answers.

Pure. Callers keep their ids verbatim; only what such an upstream sees is rewritten.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable

_PLAIN = re.compile(r"[a-zA-Z0-9_-]+")
_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_MARK = "mwsid_"


def encode(call_id: str) -> str:
    """The id itself if the upstream takes it, else one that `decode` reads. One with our mark is encoded too."""
    if _PLAIN.fullmatch(call_id) and not call_id.startswith(_MARK):
        return call_id
    return _MARK + base64.urlsafe_b64encode(call_id.encode()).decode().rstrip("=")


def decode(call_id: str) -> str:
    """What `encode` was given; any other id stays itself."""
    if not call_id.startswith(_MARK):
        return call_id
    text = call_id[len(_MARK) :]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return call_id


def nine(call_id: str) -> str:
    """Nine letters and digits. The upstream compares ids within one request only, so nothing has to be read back."""
    return call_id if _NINE.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]


def same(call_id: str) -> str:
    """The id as it is."""
    return call_id


Rewriting = Callable[[str], str]

_WAYS: dict[str, tuple[Rewriting, Rewriting]] = {
    "verbatim": (same, same),
    "encoded": (encode, decode),
    "alnum9": (nine, same),
}


def ways(option: object, default: str) -> tuple[Rewriting, Rewriting]:
    """Towards the upstream and back, by the option `tool_ids` of a target."""
    return _WAYS.get(str(option or default), _WAYS[default])
