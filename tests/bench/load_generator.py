"""The one load generator: a closed loop of N requests in flight over keep-alive connections, in its own process.

Owns sending, timing and checking; refuses to know which system answers. It speaks JSON lines with `measuring`."""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, cast

import uvloop

from tests.bench.answers import CHECKS, Response

HANG_SECONDS: Final = 60.0
MAX_ERRORS: Final = 50


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, to whom, and for how long."""

    targets: tuple[tuple[str, int], ...]
    request: bytes
    check: str
    in_flight: int
    warm_seconds: float
    seconds: float
    max_requests: int

    def to_line(self) -> str:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({**fields, "request": self.request.decode("latin-1")})

    @staticmethod
    def from_line(line: str) -> "Load":
        fields: dict[str, Any] = json.loads(line)
        fields["targets"] = tuple((host, port) for host, port in fields["targets"])
        return Load(**{**fields, "request": fields["request"].encode("latin-1")})


@dataclass(slots=True)
class Tally:
    """What came back in one phase."""

    started_ns: int = 0
    ended_ns: int = 0
    latencies_ns: list[int] = field(default_factory=list)
    first_byte_ns: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def to_line(self) -> str:
        return json.dumps(
            {
                "requests": len(self.latencies_ns),
                "elapsed_seconds": (self.ended_ns - self.started_ns) / 1e9,
                "p50_ms": percentile_ms(self.latencies_ns, 0.50),
                "p99_ms": percentile_ms(self.latencies_ns, 0.99),
                "first_byte_p50_ms": percentile_ms(self.first_byte_ns, 0.50),
                "errors": sum(self.errors.values()),
                "error_samples": [text for text, _ in self.errors.most_common(3)],
            }
        )


def percentile_ms(values_ns: list[int], share: float) -> float | None:
    if not values_ns:
        return None
    ordered = sorted(values_ns)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    def __init__(self, loop: "ClosedLoop", target: tuple[str, int]) -> None:
        self._loop = loop
        self.target = target
        self._response: Response | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes) -> None:
        self._response = Response()
        self._first_byte_ns = 0
        self._sent_ns = time.perf_counter_ns()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            return
        complete = response.add(data)
        if not self._first_byte_ns and response.has_body:
            self._first_byte_ns = time.perf_counter_ns()
        if complete:
            self._complete(response)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._response is not None:
            self._response = None
            self._loop.failed(self, f"connection lost: {exc}")

    def _complete(self, response: Response) -> None:
        now_ns = time.perf_counter_ns()
        self._response = None
        if response.closes:
            self.transport.close()
        problem = response.problem(self._loop.is_whole)
        if problem is None:
            self._loop.answered(self, now_ns - self._sent_ns, self._first_byte_ns - self._sent_ns)
        else:
            self._loop.failed(self, problem)


class ClosedLoop:
    """N connections, each sending its next request when its last one is answered."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.is_whole = CHECKS[load.check]
        self._idle: list[Connection] = []
        self._in_flight = 0
        self._allowed = 0
        self._left = 0
        self._deadline_ns = 0
        self._tally = Tally()
        self._reconnects: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        targets = self._load.targets
        wanted = (targets[number % len(targets)] for number in range(self._load.in_flight))
        self._idle = [await self._connect(target) for target in wanted]

    def close(self) -> None:
        for connection in self._idle:
            connection.transport.close()

    async def warm(self) -> None:
        """Starts with one request and allows one more per answer: a fast system reaches N, a slow one is spared."""
        await self._drive(self._load.warm_seconds, 1, 1_000_000)

    async def measure(self) -> Tally:
        return await self._drive(self._load.seconds, self._load.in_flight, self._load.max_requests)

    async def _drive(self, seconds: float, allowed: int, max_requests: int) -> Tally:
        self._tally = tally = Tally(started_ns=time.perf_counter_ns())
        self._deadline_ns = tally.started_ns + int(seconds * 1e9)
        self._allowed, self._left = allowed, max_requests
        self._done = asyncio.get_running_loop().create_future()
        self._fill()
        try:
            await asyncio.wait_for(self._done, seconds + HANG_SECONDS)
        except TimeoutError:
            tally.errors["unanswered"] += self._in_flight
        tally.ended_ns = time.perf_counter_ns()
        return tally

    def answered(self, connection: Connection, latency_ns: int, first_byte_ns: int) -> None:
        self._tally.latencies_ns.append(latency_ns)
        self._tally.first_byte_ns.append(first_byte_ns)
        self._settle(connection)

    def failed(self, connection: Connection, problem: str) -> None:
        self._tally.errors[problem] += 1
        if self._tally.errors.total() >= MAX_ERRORS:
            self._left = 0
        self._settle(connection)

    def _settle(self, connection: Connection) -> None:
        self._in_flight -= 1
        self._allowed = min(self._allowed + 1, self._load.in_flight)
        if connection.transport.is_closing():
            task = asyncio.get_running_loop().create_task(self._replace(connection))
            self._reconnects.add(task)
            task.add_done_callback(self._reconnects.discard)
        else:
            self._idle.append(connection)
        self._fill()

    def _fill(self) -> None:
        if time.perf_counter_ns() >= self._deadline_ns:
            self._left = 0
        while self._left and self._idle and self._in_flight < self._allowed:
            self._left -= 1
            self._in_flight += 1
            self._idle.pop().send(self._load.request)
        if not self._left and not self._in_flight and not self._done.done():
            self._done.set_result(None)

    async def _replace(self, connection: Connection) -> None:
        self._idle.append(await self._connect(connection.target))
        self._fill()

    async def _connect(self, target: tuple[str, int]) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(self, target), *target)
        return connection


async def _run(load: Load) -> Tally:
    loop = ClosedLoop(load)
    await loop.open()
    await loop.warm()
    print("warm", flush=True)
    # Blocking is right here: nothing is in flight while the other side takes its readings.
    sys.stdin.readline()
    tally = await loop.measure()
    loop.close()
    return tally


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            print(runner.run(_run(Load.from_line(line))).to_line(), flush=True)


if __name__ == "__main__":
    main()
