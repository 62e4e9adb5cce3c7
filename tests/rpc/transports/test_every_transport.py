"""What callers and handlers may rely on, whichever transport carries the call.

Owns the one suite over plain gRPC, links and in process; what only links do is tested elsewhere.
"""

import asyncio
from datetime import timedelta

import grpc
import pytest

from services.runtime.calls import CancelReason
from services.runtime.errors import (
    CallCancelledError,
    DeadlineExceededError,
    GatewayError,
    InvalidRequestError,
    MessageTooLargeError,
    RateLimitedError,
    UnimplementedError,
)
from tests.rpc.transports.probe_service import CALLER, LIMITS, Opener, ProbeService, background, outcome_of, until

MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(0, id="empty"),
        pytest.param(100, id="small"),
        pytest.param(16 * 1024 + 1, id="one byte over a piece"),
        pytest.param(300_000, id="over a window"),
        pytest.param(20 * MEGABYTE, id="twenty megabytes"),
    ],
)
async def test_a_response_follows_a_request_of_any_size(open_channel: Opener, size: int) -> None:
    message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with open_channel(ProbeService()) as stub:
        assert await stub.Echo(message, timeout=20) == message


async def test_many_calls_run_at_once_and_none_gets_the_answer_of_another(open_channel: Opener) -> None:
    requests = [str(number).encode() for number in range(500)]
    async with open_channel(ProbeService()) as stub:
        assert await asyncio.gather(*(stub.Echo(request, timeout=20) for request in requests)) == requests


async def test_a_stream_arrives_whole_and_in_order(open_channel: Opener) -> None:
    async with open_channel(ProbeService()) as stub:
        call = stub.Count(b"3000", timeout=20)
        received = [int(message) async for message in call]
        assert received == list(range(3000))
        assert dict(call.trailing_metadata) == {"x-counted": "3000"}


async def test_a_stream_that_fails_gives_what_came_before_and_then_the_failure(open_channel: Opener) -> None:
    async with open_channel(ProbeService()) as stub:
        call = stub.CountThenFail(b"", timeout=20)
        assert [await anext(call) for _ in range(3)] == [b"0", b"1", b"2"]
        with pytest.raises(RateLimitedError, match="that is enough"):
            await anext(call)


async def test_metadata_travels_both_ways(open_channel: Opener) -> None:
    async with open_channel(ProbeService()) as stub:
        call = stub.Echo(b"", timeout=20, metadata=[("x-text", "grün"[:2]), ("x-raw-bin", b"\x00\xff"), ("other", "o")])
        await call
        assert sorted(call.trailing_metadata) == [("x-raw-bin", b"\x00\xff"), ("x-text", "gr")]


async def test_the_handler_sees_who_calls_what_and_until_when(open_channel: Opener) -> None:
    service = ProbeService()
    async with open_channel(service) as stub:
        await stub.Echo(b"", timeout=20)
        remaining = (service.calls[0].deadline or 0) - asyncio.get_running_loop().time()
        assert (service.calls[0].caller, service.calls[0].path) == (CALLER, "/mws.test.v1.ProbeService/Echo")
        assert 18 < remaining <= 20.1


async def test_a_status_keeps_its_details(open_channel: Opener) -> None:
    async with open_channel(ProbeService()) as stub:
        with pytest.raises(RateLimitedError) as limited:
            await stub.Fail(b"", timeout=20)
        with pytest.raises(InvalidRequestError) as invalid:
            await stub.Fail(b"x", timeout=20)
    error = limited.value
    assert (error.message, error.retry_in, error.metadata, error.limits) == (
        "slow down",
        timedelta(seconds=1.5),
        {"limit": "tokens"},
        LIMITS,
    )
    assert [(v.field, v.description) for v in invalid.value.violations] == [("a.b", "is wrong")]


async def test_an_unexpected_exception_is_internal_and_keeps_its_text_to_itself(open_channel: Opener) -> None:
    async with open_channel(ProbeService()) as stub:
        with pytest.raises(GatewayError) as failed:
            await stub.Break(b"a secret", timeout=20)
    assert type(failed.value) is GatewayError
    assert failed.value.code is grpc.StatusCode.INTERNAL
    assert "secret" not in str(failed.value)


