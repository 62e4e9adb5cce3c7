"""Where an upstream's methods are, from the base URL that a catalogue states.

Owns the tolerance for base URLs with and without their version segment; refuses everything else about HTTP.
"""

import functools
from urllib.parse import urlsplit


@functools.lru_cache(maxsize=4096)
def openai_url(base_url: str, method: str) -> str:
    """`https://host/v1` and `https://host` both mean version 1; a longer path is taken as it is."""
    base = base_url.rstrip("/")
    return f"{base}/{method}" if urlsplit(base).path else f"{base}/v1/{method}"


@functools.lru_cache(maxsize=4096)
def versioned_url(base_url: str, method: str) -> str:
    """For dialects whose base URL stands before the version segment (`v1/messages`), which is not repeated."""
    base = base_url.rstrip("/")
    version = method.partition("/")[0]
    return f"{base.removesuffix(f'/{version}')}/{method}"
