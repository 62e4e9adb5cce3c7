"""What a decision costs the process that makes it, beside what a plain unary echo costs its server.

Owns the three servers and the caller; CPU is counted in the server alone, Redis's own beside it. The link, calls
32 at once, as from a runner. `python -m tests.bench.admission_cost`
"""

import argparse
import asyncio
import contextlib
import hashlib
import io
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO, cast

import grpc
import psutil
import uvloop
from mws.admission.v1 import account_service_pb2, key_service_pb2
from mws.admission.v1 import admission_service_pb2 as pb
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub
from pydantic import SecretStr

from services.auth_and_limits.app import Service, open_service
from services.auth_and_limits.settings import Settings
from services.link.client import LinkChannel
from services.link.connection import Identity
from services.link.server import LinkListener
from services.runtime.callers import mint_secrets
from services.runtime.calls import Call, Caller, CallerClass
from services.runtime.guard import ServiceGuard
from services.runtime.ids import new_id
from services.runtime.logging import EventLog
from services.runtime.telemetry import current_traceparent
from tests.redis_server import RedisServer

IN_FLIGHT = 32
BARS = {"embedded": 4.0, "redis": 3.0}
_ADMISSION = "/mws.admission.v1."
_ECHO = "/mws.bench.v1.BenchService/Echo"
_HUGE = 150_000_000


class _Sink(io.RawIOBase):
    def write(self, line: Any) -> int:
        return len(line)


# The server processes.


async def _call(service: Service, path: str, request: Any) -> Any:
    """Calls a handler as an administrator does, without a transport."""
    method = service.table.methods[_ADMISSION + path]
    return await method.behavior(request, Call(method.path, Caller(CallerClass.ADMIN, "bench"), (), 0.0, None))


async def _key(service: Service) -> str:
    """A key of an account that may do anything."""
    ceilings = account_service_pb2.CeilingOverrides(
        requests_per_minute=_HUGE, tokens_per_minute=_HUGE, concurrent_calls=1_000_000
    )
    asked = account_service_pb2.CreateAccountRequest(request_id=new_id(), name="bench", overrides=ceilings)
    account_id = (await _call(service, "AccountService/CreateAccount", asked)).account.account_id
    key = await _call(service, "KeyService/CreateKey", key_service_pb2.CreateKeyRequest(account_id=account_id))
    change = pb.BalanceChange(account_id=account_id, seq=1, balance_nano_usd=9 * 10**15)
    await _call(service, "AdmissionService/BalanceChanged", pb.BalanceChangedRequest(changes=[change]))
    return str(key.api_key)


async def _serve_decisions(folder: Path, redis_url: str) -> None:
    mint_secrets(folder / "secrets")
    settings = Settings(
        name="bench",
        port=0,
        data_dir=folder,
        metering_endpoints=("127.0.0.1:1",),
        redis_url=SecretStr(redis_url) if redis_url else None,
        learning_s=0.0,
        store_timeout_s=5.0,
    )
    async with open_service(settings) as service:
        key = await _key(service)
        guard = ServiceGuard(service.table, EventLog(cast("BinaryIO", _Sink()), process="bench"))
        links = LinkListener(service.table, guard, lambda _token: Caller(CallerClass.INFERENCE, "inference-0"))
        print("serving", await links.start("127.0.0.1:0"), key, flush=True)
        await asyncio.Event().wait()


async def _serve_echo() -> None:
    async def echo(request: bytes, _: Any) -> bytes:
        return request

    server = grpc.aio.server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("mws.bench.v1.BenchService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print("serving", port, "-", flush=True)
    await asyncio.Event().wait()


# The caller.


@contextlib.contextmanager
def _server(*arguments: str) -> Any:
    command = [sys.executable, "-m", "tests.bench.admission_cost", "--serve", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        try:
            serving = next(line for line in server.stdout if line.startswith("serving "))
            _, port, key = serving.split()
            yield server.pid, int(port), key
        finally:
            server.kill()
            server.wait()


def _request(digest: bytes) -> pb.AdmitRequest:
    request = pb.AdmitRequest(
        call_id=new_id(),
        run_id=new_id(),
        runner="inference-0/boot",
        operation=pb.OPERATION_GENERATE,
        profile="dragon",
        amount_nano_usd=1_000_000,
        rate_tokens=1_500,
        price_book_version="0" * 64,
    )
    request.credential.api_key_sha256 = digest
    return request


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def _rounds(call: Callable[[], Awaitable[Any]], pids: list[int], calls: int, rounds: int) -> list[float]:
    """CPU µs per call of each process, the median of rounds; the first one warms up."""
    taken: list[list[float]] = []
    for _ in range(rounds + 1):
        before = [_cpu_s(pid) for pid in pids]
        left = iter(range(calls))

        async def caller(left: Any = left) -> None:
            for _ in left:
                await call()

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        taken.append([(_cpu_s(pid) - was) / calls * 1e6 for pid, was in zip(pids, before, strict=True)])
    return [median(column) for column in zip(*taken[1:], strict=True)]


@contextlib.asynccontextmanager
async def _admission(port: int) -> AsyncIterator[Any]:
    identity = Identity("a-token", "inference-0")
    channel = LinkChannel([f"127.0.0.1:{port}"], identity, trace_context=current_traceparent)
    await channel.wait_for_links()
    try:
        yield AdmissionServiceStub(cast("Any", channel))
    finally:
        await channel.close()


async def _decisions(store: str, calls: int, rounds: int) -> tuple[float, float]:
    """CPU µs of a decision in its process, and in Redis."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = RedisServer(folder / "redis").start() if store == "redis" else None
        if redis is not None:
            stack.callback(redis.stop)
        pid, port, key = stack.enter_context(_server(str(folder), redis.url if redis else ""))
        digest = hashlib.sha256(key.encode()).digest()
        async with _admission(port) as stub:

            async def admit() -> None:
                answer = await stub.Admit(_request(digest), timeout=30.0)
                assert answer.HasField("admitted"), answer

            costs = await _rounds(admit, [pid, redis.pid] if redis else [pid], calls, rounds)
    return costs[0], costs[1] if redis else 0.0


async def _echoes(calls: int, rounds: int) -> float:
    with _server("echo", "") as (pid, port, _):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            echo: Any = cast("Any", channel).unary_unary(_ECHO)
            request = _request(b"0" * 32).SerializeToString()
            metadata = (("authorization", "Bearer a-token"),)

            async def call() -> None:
                await echo(request, timeout=30.0, metadata=metadata)

            return (await _rounds(call, [pid], calls, rounds))[0]


async def _measure(calls: int, rounds: int) -> None:
    plain = await _echoes(calls, rounds)
    print(f"server of a plain unary echo, {IN_FLIGHT} in flight: {plain:.0f} µs of CPU per call")
    for store, bar in BARS.items():
        cost, of_redis = await _decisions(store, calls, rounds)
        beside = f", and {of_redis:.0f} µs in Redis" if of_redis else ""
        verdict = "ok" if plain / cost >= bar else "MISSED"
        print(f"a decision, {store}: {cost:.0f} µs{beside}; 1/{plain / cost:.1f} of the echo (bar 1/{bar:g}) {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=2, metavar=("WHAT", "REDIS_URL"))
    options = parser.parse_args()
    if not options.serve:
        uvloop.run(_measure(options.calls, options.rounds))
    elif options.serve[0] == "echo":
        uvloop.run(_serve_echo())
    else:
        uvloop.run(_serve_decisions(Path(options.serve[0]), options.serve[1]))


if __name__ == "__main__":
    main()
