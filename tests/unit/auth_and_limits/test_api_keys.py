"""The form of API keys and of their digests.

Owns the proof of `api_keys` and of page tokens' seals; refuses stores.
"""

import hashlib
import hmac
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth_and_limits import api_keys
from services.auth_and_limits.pages import PageTokenError, PageTokens

KEY = api_keys.mint(lambda count: bytes(range(count)))


@given(noise=st.binary(min_size=32, max_size=32))
def test_every_minted_key_is_well_formed(noise: bytes) -> None:
    text = api_keys.mint(lambda _: noise)

    assert text.startswith("mws_live_")
    assert len(text) == 51
    assert text.isascii()
    assert text.isprintable()
    assert api_keys.is_well_formed(text)


def test_minted_keys_differ() -> None:
    assert len({api_keys.mint(os.urandom) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("mws_live_", id="the prefix alone"),
        pytest.param(KEY[:-1], id="cut short"),
        pytest.param(KEY + "a", id="too long"),
        pytest.param("sk-" + KEY[3:], id="another prefix"),
        pytest.param(KEY[:20] + ("a" if KEY[20] != "a" else "b") + KEY[21:], id="one letter mistyped"),
        pytest.param(KEY[:-6] + "é" * 6, id="letters beyond ASCII"),
    ],
)
def test_what_was_never_minted_is_not_well_formed(text: str) -> None:
    assert not api_keys.is_well_formed(text)


def test_the_shown_prefix_holds_four_characters_of_the_secret() -> None:
    assert api_keys.shown_prefix(KEY) == KEY[:13]


def test_what_is_stored_depends_on_key_and_pepper() -> None:
    digest = hashlib.sha256(KEY.encode()).digest()

    assert api_keys.digest(KEY) == digest
    assert api_keys.stored_digest(b"pepper", digest) == hmac.digest(b"pepper", digest, "sha256")


@given(last_id=st.text(max_size=40), name=st.text(max_size=10))
def test_a_page_token_opens_for_its_own_list_only(last_id: str, name: str) -> None:
    tokens = PageTokens(b"secret")
    token = tokens.seal(last_id, "accounts", name)

    assert tokens.open(token, "accounts", name) == last_id
    for strangers, filters in ((tokens, ("keys", name)), (PageTokens(b"other"), ("accounts", name))):
        with pytest.raises(PageTokenError):
            strangers.open(token, *filters)


@pytest.mark.parametrize("token", ["", "x", "é", "AAAA", "*" * 40, "A" * 41])
def test_what_was_never_sealed_does_not_open(token: str) -> None:
    with pytest.raises(PageTokenError):
        PageTokens(b"secret").open(token, "accounts")
