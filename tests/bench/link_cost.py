"""Section: what an internal call costs on a link and over plain grpc.aio, in CPU of both processes.

Owns both peers and the loops that call; refuses to measure anything but the transports. The plain side is bare; the
link's side has all that a process has: guard with log line and metrics, deadline, metadata, flow control.
"""

import argparse
import asyncio
import io
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

import grpc
import uvloop
from rich.console import Console
from rich.table import Table

from services.link.client import LinkChannel
from services.link.connection import Identity
from services.link.server import LinkListener
from services.runtime.calls import Caller, CallerClass, Method, MethodTable
from services.runtime.guard import ServiceGuard
from services.runtime.logging import EventLog
from services.runtime.telemetry import current_traceparent
from tests.bench.options import ROOT, Options
from tests.bench.verdict import Verdict

TITLE: Final = "link cost"
PAYLOAD: Final = b"x" * 100
METADATA: Final = (("x-request-id", "0192f4c8-5a3e-7c1b-9d2e-3f4a5b6c7d8e"),)
PATHS: Final = {name: f"/mws.bench.v1.BenchService/{name}" for name in ("Echo", "Stream", "PacedStream", "Cpu")}
STREAMS: Final = 32
PACE_S: Final = 0.01
UNARY_BAR: Final = 6.0
STREAM_BAR: Final = 8.0


@dataclass(frozen=True, slots=True)
class Case:
    """One figure: what is called, by how many at once, how often in all."""

    name: str
    in_flight: int
    operations: int
    bar: float | None = None


CASES: Final = (
    Case("unary", 1, 1_000),
    Case("unary", 32, 6_000, UNARY_BAR),
    Case("unary", 128, 8_000),
    Case("stream", STREAMS, 48_000, STREAM_BAR),
    Case("paced stream", STREAMS, 6_400),
)
"""`stream` yields as fast as it may, `paced stream` a message every 10 ms, each stream at its own moments."""


# The section.


