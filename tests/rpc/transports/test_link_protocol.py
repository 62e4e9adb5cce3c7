"""The link's wire protocol as a peer in another language meets it: raw frames in, raw frames out.

Owns the server's answers to good and bad manners; what our own client makes of them is tested elsewhere.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from mws.link.v1 import frame_pb2 as pb
from mws.link.v1.link_service_pb2 import OpenRequest
from mws.link.v1.link_service_pb2_grpc import LinkServiceStub

from services.link.connection import Identity
from services.link.options import EOF, LinkOptions
from services.link.server import LinkListener
from services.runtime.calls import CancelReason
from services.runtime.errors import UnimplementedError, from_status
from tests.rpc.transports.probe_service import TOKEN, ProbeService, identify, until

ECHO = "/mws.test.v1.ProbeService/Echo"
HELLO = pb.Hello(version=1, token=TOKEN, peer="go-0", window_bytes=32768, max_message_bytes=50_000_000)


class RawPeer:
    """One stream, spoken by hand."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._frames: list[Any] = []

    async def say(self, *frames: pb.Frame) -> None:
        await self._stream.write(OpenRequest(frames=frames))

    async def hear(self, *kinds: int) -> Any:
        """The next frame; of these kinds, if any are named."""
        async with asyncio.timeout(5):
            while True:
                while not self._frames:
                    self._frames = list((await self._stream.read()).frames)
                frame = self._frames.pop(0)
                if not kinds or frame.kind in kinds:
                    return frame

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """How the server ended the stream."""
        async with asyncio.timeout(5):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self._stream.read() is not EOF:  # the status comes behind what was sent before
                    pass
            return await self._stream.code(), await self._stream.details()

    async def leave(self) -> None:
        await self._stream.done_writing()


@asynccontextmanager
async def raw_link(
    service: ProbeService, hello: pb.Hello | None = HELLO, options: LinkOptions | None = None
) -> AsyncIterator[RawPeer]:
    listener = LinkListener(service.table, service.guard(), identify, options=options)
    port = await listener.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = LinkServiceStub(channel)
        stream = stub.Open()
        peer = RawPeer(stream)
        if hello is not None:
            await peer.say(pb.Frame(kind=pb.FRAME_KIND_HELLO, hello=hello))
        yield peer
        stream.cancel()
    await listener.drain(0)


def call(number: int, payload: bytes = b"hi", **fields: Any) -> pb.Frame:
    return pb.Frame(call=number, kind=pb.FRAME_KIND_CALL, method=ECHO, payload=payload, **fields)


async def test_hello_is_answered_with_hello_and_the_servers_terms() -> None:
    async with raw_link(ProbeService()) as peer:
        hello = (await peer.hear()).hello
        assert (hello.version, hello.token, hello.window_bytes, hello.max_message_bytes) == (1, "", 262144, 50331648)


async def test_a_call_is_answered_by_its_last_message() -> None:
    async with raw_link(ProbeService()) as peer:
        await peer.say(call(1, timeout_us=2_000_000))
        frame = await peer.hear(pb.FRAME_KIND_MESSAGE)
        assert (frame.call, frame.payload, frame.last, frame.more) == (1, b"hi", True, False)


async def test_metadata_and_trace_context_reach_the_handler() -> None:
    service = ProbeService()
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with raw_link(service) as peer:
        await peer.say(call(1, metadata=[b"k", b"v", b"raw-bin", b"\xff"], traceparent=traceparent))
        await peer.hear(pb.FRAME_KIND_MESSAGE)
    assert list(service.calls[0].metadata) == [("k", "v"), ("raw-bin", b"\xff"), ("traceparent", traceparent)]


async def test_a_failure_is_a_status_with_its_details() -> None:
    async with raw_link(ProbeService()) as peer:
        await peer.say(pb.Frame(call=7, kind=pb.FRAME_KIND_CALL, method="/no.such/Method"))
        frame = await peer.hear(pb.FRAME_KIND_STATUS)
        error = from_status(status_pb2.Status.FromString(frame.status_details))
        assert (frame.call, frame.status_code, type(error)) == (7, 12, UnimplementedError)


async def test_a_request_may_come_in_pieces_among_those_of_others() -> None:
    async with raw_link(ProbeService()) as peer:
        await peer.say(call(1, b"ab", more=True, message_bytes=5), call(2, b"xy", more=True, message_bytes=3))
        await peer.say(pb.Frame(call=1, kind=pb.FRAME_KIND_MESSAGE, payload=b"c", more=True))
        await peer.say(pb.Frame(call=2, kind=pb.FRAME_KIND_MESSAGE, payload=b"z"))
        await peer.say(pb.Frame(call=1, kind=pb.FRAME_KIND_MESSAGE, payload=b"de"))
        answers = [await peer.hear(pb.FRAME_KIND_MESSAGE) for _ in range(2)]
        assert [(answer.call, answer.payload) for answer in answers] == [(2, b"xyz"), (1, b"abcde")]


