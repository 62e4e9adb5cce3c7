"""Tool call ids for an upstream that only takes `[a-zA-Z0-9_-]`: written reversibly, read back in answers.

Pure. Callers keep their ids verbatim; only what such an upstream sees is rewritten.
"""

import base64
import binascii
import re

_PLAIN = re.compile(r"[a-zA-Z0-9_-]+")
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