def run(options: Options) -> dict[str, Any]:
    """Both peers in processes of their own; rounds alternate between the transports."""
    rounds = options.rounds or (1 if options.quick else 5)
    scale = 0.3 if options.quick else 1.0
    module = [sys.executable, "-m", __spec__.name]
    server = subprocess.Popen([*module, "server"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        ports = server.stdout.readline().split()
        arguments = ["client", *ports, "--rounds", str(rounds), "--scale", str(scale)]
        output = subprocess.run([*module, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    finally:
        server.kill()
        server.wait()
    return {"cells": json.loads(output)}


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="CPU µs per unary call or per streamed message, both processes, median of rounds")
    for column in ("case", "in flight", "grpc.aio", "link", "times"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for cell in result["cells"]:
        bar = f" (bar {cell['bar']:g})" if cell["bar"] else ""
        figures = (f"{cell['plain_us']:.1f}", f"{cell['link_us']:.1f}", f"{cell['times']:.1f}{bar}")
        table.add_row(cell["case"], str(cell["in_flight"]), *figures)
    console.print(table)


def verdicts(result: dict[str, Any]) -> list[Verdict]:
    return [
        Verdict(f"{cell['case']} at {cell['in_flight']}: grpc.aio costs at least {cell['bar']:g} links", *figures)
        for cell in result["cells"]
        if cell["bar"]
        for figures in [(cell["times"], cell["bar"])]
    ]


# The server process.


async def _echo(request: bytes, _: Any) -> bytes:
    return request


async def _stream(request: bytes, _: Any) -> AsyncIterator[bytes]:
    for _number in range(int(request)):
        yield PAYLOAD


async def _paced_stream(request: bytes, _: Any) -> AsyncIterator[bytes]:
    await asyncio.sleep(random.uniform(0, PACE_S))
    for _number in range(int(request)):
        await asyncio.sleep(PACE_S)
        yield PAYLOAD


async def _cpu(_request: bytes, _: Any) -> bytes:
    return str(time.process_time()).encode()


_BEHAVIORS: Final[dict[str, tuple[Callable[..., Any], bool]]] = {
    "Echo": (_echo, False),
    "Stream": (_stream, True),
    "PacedStream": (_paced_stream, True),
    "Cpu": (_cpu, False),
}


async def _serve() -> None:
    table = MethodTable()
    plain_handlers: dict[str, Any] = {}
    for name, (behavior, is_streaming) in _BEHAVIORS.items():
        table.methods[PATHS[name]] = Method(PATHS[name], behavior, bytes, bytes, is_streaming)
        make = grpc.unary_stream_rpc_method_handler if is_streaming else grpc.unary_unary_rpc_method_handler
        plain_handlers[name] = make(behavior)
    plain = grpc.aio.server()
    plain.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("mws.bench.v1.BenchService", plain_handlers),))
    plain_port = plain.add_insecure_port("127.0.0.1:0")
    await plain.start()
    caller = Caller(CallerClass.EDGE, "edge-0")
    allowed = dict.fromkeys(table.methods, frozenset({CallerClass.EDGE}))
    guard = ServiceGuard(table, EventLog(cast("BinaryIO", _Sink()), process="bench"), allowed=allowed)
    links = LinkListener(table, guard, lambda _token: caller)
    link_port = await links.start("127.0.0.1:0")
    print(plain_port, link_port, flush=True)
    await asyncio.Event().wait()


class _Sink(io.RawIOBase):
    """Where log lines go: nowhere, after they were made."""

    def write(self, line: Any) -> int:
        return len(line)


# The client process.


class _Peer:
    """One transport's methods, called in the same way."""

    def __init__(self, channel: Any) -> None:
        self.echo = channel.unary_unary(PATHS["Echo"])
        self.streams = {
            "stream": channel.unary_stream(PATHS["Stream"]),
            "paced stream": channel.unary_stream(PATHS["PacedStream"]),
        }
        self._cpu = channel.unary_unary(PATHS["Cpu"])

    async def cpu_s(self) -> float:
        """CPU spent by both processes so far."""
        return float(await self._cpu(b"", timeout=10)) + time.process_time()

    async def call(self, case: Case, count: int) -> None:
        """One of the callers in flight: calls `count` times, or reads a stream of so many messages."""
        if case.name == "unary":
            for _ in range(count):
                await self.echo(PAYLOAD, timeout=30.0, metadata=METADATA)
        else:
            async for _ in self.streams[case.name](str(count).encode(), timeout=60.0, metadata=METADATA):
                pass


async def _measure(peer: _Peer, case: Case, operations: int) -> float:
    count = max(1, operations // case.in_flight)
    before = await peer.cpu_s()
    callers: list[Awaitable[None]] = [peer.call(case, count) for _ in range(case.in_flight)]
    await asyncio.gather(*callers)
    return (await peer.cpu_s() - before) / (count * case.in_flight) * 1e6


async def _call(plain_port: int, link_port: int, rounds: int, scale: float) -> list[dict[str, Any]]:
    cells = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plain_port}") as plain_channel:
        identity = Identity("a-token", "edge-0")
        link_channel = LinkChannel([f"127.0.0.1:{link_port}"], identity, trace_context=current_traceparent)
        await link_channel.wait_for_links()
        peers = {"plain": _Peer(plain_channel), "link": _Peer(link_channel)}
        for case in CASES:
            taken: dict[str, list[float]] = {name: [] for name in peers}
            for round_number in range(rounds + 1):
                for name, peer in peers.items():
                    operations = int(case.operations * scale * (0.2 if round_number == 0 else 1))
                    taken[name].append(await _measure(peer, case, operations))
            plain_us, link_us = (statistics.median(taken[name][1:]) for name in ("plain", "link"))  # the first warms up
            cells.append(
                {
                    "case": case.name,
                    "in_flight": case.in_flight,
                    "plain_us": round(plain_us, 2),
                    "link_us": round(link_us, 2),
                    "times": round(plain_us / link_us, 2),
                    "bar": case.bar,
                }
            )
        await link_channel.close()
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", nargs="?", choices=["server", "client"])
    parser.add_argument("ports", nargs="*", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.role == "server":
        uvloop.run(_serve())
    elif arguments.role == "client":
        plain_port, link_port = arguments.ports
        print(json.dumps(uvloop.run(_call(plain_port, link_port, arguments.rounds, arguments.scale))))
    else:
        show(run(Options(quick=arguments.quick, rounds=arguments.rounds)), Console())


if __name__ == "__main__":
    main()