async def test_an_unknown_method_is_unimplemented(open_channel: Opener) -> None:
    async with open_channel(ProbeService()) as stub:
        with pytest.raises(UnimplementedError):
            await stub.Missing(b"", timeout=20)


async def test_a_deadline_ends_the_call_on_both_sides(open_channel: Opener) -> None:
    service = ProbeService()
    async with open_channel(service) as stub:
        started = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceededError):
            await stub.Wait(b"", timeout=0.2)
        assert asyncio.get_running_loop().time() - started < 1
        await until(lambda: service.ends == [CancelReason.DEADLINE])


async def test_a_deadline_ends_a_stream_that_has_begun(open_channel: Opener) -> None:
    service = ProbeService()
    async with open_channel(service) as stub:
        call = stub.Trickle(b"", timeout=0.3)
        assert await anext(call) == b"first"
        with pytest.raises(DeadlineExceededError):
            await anext(call)
        await until(lambda: service.ends == [CancelReason.DEADLINE])


async def test_a_deadline_that_has_passed_fails_at_once(open_channel: Opener) -> None:
    async with open_channel(ProbeService()) as stub:
        with pytest.raises(DeadlineExceededError):
            await stub.Wait(b"", timeout=-1)


async def test_cancelling_the_task_that_waits_cancels_the_handler(open_channel: Opener) -> None:
    service = ProbeService()
    async with open_channel(service) as stub:
        waiting = background(outcome_of(stub.Wait(b"", timeout=20)))
        await until(lambda: service.running == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: service.ends == [CancelReason.CLIENT_GONE])


async def test_cancelling_a_call_fails_it_here_and_cancels_the_handler(open_channel: Opener) -> None:
    service = ProbeService()
    async with open_channel(service) as stub:
        call = stub.Wait(b"", timeout=20)
        waiting = background(outcome_of(call))
        await until(lambda: service.running == 1)
        assert call.cancel(CancelReason.CLIENT_GONE)
        assert await waiting is CallCancelledError
        assert not call.cancel(CancelReason.CLIENT_GONE)
        await until(lambda: service.ends == [CancelReason.CLIENT_GONE])


async def test_cancelling_a_stream_cancels_its_handler(open_channel: Opener) -> None:
    service = ProbeService()
    async with open_channel(service) as stub:
        call = stub.Trickle(b"", timeout=20)
        assert await anext(call) == b"first"
        call.cancel(CancelReason.CLIENT_GONE)
        with pytest.raises(CallCancelledError):
            await anext(call)
        await until(lambda: service.ends == [CancelReason.CLIENT_GONE])


async def test_a_stream_that_is_left_and_lost_cancels_its_handler(open_channel: Opener) -> None:
    service = ProbeService()
    async with open_channel(service) as stub:
        async for message in stub.Trickle(b"", timeout=20):
            assert message == b"first"
            break
        await until(lambda: service.ends == [CancelReason.CLIENT_GONE])


async def test_an_oversized_request_fails_alone(open_channel: Opener) -> None:
    async with open_channel(ProbeService()) as stub:
        neighbours = [stub.Echo(b"n", timeout=20) for _ in range(10)]
        with pytest.raises(MessageTooLargeError):
            await stub.Echo(b"x" * (49 * 1024 * 1024), timeout=20)
        assert await asyncio.gather(*neighbours, stub.Echo(b"after", timeout=20)) == [*([b"n"] * 10), b"after"]


async def test_a_reader_that_stalls_stops_its_own_handler_only(open_channel: Opener) -> None:
    service = ProbeService()
    async with open_channel(service) as stub:
        stalled = stub.Flood(b"", timeout=20)
        assert await anext(stalled)
        held = -1
        while held != service.produced:  # until nothing is produced any more
            held = service.produced
            await stub.Echo(b"", timeout=20)
            await asyncio.sleep(0.05)
        numbers = [message async for message in stub.Count(b"1000", timeout=20)]
        assert (len(numbers), service.produced) == (1000, held)
        for _ in range(held):
            await anext(stalled)
        await until(lambda: service.produced > held)
        stalled.cancel(CancelReason.CLIENT_GONE)
