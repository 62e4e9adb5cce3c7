"""Cross-origin requests: which pages may read an answer, with credentials, and what a preflight is told.

Owns the headers; refuses any origin that is not configured, and every wildcard.
"""

from collections.abc import Collection

from edge.company_proxy.errors import detail
from edge.exchange import Exchange
from edge.limit_headers import Headers

_METHODS = b"GET, POST"
_HEADERS = b"authorization, content-type, x-application-name, anthropic-version, anthropic-beta"
_EXPOSED = (
    b"request-id, x-request-id, x-mws-profile, retry-after, retry-after-ms, x-should-retry, www-authenticate, "
    b"x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, "
    b"x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens"
)
_MAX_AGE_S = b"600"
_VARY = (b"vary", b"Origin")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")


class Cors:
    """`origins` are compared to the letter, but for case."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def headers(self, exchange: Exchange) -> Headers:
        """What every answer to this request carries."""
        if not self._origins:
            return []
        origin = exchange.header(b"origin")
        if origin is None or not self._allows(origin):
            return [_VARY]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", _EXPOSED),
            _VARY,
        ]

    @staticmethod
    def is_preflight(exchange: Exchange) -> bool:
        """Whether a browser asks before it asks."""
        return (
            exchange.scope["method"] == "OPTIONS"
            and exchange.header(b"origin") is not None
            and exchange.header(b"access-control-request-method") is not None
        )

    async def answer(self, exchange: Exchange) -> None:
        """Answers a preflight. The headers of `headers` are added to it as to any answer."""
        origin = exchange.header(b"origin") or b""
        if not self._allows(origin):
            await exchange.respond(400, detail("Disallowed CORS origin"), [])
            return
        headers = [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", exchange.header(b"access-control-request-headers") or _HEADERS),
            (b"access-control-max-age", _MAX_AGE_S),
        ]
        await exchange.respond(200, b"OK", headers, kind=_TEXT)

    def _allows(self, origin: bytes) -> bool:
        return origin.decode("latin-1").lower() in self._origins
