"""The edge's small pure parts: durations, paging, cut JSON, keys and addresses, bodies."""

import gzip
import ipaddress
import json
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from jiter import from_json

from edge.bodies import read_body
from edge.exchange import Exchange
from edge.front import plain_path
from edge.gate import Gate, GateRules, key_of
from edge.limit_headers import go_duration
from edge.partial_json import as_object
from edge.problems import BadFieldError
from edge.routes.models import Model, page_from, page_of
from services.runtime.errors import (
    InvalidCredentialError,
    MessageTooLargeError,
    MissingCredentialError,
    RateLimitedError,
)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"),
        (0.012, "12ms"),
        (0.0001, "1ms"),
        (1, "1s"),
        (6 * 60, "6m0s"),
        (72.5, "1m12.5s"),
        (59.9995, "1m0s"),
        (3600, "1h0m0s"),
        (1.05, "1.05s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, expected: str) -> None:
    span = Duration()
    span.FromTimedelta(timedelta(seconds=seconds))

    assert go_duration(span).decode() == expected


def exchange(headers: dict[str, str], *pieces: bytes, client: str = "10.0.0.1") -> Exchange:
    messages = [
        {"type": "http.request", "body": piece, "more_body": at + 1 < len(pieces)} for at, piece in enumerate(pieces)
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(_message: Any) -> None:
        raise AssertionError

    scope = {"headers": [(k.encode(), v.encode()) for k, v in headers.items()], "client": (client, 1)}
    return Exchange(scope, receive, send, "id", 0.0)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({"authorization": "Bearer k"}, b"k", id="bearer"),
        pytest.param({"authorization": "bEaReR   k "}, b"k", id="scheme in any case, trimmed"),
        pytest.param({"x-api-key": " k "}, b"k", id="x-api-key"),
        pytest.param({"authorization": "Bearer a", "x-api-key": "b"}, b"b", id="x-api-key wins"),
        pytest.param({"authorization": "Bearer a", "x-api-key": " "}, b"a", id="an empty x-api-key is none"),
        pytest.param({"authorization": "Bearer "}, None, id="an empty bearer is none"),
        pytest.param({"authorization": "Basic k"}, None, id="another scheme"),
        pytest.param({}, None, id="nothing"),
    ],
)
def test_the_key_is_found(headers: dict[str, str], expected: bytes | None) -> None:
    assert key_of(exchange(headers)) == expected


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def gate(clock: Clock, **options: Any) -> Gate:
    return Gate(GateRules(3, 3.0, 600.0, options.get("proxies", ())), clock)


def test_strangers_get_so_many_tries_and_then_are_told_when() -> None:
    clock = Clock()
    door = gate(clock)
    for _ in range(3):
        with pytest.raises(MissingCredentialError):
            door.admit(exchange({}))
    with pytest.raises(RateLimitedError) as caught:
        door.admit(exchange({}))

    assert caught.value.limits is not None
    assert (caught.value.limits.requests.limit, caught.value.limits.requests.remaining) == (3, 0)
    assert caught.value.retry_in == timedelta(seconds=20)
    clock.now += 20
    with pytest.raises(MissingCredentialError):
        door.admit(exchange({}))
    with pytest.raises(MissingCredentialError):
        door.admit(exchange({}, client="10.0.0.2"))


def test_a_refused_key_is_refused_without_asking_for_a_while() -> None:
    clock = Clock()
    door = gate(clock)
    stranger = exchange({"x-api-key": "bad"})
    door.refuse(door.admit(stranger), stranger)
    with pytest.raises(InvalidCredentialError):
        door.admit(stranger)
    clock.now += 3

    assert door.admit(stranger)


def test_a_known_good_key_passes_from_an_exhausted_address() -> None:
    door = gate(Clock())
    customer = exchange({"x-api-key": "good"})
    door.welcome(door.admit(customer))
    for _ in range(3):
        with pytest.raises(MissingCredentialError):
            door.admit(exchange({}))

    assert door.admit(customer)
    with pytest.raises(RateLimitedError):
        door.admit(exchange({"x-api-key": "guess"}))


