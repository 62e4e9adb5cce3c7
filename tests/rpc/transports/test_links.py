"""What links alone promise: each call ends once whatever breaks, drains lose nothing, load finds new servers.

Owns faults of peers and of the wire; what every transport promises is tested elsewhere.
"""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
import tracemalloc
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.link.client import LinkChannel
from services.link.connection import Identity
from services.link.options import LinkOptions
from services.link.server import LinkListener
from services.runtime.calls import Caller, CancelReason
from services.runtime.errors import CallCancelledError, DeadlineExceededError, ServiceUnavailableError
from tests.rpc.transports.cuttable_wire import QUICK, over_wire
from tests.rpc.transports.probe_service import (
    TOKEN,
    ProbeService,
    Stub,
    background,
    identify,
    outcome_of,
    over_link,
    until,
)


async def test_a_call_that_begins_while_its_link_breaks_ends_too() -> None:
    async def call_again(stub: Stub) -> type[BaseException]:
        """Resumes in the turn of the loop in which the link broke, before anybody else was told."""
        await outcome_of(stub.Wait(b"", timeout=900))
        failed: type[BaseException] = await outcome_of(stub.Wait(b"", timeout=900))
        return failed

    service = ProbeService()
    async with over_wire(service) as (stub, wire):
        calls = [background(call_again(stub)) for _ in range(20)]
        await until(lambda: service.running == 20)

        await wire.cut()

        async with asyncio.timeout(5):
            assert set(await asyncio.gather(*calls)) == {ServiceUnavailableError}


async def test_a_link_that_is_cut_ends_each_of_its_calls_once_and_cancels_their_handlers_without_a_reason() -> None:
    service = ProbeService()
    async with over_wire(service) as (stub, wire):
        waiting = [background(outcome_of(stub.Wait(b"", timeout=20))) for _ in range(50)]
        streams = [stub.Trickle(b"", timeout=20) for _ in range(50)]
        for stream in streams:
            assert await anext(stream) == b"first"
        await until(lambda: service.running == 100)
        reading = [background(outcome_of(anext(stream))) for stream in streams]
        await wire.cut()
        async with asyncio.timeout(2):
            outcomes = await asyncio.gather(*waiting, *reading)
        assert Counter(outcomes) == {ServiceUnavailableError: 100}
        await until(lambda: service.running == 0)
        assert Counter(service.ends) == {None: 100}


async def test_a_silent_peer_is_held_for_dead_by_both_sides() -> None:
    service = ProbeService()
    async with over_wire(service) as (stub, wire):
        waiting = background(outcome_of(stub.Wait(b"", timeout=20)))
        await until(lambda: service.running == 1)
        wire.hush()
        async with asyncio.timeout(2):
            assert await waiting is ServiceUnavailableError
        await until(lambda: service.ends == [None], within_s=2)


async def test_an_idle_link_stays_alive() -> None:
    async with over_wire(ProbeService()) as (stub, _):
        with pytest.raises(DeadlineExceededError):
            await stub.Wait(b"", timeout=1.0)  # three times as long as silence is borne


async def test_a_call_without_a_reachable_server_fails_after_the_grace_with_a_hint_when_to_retry() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # taken, but nobody listens
        channel = LinkChannel([f"127.0.0.1:{held.getsockname()[1]}"], Identity(TOKEN, "edge-0"), options=QUICK)
        with pytest.raises(ServiceUnavailableError) as failed:
            await Stub(channel).Echo(b"", timeout=5)
        assert failed.value.retry_in is not None
        with pytest.raises(DeadlineExceededError):
            await Stub(channel).Echo(b"", timeout=0.05)
        await channel.close()


async def test_calls_made_before_the_server_stands_wait_for_it() -> None:
    service = ProbeService()
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
    channel = LinkChannel([address], Identity(TOKEN, "edge-0"))
    call = Stub(channel).Echo(b"early", timeout=5)
    listener = LinkListener(service.table, service.guard(), identify)
    await listener.start(address)
    assert await call == b"early"
    await channel.close()
    await listener.drain(0)


async def test_a_stranger_gets_no_link() -> None:
    service = ProbeService()
    listener = LinkListener(service.table, service.guard(), identify, options=QUICK)
    port = await listener.start("127.0.0.1:0")
    channel = LinkChannel([f"127.0.0.1:{port}"], Identity("stolen", "edge-0"), options=QUICK)
    with pytest.raises(ServiceUnavailableError):
        await Stub(channel).Echo(b"", timeout=5)
    await channel.close()
    await listener.drain(0)
    assert service.calls == []


