"""OIDC access tokens: a JWT's signature, issuer and times, and for teams audience and subject.

Owns the check; refuses to know what a subject may do, and where keys come from (`oidc_keys`).
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.util import urlsafe_b64decode

from services.auth_and_limits.oidc_keys import FetchKeys, IssuerKeys
from services.runtime.errors import InvalidCredentialError

LARGEST_TOKEN = 16 * 1024
_LEEWAY_S = 30
_REFRESH_EVERY_S = 20.0
# What decoding bytes of a stranger can end in.
_BAD_TOKEN = (JoseError, ValueError, TypeError, RecursionError)

Claims = Mapping[str, Any]


class SignedTokens:
    """Tokens of the issuers whose keys are given, signed by one of the algorithms, whomever they are meant for."""

    def __init__(self, keys: Mapping[str, IssuerKeys], algorithms: Sequence[str], unix_s: Callable[[], int]) -> None:
        self._keys = dict(keys)
        self._algorithms = list(algorithms)
        self._unix_s = unix_s

    async def claims(self, token: str) -> Claims:
        """The claims of a token in its time. Raises InvalidCredentialError; StoreUnavailableError without keys."""
        issuer = _unverified_issuer(token)
        issuer_keys = self._keys.get(issuer)
        if issuer_keys is None:
            raise invalid_token()
        keys = await issuer_keys.known()
        claims = self._checked(token, issuer, keys)
        if claims is None:  # the issuer may have changed its keys since
            newer = await issuer_keys.newer(keys)
            claims = None if newer is None else self._checked(token, issuer, newer)
        if claims is None:
            raise invalid_token()
        return claims

    def _checked(self, token: str, issuer: str, keys: KeySet) -> Claims | None:
        """The claims; None if the token names a key that is not among these. Raises InvalidCredentialError."""
        rules = jwt.JWTClaimsRegistry(
            now=self._unix_s,
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": issuer},
            exp={"essential": True},
        )
        try:
            claims = jwt.decode(token, keys, algorithms=self._algorithms).claims
            rules.validate(claims)
        except InvalidKeyIdError:
            return None
        except _BAD_TOKEN as error:
            raise invalid_token() from error
        return claims

    async def refresh(self) -> None:
        """Reads keys that are old, or were never read. Never fails."""
        await asyncio.gather(*(keys.refresh() for keys in self._keys.values()))

    async def keep_fresh(self) -> None:
        """The same for ever, so that no token has to wait for it."""
        while True:
            await self.refresh()
            await asyncio.sleep(_REFRESH_EVERY_S)


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """An issuer whose tokens are accepted from teams, for one audience."""

    issuer: str
    audience: str
    fetch_keys: FetchKeys


class OidcTokens:
    """`ports.TokenVerifier` for the configured issuers."""

    def __init__(self, issuers: Iterable[TrustedIssuer], now_s: Callable[[], float], unix_s: Callable[[], int]) -> None:
        trusted = {issuer.issuer: issuer for issuer in issuers}
        self._audiences = {name: issuer.audience for name, issuer in trusted.items()}
        keys = {name: IssuerKeys(name, issuer.fetch_keys, now_s) for name, issuer in trusted.items()}
        self.tokens = SignedTokens(keys, ("RS256", "ES256"), unix_s)

    async def verify(self, token: str) -> tuple[str, str]:
        claims = await self.tokens.claims(token)
        issuer, subject = claims["iss"], claims.get("sub")
        if not is_for(claims, self._audiences[issuer]) or not isinstance(subject, str) or not subject:
            raise invalid_token()
        return issuer, subject


def is_for(claims: Claims, audience: str) -> bool:
    """Whether a token is meant for an audience."""
    stated = claims.get("aud")
    return stated == audience or (isinstance(stated, list) and audience in stated)


def _unverified_issuer(token: str) -> str:
    """Which issuer's keys to check against; nothing else is believed before the signature."""
    parts = token.split(".")
    if len(parts) != 3 or len(token) > LARGEST_TOKEN:
        raise invalid_token()
    try:
        claims: Any = json.loads(urlsafe_b64decode(parts[1].encode()))
    except _BAD_TOKEN as error:
        raise invalid_token() from error
    issuer = claims.get("iss") if isinstance(claims, dict) else None
    return issuer if isinstance(issuer, str) else ""


def invalid_token() -> InvalidCredentialError:
    """What is said of a token that is not valid, whatever is wrong with it."""
    return InvalidCredentialError("the credential is not valid")
