"""OIDC access tokens of teams: a JWT's signature, issuer, audience and times, checked against the issuer's keys.

Owns the check and the cache of key sets; refuses to know what a subject may do.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.util import urlsafe_b64decode

from services.runtime.errors import InvalidCredentialError, StoreUnavailableError

LARGEST_TOKEN = 16 * 1024
_ALGORITHMS = ["RS256", "ES256"]
_LEEWAY_S = 30
_FRESH_S = 300.0
_REFETCH_S = 10.0
# What decoding bytes of a stranger can end in.
_BAD_TOKEN = (JoseError, ValueError, TypeError, RecursionError)

FetchKeys = Callable[[], Awaitable[bytes]]
"""Reads an issuer's JWKS document. Raises OSError when it cannot be had."""


@dataclass(slots=True)
class TrustedIssuer:
    """An issuer whose tokens are accepted, for one audience, and the last keys that it published."""

    issuer: str
    audience: str
    fetch_keys: FetchKeys
    keys: KeySet | None = None
    fetched_at_s: float = field(default=float("-inf"))
    tried_at_s: float = field(default=float("-inf"))


class OidcTokens:
    """`ports.TokenVerifier` for the configured issuers."""

    def __init__(self, issuers: list[TrustedIssuer], now_s: Callable[[], float], unix_s: Callable[[], int]) -> None:
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._now_s = now_s
        self._unix_s = unix_s

    async def verify(self, token: str) -> tuple[str, str]:
        issuer = self._issuers.get(_unverified_issuer(token))
        if issuer is None:
            raise _invalid()
        subject = self._subject(token, issuer, await self._keys(issuer, _FRESH_S))
        if subject is None:  # the issuer may have changed its keys since
            subject = self._subject(token, issuer, await self._keys(issuer, _REFETCH_S))
        if not subject:
            raise _invalid()
        return issuer.issuer, subject

    def _subject(self, token: str, issuer: TrustedIssuer, keys: KeySet) -> str | None:
        """The subject of a valid token; empty if it is not valid, None if it names a key that is not among these."""
        rules = jwt.JWTClaimsRegistry(
            now=self._unix_s,
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": issuer.issuer},
            aud={"essential": True, "value": issuer.audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        try:
            claims = jwt.decode(token, keys, algorithms=_ALGORITHMS).claims
            rules.validate(claims)
        except InvalidKeyIdError:
            return None
        except _BAD_TOKEN:
            return ""
        return claims["sub"] if isinstance(claims["sub"], str) else ""

    async def _keys(self, issuer: TrustedIssuer, fresh_s: float) -> KeySet:
        """The issuer's keys, at most this old if they can be had; old ones are better than none."""
        now_s = self._now_s()
        if now_s - issuer.fetched_at_s > fresh_s and now_s - issuer.tried_at_s > _REFETCH_S:
            issuer.tried_at_s = now_s
            try:
                issuer.keys = KeySet.import_key_set(json.loads(await issuer.fetch_keys()))
                issuer.fetched_at_s = now_s
            except (OSError, ValueError, KeyError, TypeError, JoseError) as error:
                if issuer.keys is None:
                    issuer.tried_at_s = float("-inf")
                    raise _no_keys() from error
        if issuer.keys is None:
            raise _no_keys()
        return issuer.keys


def _unverified_issuer(token: str) -> str:
    """Which issuer's keys to check against; nothing else is believed before the signature."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > LARGEST_TOKEN:
        raise _invalid()
    try:
        claims: Any = json.loads(urlsafe_b64decode(parts[1].encode()))
    except _BAD_TOKEN as error:
        raise _invalid() from error
    issuer = claims.get("iss") if isinstance(claims, dict) else None
    return issuer if isinstance(issuer, str) else ""


def _invalid() -> InvalidCredentialError:
    return InvalidCredentialError("the credential is not valid")


def _no_keys() -> StoreUnavailableError:
    return StoreUnavailableError("the issuer's keys cannot be read", retry_in=timedelta(seconds=1))