async def test_a_drain_lets_running_calls_end_and_loses_none() -> None:
    service, successor = ProbeService(), ProbeService()
    first = LinkListener(service.table, service.guard(), identify)
    second = LinkListener(successor.table, successor.guard(), identify)
    ports = [await first.start("127.0.0.1:0"), await second.start("127.0.0.1:0")]
    channel = LinkChannel([f"127.0.0.1:{port}" for port in ports], Identity(TOKEN, "edge-0"))
    await channel.wait_for_links(2)
    stub = Stub(channel)
    running = [background(outcome_of(stub.Gate(b"g", timeout=20))) for _ in range(60)]
    await until(lambda: service.running + successor.running == 60)
    assert service.running > 0
    draining = background(first.drain(10))
    echoes: list[object] = []
    while len(channel.connected_endpoints) > 1 or len(echoes) < 300:
        echoes += await asyncio.gather(*(outcome_of(stub.Echo(b"e", timeout=20)) for _ in range(20)))
    assert not draining.done()
    service.opened.set()
    successor.opened.set()
    async with asyncio.timeout(5):
        await draining
        assert Counter(await asyncio.gather(*running)) == {b"g": 60}
    assert Counter(echoes) == {b"e": len(echoes)}
    await channel.close()
    await second.drain(0)


async def test_a_drain_that_takes_too_long_cancels_with_shutdown() -> None:
    service = ProbeService()
    async with over_link(service) as (channel, listener):
        waiting = background(outcome_of(Stub(channel).Wait(b"", timeout=20)))
        await until(lambda: service.running == 1)
        await listener.drain(0.05)
        assert (await waiting, service.ends) == (ServiceUnavailableError, [CancelReason.SHUTDOWN])


async def test_a_channel_that_closes_cancels_with_shutdown() -> None:
    service = ProbeService()
    async with over_link(service) as (channel, _):
        waiting = background(outcome_of(Stub(channel).Wait(b"", timeout=20)))
        await until(lambda: service.running == 1)
        await channel.close()
        assert await waiting is CallCancelledError
        await until(lambda: service.ends == [CancelReason.SHUTDOWN])


async def test_an_old_link_is_replaced_without_a_lost_call() -> None:
    service = ProbeService()
    greeted: list[str] = []

    def identify_and_count(token: str) -> Caller:
        greeted.append(token)
        return identify(token)

    options = LinkOptions(max_age_s=0.1)
    async with over_link(service, options, identify_and_count) as (channel, _):
        stub = Stub(channel)
        long_call = background(outcome_of(stub.Gate(b"g", timeout=20)))
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.0
        outcomes: Counter[object] = Counter()
        while loop.time() < end:
            outcomes.update(await asyncio.gather(*(outcome_of(stub.Echo(b"e", timeout=20)) for _ in range(10))))
        service.opened.set()
        assert (set(outcomes), await long_call) == ({b"e"}, b"g")
        assert len(greeted) > 3


async def test_a_server_added_under_load_is_used_within_five_seconds() -> None:
    services = [ProbeService(), ProbeService()]
    listeners = [LinkListener(service.table, service.guard(), identify) for service in services]
    endpoints = [f"127.0.0.1:{await listeners[0].start('127.0.0.1:0')}"]

    async def resolve() -> list[str]:
        return list(endpoints)

    channel = LinkChannel(resolve, Identity(TOKEN, "edge-0"))
    stub = Stub(channel)
    await stub.Echo(b"", timeout=5)
    endpoints.append(f"127.0.0.1:{await listeners[1].start('127.0.0.1:0')}")
    async with asyncio.timeout(5):
        while len(services[1].calls) < 50:
            await asyncio.gather(*(stub.Echo(b"", timeout=20) for _ in range(20)))
    del endpoints[0]
    async with asyncio.timeout(5):
        while len(channel.connected_endpoints) > 1:
            await stub.Echo(b"", timeout=20)
    await channel.close()
    for listener in listeners:
        await listener.drain(0)


