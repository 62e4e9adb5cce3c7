"""Requests that no SDK sends: heads without end, wishes for other protocols, bodies that come in two ways."""

import asyncio
import json
from urllib.parse import urlsplit

import pytest

from edge.connection import HEAD_LIMIT_BYTES
from tests.wire.edge.running_edge import BAD_KEY, GOOD_KEY, RunningEdge

pytestmark = pytest.mark.anyio

BODY = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}).encode()
POST = b"POST /v1/messages HTTP/1.1\r\nhost: h\r\nx-api-key: %b\r\n" % GOOD_KEY.encode()
LENGTH = b"content-length: %d\r\n" % len(BODY)


async def exchange(edge: RunningEdge, *pieces: bytes) -> bytes:
    """What the edge answers to bytes, up to the end of the connection."""
    address = urlsplit(edge.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "upgrade",
    [
        pytest.param(b"connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n", id="Java"),
        pytest.param(b"connection: upgrade\r\nUPGRADE: websocket\r\n", id="upper case"),
    ],
)
async def test_a_wish_for_another_protocol_is_passed_over(edge: RunningEdge, upgrade: bytes) -> None:
    answer = await exchange(edge, POST + LENGTH + upgrade + b"\r\n" + BODY, POST + b"connection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 2


async def test_a_body_may_speak_of_upgrades(edge: RunningEdge) -> None:
    body = BODY.replace(b"hi", b"\\r\\nupgrade: now").replace(b", ", b",\r\n\r\n")
    head = POST + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)

    assert (await exchange(edge, head + body)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(POST + b"x-long: " + b"a" * 2 * HEAD_LIMIT_BYTES, id="one header without end"),
        pytest.param(POST + b"x: y\r\n" * HEAD_LIMIT_BYTES, id="headers without end"),
        pytest.param(b"GET /" + b"a" * 2 * HEAD_LIMIT_BYTES, id="path without end"),
    ],
)
async def test_a_head_is_read_up_to_its_limit(edge: RunningEdge, head: bytes) -> None:
    assert refusal_of(await exchange(edge, head[: HEAD_LIMIT_BYTES + 1])) == 431


def refusal_of(answer: bytes) -> int:
    """The status of an answer to what could not be read; whole in either dialect."""
    head, _, text = answer.partition(b"\r\n\r\n")
    body = json.loads(text)
    assert f"\r\nrequest-id: {body['request_id']}\r\nx-request-id: {body['request_id']}\r\n".encode() in head
    assert body["error"].keys() == {"type", "message", "param", "code"}
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    return int(head.split(b" ")[1])


async def test_what_is_no_request_is_answered_in_both_dialects(edge: RunningEdge) -> None:
    assert refusal_of(await exchange(edge, b"what is this\r\n\r\n")) == 400


async def test_large_bodies_and_many_requests_are_no_large_heads(edge: RunningEdge) -> None:
    padded = BODY[:-1] + b" " * 3 * HEAD_LIMIT_BYTES + b"}"
    first = POST + b"content-length: %d\r\n\r\n" % len(padded) + padded
    more = (POST + b"x-long: " + b"a" * 20_000 + b"\r\n" + LENGTH + b"\r\n" + BODY) * 8
    last = POST + LENGTH + b"connection: close\r\n\r\n" + BODY

    assert (await exchange(edge, first, more, last)).count(b"HTTP/1.1 200 ") == 10


async def test_a_bad_key_is_worse_news_than_a_bad_idempotency_key(edge: RunningEdge) -> None:
    head = POST + LENGTH + b"connection: close\r\nidempotency-key: %b\r\n\r\n" % (b"k" * 256)
    answer = await exchange(edge, head + BODY)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"x-ratelimit-limit-requests: " in answer
    refused = await exchange(edge, head.replace(GOOD_KEY.encode(), BAD_KEY.encode()) + BODY)
    assert refused.startswith(b"HTTP/1.1 401 ")
