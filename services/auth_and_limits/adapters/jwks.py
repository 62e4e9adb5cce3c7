"""Where an issuer's key set comes from: a file, or a URL.

Owns the reading; refuses to trust what it read: the keys are checked by whoever imports them.
"""

import asyncio
from datetime import timedelta
from pathlib import Path

from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from services.auth_and_limits.oidc_keys import FetchKeys

_TIMEOUT = timedelta(seconds=2)
_LARGEST_BYTES = 1_000_000


def keys_in_file(path: Path) -> FetchKeys:
    """Reads the file anew each time, so a replaced one counts."""

    async def fetch() -> bytes:
        return await asyncio.to_thread(path.read_bytes)

    return fetch


def keys_at_url(url: str) -> FetchKeys:
    """Gets the document over HTTP. A connection per fetch: there is one in five minutes."""

    async def fetch() -> bytes:
        try:
            async with ClientBuilder().timeout(_TIMEOUT).error_for_status(True).build() as client:
                response = await client.get(url).build().send()
                content = bytes(await response.bytes())
        except PyreqwestError as error:
            raise OSError(f"the key set of {url} cannot be had") from error
        if len(content) > _LARGEST_BYTES:
            raise OSError(f"the key set of {url} is too large")
        return content

    return fetch