async def test_a_name_is_resolved_to_its_addresses() -> None:
    service = ProbeService()
    listener = LinkListener(service.table, service.guard(), identify)
    port = await listener.start("127.0.0.1:0")
    channel = LinkChannel([f"dns:localhost:{port}"], Identity(TOKEN, "edge-0"))
    assert await Stub(channel).Echo(b"named", timeout=5) == b"named"
    assert list(channel.connected_endpoints) == [f"127.0.0.1:{port}"]
    await channel.close()
    await listener.drain(0)


@asynccontextmanager
async def probe_processes(count: int) -> AsyncIterator[dict[str, Process]]:
    processes: dict[str, Process] = {}
    module = "tests.rpc.transports.probe_process"
    try:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, stdout=PIPE, env=_ENVIRONMENT)
            assert process.stdout is not None
            processes[f"127.0.0.1:{int(await process.stdout.readline())}"] = process
        yield processes
    finally:
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


_ENVIRONMENT = {"PYTHONPATH": ":".join(path for path in sys.path if path)}


async def test_a_stopped_process_is_dead_after_six_seconds_and_the_other_takes_over() -> None:
    async with probe_processes(2) as processes:
        channel = LinkChannel(list(processes), Identity(TOKEN, "edge-0"))
        await channel.wait_for_links(2)
        stub = Stub(channel)
        stopped, _ = processes
        waiting = [background(outcome_of(stub.Wait(b"", timeout=30))) for _ in range(20)]
        await asyncio.gather(*(stub.Echo(b"", timeout=5) for _ in range(20)))
        loop = asyncio.get_running_loop()
        processes[stopped].send_signal(signal.SIGSTOP)
        started = loop.time()
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert 4 <= loop.time() - started <= 8
        assert stopped not in channel.connected_endpoints
        assert await asyncio.gather(*(stub.Echo(b"e", timeout=5) for _ in range(50))) == [b"e"] * 50
        ended = [task.result() for task in waiting if task.done()]
        assert 0 < len(ended) < 20
        assert set(ended) == {ServiceUnavailableError}
        processes[stopped].send_signal(signal.SIGCONT)
        async with asyncio.timeout(10):
            await channel.wait_for_links(2)
        await channel.close()
        await asyncio.gather(*waiting)


async def test_a_killed_process_fails_its_calls_at_once() -> None:
    async with probe_processes(1) as processes:
        channel = LinkChannel(list(processes), Identity(TOKEN, "edge-0"))
        await channel.wait_for_links()
        waiting = background(outcome_of(Stub(channel).Wait(b"", timeout=30)))
        await Stub(channel).Echo(b"", timeout=5)
        next(iter(processes.values())).kill()
        async with asyncio.timeout(1):
            assert await waiting is ServiceUnavailableError
        await channel.close()


async def test_two_hundred_stalled_readers_hold_little_memory_while_neighbours_flow() -> None:
    service = ProbeService()
    async with over_link(service) as (channel, _):
        stub = Stub(channel)
        await stub.Echo(b"", timeout=5)
        gc.collect()
        tracemalloc.start()
        stalled = [stub.Flood(b"", timeout=30) for _ in range(200)]
        held = -1
        while held != service.produced or service.running < 200:
            held = service.produced
            numbers = [message async for message in stub.Count(b"500", timeout=5)]
            assert len(numbers) == 500
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        window_messages = 32 * 1024 // (1000 + 32)
        assert held <= 200 * window_messages
        assert peak_bytes < 200 * 2 * 32 * 1024  # a window here and at most as much on its way
        for call in stalled:
            call.cancel()
        await until(lambda: service.running == 0)


async def test_a_large_message_does_not_hold_up_its_neighbours() -> None:
    async with over_link(ProbeService()) as (channel, _):
        stub = Stub(channel)
        big = background(outcome_of(stub.Echo(b"b" * 20_000_000, timeout=20)))
        echoed = 0
        while not big.done():
            assert await stub.Echo(b"e", timeout=1) == b"e"
            echoed += 1
        assert echoed >= 5
        assert await big == b"b" * 20_000_000


async def test_large_messages_beyond_the_budget_take_turns() -> None:
    async with over_link(ProbeService()) as (channel, _):
        stub = Stub(channel)
        message = b"m" * 40_000_000
        assert all(await asyncio.gather(*(_echoes(stub, message) for _ in range(5))))


async def _echoes(stub: Stub, message: bytes) -> bool:
    answer: bytes = await stub.Echo(message, timeout=50)
    return answer == message
