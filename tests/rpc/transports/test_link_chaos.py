"""Calls of every kind while wires are cut and links grow old: each ends once, on both sides, and nothing is left over.

Owns the one long mixture; single faults are tested elsewhere.
"""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from services.link.client import LinkChannel
from services.link.connection import Identity
from services.link.options import LinkOptions
from services.link.server import LinkListener
from services.runtime.calls import Call, CancelReason, Guard, Method
from services.runtime.errors import CallCancelledError, DeadlineExceededError, GatewayError, ServiceUnavailableError
from tests.rpc.transports.cuttable_wire import CuttableWire
from tests.rpc.transports.probe_service import TOKEN, ProbeService, Stub, identify, until

OPTIONS = LinkOptions(
    ping_every_s=0.2, dead_after_s=1.0, max_age_s=0.4, connect_grace_s=1.0, backoff_max_s=0.2, resolve_every_s=0.05
)
CALLS = 600


class CountingGuard:
    """Counts what transports owe a guard: `finish` once for each call, whatever happened."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.begun: Counter[int] = Counter()
        self.finished: Counter[int] = Counter()
        self._calls: list[Call] = []  # keeps them, so that ids stay their own

    def admit(self, method: Method, call: Call) -> None:
        self._calls.append(call)
        self.begun[id(call)] += 1
        self._guard.admit(method, call)

    def finish(self, method: Method, call: Call, error: BaseException | None) -> Any:
        self._calls.append(call)
        self.finished[id(call)] += 1
        return self._guard.finish(method, call, error)


async def _one_call(stub: Stub, chance: random.Random) -> str:
    """A call of some kind; how it ended. A wrong answer fails the test."""
    await asyncio.sleep(chance.uniform(0, 2))
    try:
        await chance.choice(_KINDS)(stub, chance)
    except GatewayError as error:
        return type(error).__name__
    return "OK"


async def _echo(stub: Stub, chance: random.Random) -> None:
    message = chance.randbytes(chance.randrange(2_000))
    assert await stub.Echo(message, timeout=5) == message


async def _big(stub: Stub, chance: random.Random) -> None:
    message = chance.randbytes(chance.randrange(600_000))
    assert await stub.Echo(message, timeout=5) == message


async def _count(stub: Stub, chance: random.Random) -> None:
    count = chance.randrange(1_000)
    received = [int(message) async for message in stub.Count(str(count).encode(), timeout=5)]
    assert received == list(range(count))


async def _deadline(stub: Stub, chance: random.Random) -> None:
    await stub.Wait(b"", timeout=chance.uniform(0, 0.2))


async def _cancel(stub: Stub, chance: random.Random) -> None:
    call = stub.Wait(b"", timeout=5)
    asyncio.get_running_loop().call_later(chance.uniform(0, 0.1), call.cancel, CancelReason.CLIENT_GONE)
    await call


async def _leave(stub: Stub, _: random.Random) -> None:
    async for message in stub.Trickle(b"", timeout=5):
        assert message == b"first"
        break


async def _stall(stub: Stub, chance: random.Random) -> None:
    call = stub.Flood(b"", timeout=5)
    for _ in range(chance.randrange(80)):
        await anext(call)
    await asyncio.sleep(chance.uniform(0, 0.1))


_KINDS = (_echo, _big, _count, _deadline, _cancel, _leave, _stall)


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_breaks_each_call_ends_once_and_nothing_is_left_over(seed: int) -> None:
    before = asyncio.all_tasks()
    chance = random.Random(seed)
    service = ProbeService()
    guard = CountingGuard(service.guard())
    listeners = [LinkListener(service.table, guard, identify, options=OPTIONS) for _ in range(2)]
    ports = [await listener.start("127.0.0.1:0") for listener in listeners]
    wires: dict[str, CuttableWire] = {}

    async def lay(port: int) -> None:
        wire = CuttableWire(port)
        wires[f"127.0.0.1:{await wire.open()}"] = wire

    async def resolve() -> list[str]:
        return list(wires)

    for port in ports:
        await lay(port)
    channel = LinkChannel(resolve, Identity(TOKEN, "edge-0"), options=OPTIONS)
    await channel.wait_for_links(2)
    stub = Stub(channel)
    calls = [asyncio.ensure_future(_one_call(stub, random.Random(chance.random()))) for _ in range(CALLS)]
    for cut in range(5):
        await asyncio.sleep(0.3)
        await wires.pop(next(iter(wires))).cut()
        await lay(ports[cut % 2])
    async with asyncio.timeout(20):
        outcomes = Counter(await asyncio.gather(*calls))
    await until(lambda: service.running == 0)
    await channel.close()
    for listener in listeners:
        await listener.drain(0)
    for wire in wires.values():
        await wire.cut()
    failures = (CallCancelledError, DeadlineExceededError, ServiceUnavailableError)
    assert set(outcomes) == {"OK", *(failure.__name__ for failure in failures)}
    assert outcomes["OK"] > CALLS / 20
    assert set(guard.finished.values()) == {1}
    assert guard.begun.keys() <= guard.finished.keys()
    await until(lambda: asyncio.all_tasks() <= before)