def test_addresses_of_trusted_proxies_are_looked_through() -> None:
    door = gate(Clock(), proxies=[ipaddress.ip_network("10.0.0.0/8")])
    for spoofed in range(3):
        headers = {"x-forwarded-for": f"{spoofed}.1.1.1, 7.7.7.7, 10.1.1.1"}
        with pytest.raises(MissingCredentialError):
            door.admit(exchange(headers))
    with pytest.raises(RateLimitedError):
        door.admit(exchange({"x-forwarded-for": "9.9.9.9, 7.7.7.7"}))
    with pytest.raises(MissingCredentialError):
        door.admit(exchange({"x-forwarded-for": "8.8.8.8"}))


async def test_bodies_are_read_up_to_the_limit() -> None:
    assert await read_body(exchange({}, b"ab", b"cd"), 4) == b"abcd"
    with pytest.raises(MessageTooLargeError):
        await read_body(exchange({}, b"ab", b"cde"), 4)
    with pytest.raises(MessageTooLargeError):
        await read_body(exchange({"content-length": "5"}, b""), 4)


async def test_gzip_is_inflated_up_to_the_limit() -> None:
    whole = gzip.compress(b"a" * 1000) + gzip.compress(b"b" * 10)
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]

    assert await read_body(exchange({"content-encoding": "gzip"}, *pieces), 2000) == b"a" * 1000 + b"b" * 10
    with pytest.raises(MessageTooLargeError):
        await read_body(exchange({"content-encoding": "gzip"}, gzip.compress(b"a" * 5_000_000)), 1_000_000)
    with pytest.raises(MessageTooLargeError):
        await read_body(exchange({"content-encoding": "gzip"}, *[gzip.compress(b"")] * 100), 1_000)
    for broken in (whole[:20], b"not gzip"):
        with pytest.raises(BadFieldError):
            await read_body(exchange({"content-encoding": "gzip"}, broken), 2000)
    with pytest.raises(BadFieldError):
        await read_body(exchange({"content-encoding": "br"}, b"x"), 2000)


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/v1/messages", "/v1/messages"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/v1/v1/models/x", "/v1/models/x"),
        ("/v1/v2/rerank", "/v2/rerank"),
        ("/v1", "/v1"),
        ("/v1x/v1/messages", "/v1x/v1/messages"),
    ],
)
def test_leading_versions_collapse(path: str, plain: str) -> None:
    assert plain_path(path) == plain


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), _json, max_size=4), st.integers(0, 400), st.booleans())
def test_cut_arguments_read_as_the_sdks_read_them(value: dict[str, Any], cut: int, is_ascii: bool) -> None:
    whole = json.dumps(value, ensure_ascii=is_ascii)
    text = whole[: min(cut, len(whole))]
    expected = from_json(text.encode(), partial_mode=True) if text else {}

    assert json.loads(as_object(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", {}, id="nothing"),
        pytest.param("  ", {}, id="blanks"),
        pytest.param("[1]", {"value": [1]}, id="another value"),
        pytest.param("{]", {"_raw": "{]"}, id="not JSON"),
    ],
)
def test_arguments_are_always_an_object(text: str, expected: dict[str, Any]) -> None:
    assert json.loads(as_object(text)) == expected


MODELS = [Model(name, name, 1, 1) for name in "abcde"]


@pytest.mark.parametrize(
    ("query", "names", "has_more"),
    [
        (b"", "abcde", False),
        (b"limit=2", "ab", True),
        (b"limit=2&after_id=b", "cd", True),
        (b"limit=2&after_id=c", "de", False),
        (b"limit=2&before_id=e", "cd", True),
        (b"limit=2&after_id=gone", "ab", True),
        (b"limit=2&before_id=gone", "ab", True),
        (b"after_id=b&before_id=e", "cd", False),
        (b"lifecycle[]=active&limit=1", "a", True),
        (b"lifecycle=retired&lifecycle=deprecated", "", False),
        (b"lifecycle%5B%5D=active&beta=true", "abcde", False),
    ],
)
def test_pages(query: bytes, names: str, has_more: bool) -> None:
    page = page_of(MODELS, page_from(query))

    assert ("".join(model.id for model in page.data), page.has_more) == (names, has_more)
    assert (page.first_id, page.last_id) == (names[:1] or None, names[-1:] or None)


@pytest.mark.parametrize("query", [b"limit=0", b"limit=x", b"limit=1001"])
def test_bad_pages_are_refused(query: bytes) -> None:
    with pytest.raises(BadFieldError):
        page_of(MODELS, page_from(query))
