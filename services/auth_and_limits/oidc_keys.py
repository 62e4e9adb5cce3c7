"""An issuer's signing keys: read once, kept fresh, and kept whatever becomes of the endpoint that publishes them.

Owns when a key set is read again; refuses to judge tokens. No token waits for a routine reading.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from services.runtime.errors import StoreUnavailableError

_FRESH_S = 300.0
# Strangers can name keys that nobody has, so keys that are not known are looked for a few times, then now and then.
_MOST_SEARCHES = 5.0
_SEARCHES_PER_S = 0.1

_log = structlog.get_logger()

FetchKeys = Callable[[], Awaitable[bytes]]
"""Reads an issuer's JWKS document. Raises OSError when it cannot be had."""


class IssuerKeys:
    """The last key set of one issuer. `now_s` is monotonic."""

    def __init__(self, issuer: str, fetch: FetchKeys, now_s: Callable[[], float]) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._now_s = now_s
        self._keys: KeySet | None = None
        self._read_at_s = float("-inf")
        self._searches = _MOST_SEARCHES
        self._searched_at_s = float("-inf")
        self._is_reachable = True
        self._reading: asyncio.Future[None] | None = None  # a burst reads once

    async def known(self) -> KeySet:
        """The keys as last read; reads them if that never worked. Raises StoreUnavailableError."""
        if self._keys is None:
            await self._read()
        if self._keys is None:
            raise _no_keys()
        return self._keys

    async def newer(self, seen: KeySet) -> KeySet | None:
        """Keys other than those in which a token's key was not found; None: there are none, so the token is not valid.

        Raises StoreUnavailableError when the issuer cannot be asked: the token may be good.
        """
        if self._keys is seen and (self._reading is not None or self._may_search()):
            await self._read()
        if self._keys is seen and not self._is_reachable:
            raise _no_keys()
        return None if self._keys is seen else self._keys

    async def refresh(self) -> None:
        """Reads keys that are old. Never fails: old ones are better than none."""
        if self._now_s() - self._read_at_s > _FRESH_S:
            await self._read()

    def _may_search(self) -> bool:
        now_s = self._now_s()
        left = min(_MOST_SEARCHES, self._searches + (now_s - self._searched_at_s) * _SEARCHES_PER_S)
        if left < 1:
            return False
        self._searches, self._searched_at_s = left - 1, now_s
        return True

    async def _read(self) -> None:
        while self._reading is not None:
            reading = self._reading
            await asyncio.wait([reading])
            if not reading.cancelled():
                return
        self._reading = asyncio.get_running_loop().create_future()
        try:
            await self._replace()
        except BaseException:
            self._reading.cancel()
            raise
        else:
            self._reading.set_result(None)
        finally:
            self._reading = None

    async def _replace(self) -> None:
        try:
            document = await self._fetch()
            keys = KeySet.import_key_set(json.loads(document))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, JoseError) as error:
            self._is_reachable = False
            _log.warning("issuer_keys.unreadable", issuer=self._issuer, cause=type(error).__name__)
            return
        self._is_reachable = True
        self._read_at_s = self._now_s()
        if self._keys is None or keys != self._keys:
            self._keys = keys


def _no_keys() -> StoreUnavailableError:
    return StoreUnavailableError("the issuer's keys cannot be read", retry_in=timedelta(seconds=1))
