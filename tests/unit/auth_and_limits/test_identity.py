"""Access tokens: what is checked, and what a missing key set means.

Owns tokens signed with keys made here; refuses sockets.
"""

import asyncio
import base64
import hmac
import json
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from services.auth_and_limits.identity import OidcTokens, TrustedIssuer
from services.runtime.errors import InvalidCredentialError, StoreUnavailableError

ISSUER = "https://idp.example/realms/mws"
NOW = 1_800_000_000
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
STRANGER = RSAKey.generate_key(2048, {"kid": "rsa"})
ROTATED = RSAKey.generate_key(2048, {"kid": "rotated"})
GOOD: dict[str, Any] = {"iss": ISSUER, "aud": "mws", "sub": "svc", "exp": NOW + 60, "iat": NOW}


class Published:
    """What the issuer publishes, and how often it was asked."""

    def __init__(self, *keys: Any) -> None:
        self.keys = keys
        self.is_down = False
        self.reads = 0
        self.is_read = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self) -> bytes:
        self.reads += 1
        self.is_read.set()
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.is_down:
            raise OSError
        return json.dumps({"keys": [key.as_dict(private=False) for key in self.keys]}).encode()


class Clock:
    """Seconds that a test advances."""

    def __init__(self) -> None:
        self.s = 1_000.0


def verifier(published: Published, clock: Clock) -> OidcTokens:
    return OidcTokens([TrustedIssuer(ISSUER, "mws", published.fetch)], lambda: clock.s, lambda: NOW)


def signed(key: Any = RSA, algorithm: str = "RS256", **claims: Any) -> str:
    values = {name: value for name, value in {**GOOD, **claims}.items() if value is not None}
    return jwt.encode({"alg": algorithm, "kid": key.kid}, values, key, algorithms=[algorithm])


