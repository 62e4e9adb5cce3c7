"""The HTTP client on real sockets: what it keeps, when it leaves, how it fails."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.routing_and_inference.upstreams.http import HttpFailure, HttpFailureKind, HttpRequest, Timeouts
from services.routing_and_inference.upstreams.http_client import PooledHttpClient
from tests.fakes import Bytes, Drop, Hang, Refuse, ScriptedProvider, scripted_provider

PATIENT = Timeouts()
SOON = Timeouts(connect_s=2, first_byte_s=0.1, idle_s=0.1, total_s=5)
DEADLINE_S = 5.0


@asynccontextmanager
async def client() -> AsyncIterator[PooledHttpClient]:
    made = PooledHttpClient()
    try:
        yield made
    finally:
        await made.aclose()


def ask(provider: ScriptedProvider, timeouts: Timeouts = PATIENT, *, body: bytes = b"{}") -> HttpRequest:
    return HttpRequest(f"{provider.base_url}/v1/chat/completions", {"x-request-id": "call.1"}, body, timeouts)


async def read(http: PooledHttpClient, request: HttpRequest) -> tuple[int, bytes]:
    response = await http.post(request)
    try:
        return response.status, await response.read(1 << 20)
    finally:
        response.close()


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with scripted_provider(Refuse(200, b"one")) as provider, client() as http:
        for _ in range(5):
            assert await read(http, ask(provider)) == (200, b"one")
        assert (provider.connections, len(provider.attempts)) == (1, 5)


async def test_requests_at_once_have_connections_of_their_own() -> None:
    async with scripted_provider(Refuse(200, b"one")) as provider, client() as http:
        await asyncio.gather(*(read(http, ask(provider)) for _ in range(4)))
        assert len(provider.attempts) == 4
        assert 1 <= provider.connections <= 4


async def test_a_streamed_body_arrives_as_it_is_sent() -> None:
    async with scripted_provider(Bytes([b"one"], end="stall")) as provider, client() as http:
        response = await http.post(ask(provider))
        assert (response.status, await response.read_chunk()) == (200, b"one")
        response.close()
        await asyncio.wait_for(provider.attempts[0].left.wait(), DEADLINE_S)


async def test_a_body_of_unknown_length_ends_with_the_connection() -> None:
    headers = {"connection": "close"}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with client() as http:
        assert await read(http, HttpRequest(url, headers, b"", Timeouts())) == (200, b"all of it")
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("script", [Hang(), Bytes([], end="stall"), Bytes([b"one"], end="stall")])
async def test_cancelling_closes_the_connection_at_once(script: Hang | Bytes) -> None:
    async with scripted_provider(script) as provider, client() as http:
        task = asyncio.ensure_future(read(http, ask(provider)))
        deadline = time.monotonic() + DEADLINE_S
        while not provider.attempts and time.monotonic() < deadline:
            await asyncio.sleep(0)
        began = time.monotonic()
        task.cancel()
        await asyncio.wait_for(provider.attempts[0].left.wait(), DEADLINE_S)
        assert time.monotonic() - began < 0.5
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        pytest.param(Hang(), HttpFailureKind.TIMEOUT, id="no head"),
        pytest.param(Bytes([b"one"], end="stall"), HttpFailureKind.TIMEOUT, id="a body that stalls"),
        pytest.param(Bytes([b"one"], end="cut"), HttpFailureKind.CUT, id="a chunked body cut off"),
        pytest.param(Drop(), HttpFailureKind.CONNECT, id="a connection that closes before the head"),
        pytest.param(Refuse(200, b"x", {"content-length": "9", "connection": "close"}), HttpFailureKind.TIMEOUT,
                     id="a body that is shorter than announced"),
        pytest.param(Bytes([b"x"], headers={"content-encoding": "br"}), HttpFailureKind.MALFORMED,
                     id="an unknown encoding"),
        pytest.param(Bytes([b"no gzip"], headers={"content-encoding": "gzip"}), HttpFailureKind.MALFORMED,
                     id="a false gzip"),
        pytest.param(Bytes([gzip.compress(bytes(range(256)))[:99]], headers={"content-encoding": "gzip"}),
                     HttpFailureKind.CUT, id="half a gzip"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_has_a_name(script: Hang | Bytes | Drop | Refuse, kind: HttpFailureKind) -> None:
    async with scripted_provider(script) as provider, client() as http:
        with pytest.raises(HttpFailure) as failed:
            await read(http, ask(provider, SOON))
        assert failed.value.kind is kind


async def test_the_whole_time_is_bounded_however_busy_the_stream_is() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while not writer.is_closing():
                writer.write(b"1\r\nx\r\n")
                await asyncio.sleep(0.01)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with client() as http:
        with pytest.raises(HttpFailure) as failed:
            await read(http, HttpRequest(url, {}, b"", Timeouts(total_s=0.2)))
        assert failed.value.kind is HttpFailureKind.TIMEOUT
    server.close()
    await server.wait_closed()


async def test_nobody_listening_is_a_connection_failure() -> None:
    async with client() as http:
        with pytest.raises(HttpFailure) as failed:
            await read(http, HttpRequest("http://127.0.0.1:1/", {}, b"", SOON))
        assert failed.value.kind is HttpFailureKind.CONNECT


async def test_compressed_bodies_are_read() -> None:
    packed = gzip.compress(b"hello " * 1000)
    async with (
        scripted_provider(Bytes([packed[:20], packed[20:]], headers={"content-encoding": "gzip"})) as provider,
        client() as http,
    ):
        assert (await read(http, ask(provider)))[1] == b"hello " * 1000


async def test_a_body_over_the_limit_is_refused() -> None:
    async with scripted_provider(Refuse(200, b"x" * (1 << 21))) as provider, client() as http:
        with pytest.raises(HttpFailure) as failed:
            await read(http, ask(provider))
        assert failed.value.kind is HttpFailureKind.MALFORMED


async def test_a_kept_connection_that_was_closing_is_replaced_once() -> None:
    async with scripted_provider(Refuse(200, b"one")) as provider, client() as http:
        provider.script(Refuse(200, b"one"), Drop(), Refuse(200, b"two"))
        assert await read(http, ask(provider)) == (200, b"one")
        assert await read(http, ask(provider)) == (200, b"two")
        assert provider.connections == 2


async def test_a_fresh_connection_that_drops_is_not_tried_again() -> None:
    async with scripted_provider(Drop()) as provider, client() as http:
        with pytest.raises(HttpFailure):
            await read(http, ask(provider))
        assert len(provider.attempts) == 1


async def test_leaving_just_before_the_last_bytes_keeps_the_connection() -> None:
    async with scripted_provider(Bytes([b"data: [DONE]\n\n"])) as provider, client() as http:
        for _ in range(3):
            response = await http.post(ask(provider))
            assert await response.read_chunk() == b"data: [DONE]\n\n"
            response.leave()
            await asyncio.wait_for(_finished(provider), DEADLINE_S)
        assert provider.connections <= 3


async def _finished(provider: ScriptedProvider) -> None:
    while not provider.attempts[-1].finished:
        await asyncio.sleep(0)


async def test_a_slow_reader_holds_up_the_sender_and_loses_nothing() -> None:
    pieces = [b"x" * 65536] * 64
    async with scripted_provider(Bytes(pieces)) as provider, client() as http:
        response = await http.post(ask(provider))
        for _ in range(200):
            await asyncio.sleep(0)
        assert not provider.attempts[0].finished
        assert len(await response.read(1 << 23)) == 64 * 65536
        response.close()


async def test_header_values_cannot_begin_new_headers() -> None:
    async with client() as http:
        with pytest.raises(ValueError, match="line break"):
            await http.post(HttpRequest("http://127.0.0.1:1/", {"x": "a\r\nb: c"}, b"", SOON))


async def test_interim_answers_are_passed_over() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with client() as http:
        assert await read(http, HttpRequest(url, {}, b"", SOON)) == (200, b"ok")
    server.close()
    await server.wait_closed()