async def test_a_request_over_the_limit_fails_alone() -> None:
    async with raw_link(ProbeService()) as peer:
        await peer.say(call(1, b"x", more=True, message_bytes=51_000_000), call(2))
        frames = {frame.call: frame for frame in [await peer.hear(2, 3), await peer.hear(2, 3)]}
        assert (frames[1].status_code, frames[2].payload) == (8, b"hi")


async def test_ping_is_answered_with_pong() -> None:
    async with raw_link(ProbeService()) as peer:
        await peer.say(pb.Frame(kind=pb.FRAME_KIND_PING))
        assert (await peer.hear(pb.FRAME_KIND_PONG)).call == 0


async def test_the_server_pings_and_gives_up_a_peer_that_says_nothing() -> None:
    async with raw_link(ProbeService(), options=LinkOptions(ping_every_s=0.05, dead_after_s=0.2)) as peer:
        await peer.hear(pb.FRAME_KIND_PING)
        assert (await peer.end())[0] is grpc.StatusCode.UNAVAILABLE


async def test_an_old_link_is_asked_to_go_and_still_serves() -> None:
    async with raw_link(ProbeService(), options=LinkOptions(max_age_s=0.05)) as peer:
        assert (await peer.hear(pb.FRAME_KIND_GOAWAY)).goaway_reason == pb.GOAWAY_REASON_AGE
        await peer.say(call(1))
        assert (await peer.hear(pb.FRAME_KIND_MESSAGE)).payload == b"hi"
        await peer.leave()
        assert (await peer.end())[0] is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        pytest.param(1, CancelReason.CLIENT_GONE, id="gone"),
        pytest.param(2, CancelReason.DEADLINE, id="deadline"),
        pytest.param(3, CancelReason.SHUTDOWN, id="shutdown"),
        pytest.param(0, CancelReason.CLIENT_GONE, id="not said"),
        pytest.param(99, CancelReason.CLIENT_GONE, id="unknown"),
    ],
)
async def test_cancel_reaches_the_handler_with_its_reason(number: int, reason: CancelReason) -> None:
    service = ProbeService()
    async with raw_link(service) as peer:
        await peer.say(pb.Frame(call=1, kind=pb.FRAME_KIND_CALL, method="/mws.test.v1.ProbeService/Wait"))
        await until(lambda: service.running == 1)
        cancel = pb.Frame(call=1, kind=pb.FRAME_KIND_CANCEL)
        cancel.cancel_reason = number  # type: ignore[assignment]
        await peer.say(cancel)
        await until(lambda: service.ends == [reason])


async def test_a_call_without_a_timeout_gets_the_default() -> None:
    service = ProbeService()
    async with raw_link(service) as peer:
        await peer.say(call(1))
        await peer.hear(pb.FRAME_KIND_MESSAGE)
    remaining_s = (service.calls[0].deadline or 0) - service.calls[0].started
    assert 29 < remaining_s < 31


async def test_unknown_kinds_and_frames_for_ended_calls_are_skipped() -> None:
    async with raw_link(ProbeService()) as peer:
        strange = pb.Frame(call=5)
        strange.kind = 77  # type: ignore[assignment]
        late = pb.Frame(call=3, kind=pb.FRAME_KIND_WINDOW, window_bytes=9)
        await peer.say(strange, late, pb.Frame(call=3, kind=pb.FRAME_KIND_CANCEL), call(6))
        assert (await peer.hear(pb.FRAME_KIND_MESSAGE)).call == 6


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([call(2), call(2)], id="an id used twice"),
        pytest.param([call(2), call(1)], id="ids that do not ascend"),
        pytest.param([call(1, b"", more=True, message_bytes=9)], id="an empty first piece"),
        pytest.param([call(1, b"a", more=True, message_bytes=2), call(2, b"a" * 20_000)] * 20, id="call ids again"),
        pytest.param(
            [
                call(1, b"a", more=True, message_bytes=2),
                pb.Frame(call=1, kind=pb.FRAME_KIND_MESSAGE, payload=b"too long"),
            ],
            id="a message longer than announced",
        ),
    ],
)
async def test_a_breach_ends_the_link(frames: list[pb.Frame]) -> None:
    async with raw_link(ProbeService()) as peer:
        await peer.hear(pb.FRAME_KIND_HELLO)
        for frame in frames[:3]:
            await peer.say(frame)
        assert (await peer.end())[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        pytest.param(pb.Hello(version=2, token=TOKEN, window_bytes=32768), "FAILED_PRECONDITION", id="other version"),
        pytest.param(pb.Hello(version=1, token=TOKEN, window_bytes=100), "FAILED_PRECONDITION", id="tiny window"),
        pytest.param(pb.Hello(version=1, token="x", window_bytes=32768), "UNAUTHENTICATED", id="unknown token"),
    ],
)
async def test_a_hello_that_will_not_do_ends_the_link(hello: pb.Hello, code: str) -> None:
    async with raw_link(ProbeService(), hello) as peer:
        assert (await peer.end())[0].name == code


async def test_a_link_that_does_not_begin_with_hello_ends() -> None:
    async with raw_link(ProbeService(), None) as peer:
        await peer.say(call(1))
        assert (await peer.end())[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_an_identity_does_not_show_its_token() -> None:
    assert "secret" not in repr(Identity("a secret", "edge-0"))