def signed_with_the_public_key() -> str:
    """What a verifier takes that lets the token choose between a signature and a shared secret."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    head = part(json.dumps({"alg": "HS256", "kid": "rsa"}).encode()) + "." + part(json.dumps(GOOD).encode())
    return head + "." + part(hmac.digest(RSA.as_pem(private=False), head.encode(), "sha256"))


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(signed(), id="RS256"),
        pytest.param(signed(EC, "ES256"), id="ES256"),
        pytest.param(signed(aud=["other", "mws"]), id="one audience of several"),
        pytest.param(signed(exp=NOW - 29), id="expired within the leeway"),
    ],
)
async def test_a_good_token_names_issuer_and_subject(token: str) -> None:
    assert await verifier(Published(RSA, EC), Clock()).verify(token) == (ISSUER, "svc")


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="nothing"),
        pytest.param("a.b", id="two parts"),
        pytest.param("a.b.c", id="no base64"),
        pytest.param("e30.W10.e30", id="claims that are a list"),
        pytest.param("e30." + "W1tb" * 3_000 + ".e30", id="claims nested too deep"),
        pytest.param(signed() + "A" * 17_000, id="too long"),
        pytest.param(signed()[:-8] + "AAAAAAAA", id="a broken signature"),
        pytest.param(signed(STRANGER), id="another key of the same name"),
        pytest.param(signed(ROTATED), id="a key that was never published"),
        pytest.param(signed(iss="https://other"), id="another issuer"),
        pytest.param(signed(iss=None), id="no issuer"),
        pytest.param(signed(aud="other"), id="another audience"),
        pytest.param(signed(aud=None), id="no audience"),
        pytest.param(signed(exp=NOW - 31), id="expired"),
        pytest.param(signed(exp=None), id="without an end"),
        pytest.param(signed(exp="tomorrow"), id="an end that is no instant"),
        pytest.param(signed(nbf=NOW + 60), id="not valid yet"),
        pytest.param(signed(sub=None), id="no subject"),
        pytest.param(signed(sub=""), id="an empty subject"),
        pytest.param(signed(sub=7), id="a subject that is no text"),
        pytest.param(
            signed_with_the_public_key(),
            id="the public key used as a secret",
        ),
        pytest.param("eyJhbGciOiJub25lIn0." + signed().split(".")[1] + ".", id="no signature at all"),
    ],
)
async def test_everything_else_is_invalid(token: str) -> None:
    with pytest.raises(InvalidCredentialError):
        await verifier(Published(RSA, EC), Clock()).verify(token)


async def test_without_any_keys_nobody_is_called_invalid() -> None:
    published = Published(RSA)
    published.is_down = True
    tokens = verifier(published, Clock())

    with pytest.raises(StoreUnavailableError):
        await tokens.verify(signed())
    published.is_down = False

    assert await tokens.verify(signed())


async def test_old_keys_serve_while_new_ones_cannot_be_had() -> None:
    published, clock = Published(RSA), Clock()
    tokens = verifier(published, clock)
    await tokens.verify(signed())
    published.is_down = True
    clock.s += 10_000

    assert await tokens.verify(signed())


async def test_keys_are_read_once_in_five_minutes() -> None:
    published, clock = Published(RSA), Clock()
    tokens = verifier(published, clock)
    for _ in range(3):
        await tokens.verify(signed())
    assert published.reads == 1

    await tokens.tokens.refresh()
    assert published.reads == 1

    clock.s += 301
    await tokens.verify(signed())
    assert published.reads == 1, "no token waits for a routine reading"
    await tokens.tokens.refresh()

    assert published.reads == 2


async def test_a_rotated_key_is_found_at_once_and_a_forged_name_does_not_hammer_the_issuer() -> None:
    published, clock = Published(RSA), Clock()
    tokens = verifier(published, clock)
    await tokens.verify(signed())
    published.keys = (RSA, ROTATED)

    assert await tokens.verify(signed(ROTATED))
    assert published.reads == 2
    forged = signed(RSAKey.generate_key(2048, {"kid": "forged"}))
    for _ in range(20):
        with pytest.raises(InvalidCredentialError):
            await tokens.verify(forged)
    assert published.reads == 6

    clock.s += 10
    published.keys = (STRANGER, EC)
    assert await tokens.verify(signed(EC, "ES256"))


async def test_a_burst_with_a_rotated_key_reads_once_and_is_let_in_whole() -> None:
    published, clock = Published(RSA), Clock()
    tokens = verifier(published, clock)
    await tokens.verify(signed())
    published.keys = (ROTATED,)
    token = signed(ROTATED)

    answers = await asyncio.gather(*(tokens.verify(token) for _ in range(20)))

    assert (answers, published.reads) == ([(ISSUER, "svc")] * 20, 2)


async def test_a_key_taken_back_is_refused_once_the_keys_were_read_again() -> None:
    published, clock = Published(RSA, ROTATED), Clock()
    tokens = verifier(published, clock)
    await tokens.verify(signed())
    published.keys = (ROTATED,)
    clock.s += 301
    await tokens.tokens.refresh()

    with pytest.raises(InvalidCredentialError):
        await tokens.verify(signed())


async def test_an_unknown_key_of_an_issuer_that_cannot_be_asked_is_not_called_invalid() -> None:
    published, clock = Published(RSA), Clock()
    tokens = verifier(published, clock)
    await tokens.verify(signed())
    published.is_down = True

    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await tokens.verify(signed(ROTATED))
    assert await tokens.verify(signed())


async def test_a_reading_that_is_cancelled_lets_the_next_one_begin() -> None:
    published, clock = Published(RSA), Clock()
    tokens = verifier(published, clock)
    published.gate.clear()
    first = asyncio.ensure_future(tokens.verify(signed()))
    second = asyncio.ensure_future(tokens.verify(signed()))
    await published.is_read.wait()
    first.cancel()
    published.gate.set()

    assert await second == (ISSUER, "svc")
