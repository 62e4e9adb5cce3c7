"""A process from start to exit: deadlines, cancellation, drain, readiness, ports, background work.

Owns the life of a process as callers and operators see it; refuses to know what is served.
"""

import asyncio
import contextlib
import dataclasses
import functools
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mws.inference.v1 import inference_service_pb2 as pb
from mws.inference.v1.generation_pb2 import GenerationEvent, TextDelta
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from services.runtime.callers import mint_secrets, read_token
from services.runtime.calls import Call, CallerClass, CancelReason
from services.runtime.channel import cancel
from services.runtime.errors import CallCancelledError, DeadlineExceededError, ServiceUnavailableError
from services.runtime.process import Process, ProcessFailedError
from tests.rpc.runtime.dummies import PROTO, Running, Serve, all_rpcs, do_nothing, dummy_table, settings_for

TRANSPORTS = ["grpc", "link"]
SERVING, NOT_SERVING = 1, 2


class Gate:
    """A handler that waits to be let through, and remembers how its calls ended."""

    def __init__(self) -> None:
        self.entered, self.open, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.count = 0
        self.call: Call | None = None
        self.reason: CancelReason | None = None

    async def __call__(self, _request: Any, call: Call) -> None:
        self.call = call
        self.count += 1
        self.entered.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.reason = call.cancel_reason
            raise
        finally:
            self.left.set()


def stub_of(running: Running, transport: str) -> Any:
    return InferenceServiceStub(running.channel(CallerClass.EDGE, transport))


async def consume(stream: Any) -> list[Any]:
    return [message async for message in stream]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("is_stream", [pytest.param(False, id="unary"), pytest.param(True, id="stream")])
async def test_a_deadline_cancels_the_handler_with_its_reason(serve: Serve, transport: str, is_stream: bool) -> None:
    gate = Gate()
    async with serve(gate) as running:
        stub = stub_of(running, transport)
        if is_stream:
            outcome = consume(stub.Generate(pb.GenerateRequest(), timeout=0.2))
        else:
            outcome = stub.Embed(pb.EmbedRequest(), timeout=0.2)
        with pytest.raises(DeadlineExceededError):
            await outcome
        await gate.left.wait()
    assert gate.reason is CancelReason.DEADLINE


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_cancels_cancels_the_handler(serve: Serve, transport: str) -> None:
    gate = Gate()
    async with serve(gate) as running:
        call = stub_of(running, transport).Generate(pb.GenerateRequest(), timeout=5.0)
        reading = asyncio.ensure_future(consume(call))
        await gate.entered.wait()
        assert cancel(call, CancelReason.CLIENT_GONE)
        with pytest.raises(CallCancelledError):
            await reading
        await gate.left.wait()
    assert gate.reason is CancelReason.CLIENT_GONE


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_handler_held_up_at_a_yield_sees_its_cancellation(serve: Serve, transport: str) -> None:
    stopped: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()

    async def flood(_request: Any, _call: Call) -> Any:
        event = GenerationEvent(text_delta=TextDelta(text="x" * 60_000))
        try:
            while True:
                yield pb.GenerateResponse(events=[event])
        except BaseException as error:
            stopped.set_result(type(error))
            raise

    table = dummy_table(do_nothing)
    path = "/mws.inference.v1.InferenceService/Generate"
    table.methods[path] = dataclasses.replace(table.methods[path], behavior=flood)
    async with serve(do_nothing, table=table) as running:
        call = stub_of(running, transport).Generate(pb.GenerateRequest(), timeout=30.0)
        await anext(aiter(call))
        cancel(call, CancelReason.CLIENT_GONE)
        assert await stopped is asyncio.CancelledError


@pytest.mark.parametrize(
    ("method", "deadline_s"),
    [
        pytest.param("/mws.inference.v1.InferenceService/Embed", 30.0, id="unary 30 s"),
        pytest.param("/mws.inference.v1.InferenceService/Generate", 900.0, id="generate 900 s"),
    ],
)
async def test_a_call_without_a_deadline_gets_one(serve: Serve, method: str, deadline_s: float) -> None:
    gate = Gate()
    gate.open.set()
    async with serve(gate) as running, grpc.aio.insecure_channel(running.address) as raw:
        token = read_token(running.data_dir / "secrets", CallerClass.EDGE)
        streaming = all_rpcs()[method].server_streaming
        kind: Any = raw.unary_stream if streaming else raw.unary_unary
        call = kind(method, bytes, bytes)(b"", metadata=(("authorization", f"Bearer {token}"),))
        await (consume(call) if streaming else call)
        assert gate.call is not None
        assert gate.call.deadline is not None
        assert gate.call.deadline - gate.call.started == pytest.approx(deadline_s, abs=1.0)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_drain_finishes_running_calls_and_takes_no_new_ones(serve: Serve, transport: str) -> None:
    gate = Gate()
    async with serve(gate) as running:
        stub = stub_of(running, transport)
        first = asyncio.ensure_future(consume(stub.Generate(pb.GenerateRequest(), timeout=5.0)))
        await gate.entered.wait()
        draining = asyncio.ensure_future(running.process.drain())
        await not_ready(running)
        late = InferenceServiceStub(running.channel(CallerClass.EDGE, transport))
        with pytest.raises((ServiceUnavailableError, DeadlineExceededError)):  # a link waits for another server first
            await late.Embed(pb.EmbedRequest(), timeout=0.5)
        assert (first.done(), gate.count) == (False, 1)
        gate.open.set()
        assert len(await first) == 1
        await draining


async def not_ready(running: Running) -> None:
    """Returns once the drain has reached the listeners."""
    async with asyncio.timeout(5):
        while not any(line["event"] == "process.draining" for line in running.lines()):
            await asyncio.sleep(0)
        for _ in range(10):  # turns of the loop, for the listeners' own tasks
            await asyncio.sleep(0)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_call_that_outlasts_the_drain_is_cancelled_for_shutdown(serve: Serve, transport: str) -> None:
    gate = Gate()
    async with serve(gate, drain_s=0.2) as running:
        stub = stub_of(running, transport)
        reading = asyncio.ensure_future(consume(stub.Generate(pb.GenerateRequest(), timeout=5.0)))
        await gate.entered.wait()
        await running.process.drain()
        with pytest.raises(ServiceUnavailableError):
            await reading
    assert gate.reason is CancelReason.SHUTDOWN


async def health_of(stub: Any, service: str) -> int:
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5.0)
    return int(answer.status)


async def test_health_follows_the_named_conditions(serve: Serve) -> None:
    async with serve(do_nothing) as running, grpc.aio.insecure_channel(running.address) as raw:
        stub = health_pb2_grpc.HealthStub(raw)
        names = ("startup", "liveness", "readiness", "")
        assert [await health_of(stub, name) for name in names] == [SERVING] * 4
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await watch.read()).status == SERVING
        running.process.readiness.set("price book", False)
        assert (await watch.read()).status == NOT_SERVING
        assert [await health_of(stub, name) for name in names] == [SERVING, SERVING, NOT_SERVING, NOT_SERVING]
        running.process.readiness.set("price book", True)
        assert (await watch.read()).status == SERVING
        await running.process.drain()
        assert (await watch.read()).status == NOT_SERVING


async def test_a_watched_health_does_not_hold_up_a_drain(serve: Serve) -> None:
    async with serve(do_nothing, drain_s=60.0) as running, grpc.aio.insecure_channel(running.address) as raw:
        watch = health_pb2_grpc.HealthStub(raw).Watch(health_pb2.HealthCheckRequest(service="readiness"))
        await watch.read()
        async with asyncio.timeout(3):
            await running.process.drain()


@pytest.mark.parametrize("protocol", ["grpc-v1alpha", "grpc-v1"])
async def test_buf_curl_calls_by_reflection(serve: Serve, protocol: str) -> None:
    async with serve(do_nothing) as running:
        token = read_token(running.data_dir / "secrets", CallerClass.ADMIN)
        url = f"http://{running.address}/mws.inference.v1.CatalogService/ListProfiles"
        status, out, err = await curl(protocol, "-H", f"authorization: Bearer {token}", "-d", "{}", url)
        assert (status, out.strip(), err) == (0, "{}", "")
        status, _, err = await curl(protocol, "-H", "authorization: Bearer wrong", "-d", "{}", url)
        assert status != 0
        assert "unauthenticated" in err
        assert "google.rpc.ErrorInfo" in err


async def curl(protocol: str, *args: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).parent / "buf"), "curl", "--http2-prior-knowledge", "--protocol", "grpc"),
        *("--reflect-protocol", protocol, *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_taken_port_is_an_error(serve: Serve, tmp_path: Path) -> None:
    async with serve(do_nothing) as running:
        for taken in ("port", "link_port", "metrics_port"):
            attribute = {"port": "grpc", "link_port": "link", "metrics_port": "metrics"}[taken]
            settings = settings_for(tmp_path, **{taken: getattr(running.ports, attribute)})
            async with Process(settings, CallerClass.EDGE, log_stream=running.log) as second:
                with pytest.raises(ProcessFailedError):
                    await second.start(dummy_table(do_nothing))


async def test_metrics_count_calls_by_method_and_code(serve: Serve) -> None:
    async with serve(do_nothing) as running:
        await stub_of(running, "grpc").Embed(pb.EmbedRequest(), timeout=5.0)
        url = f"http://127.0.0.1:{running.ports.metrics}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
    labels = 'method="mws.inference.v1.InferenceService/Embed"'
    assert f'mws_rpc_server_call_duration_seconds_count{{code="OK",{labels}}}' in text
    assert f"mws_rpc_server_calls_in_flight{{{labels}}} 0.0" in text


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_call_leaves_one_line_with_its_facts_and_no_content(serve: Serve, transport: str) -> None:
    async def note(_request: Any, call: Call) -> None:
        call.note(account_id="account-7", input_tokens=12)

    async with serve(note) as running:
        await stub_of(running, transport).Embed(pb.EmbedRequest(model="a secret poem"), timeout=5.0)
        line, *others = running.calls_logged()
        text = running.log.getvalue().decode()
    duration_ms, trace_id = line.pop("duration_ms"), line.pop("trace_id")
    assert (others, 0 < duration_ms < 5_000, len(trace_id)) == ([], True, 32)
    line.pop("timestamp")
    assert line == {
        "level": "info",
        "event": "rpc.finished",
        "method": "mws.inference.v1.InferenceService/Embed",
        "code": "OK",
        "reason": "",
        "caller": "edge",
        "process": "probe-0",
        "account_id": "account-7",
        "input_tokens": 12,
    }
    token = read_token(running.data_dir / "secrets", CallerClass.EDGE)
    assert token not in text
    assert "poem" not in text


async def test_background_work_that_fails_ends_the_process_after_its_drain(tmp_path: Path) -> None:
    mint_secrets(tmp_path / "secrets")
    flushed: list[str] = []

    async def flush(name: str) -> None:
        flushed.append(name)
        if name == "bad":
            raise OSError("disk")

    async def fail() -> None:
        raise LookupError("gone")

    async def live() -> None:
        async with Process(settings_for(tmp_path), CallerClass.EDGE) as process:
            for name in ("last", "bad", "first"):
                process.at_drain(functools.partial(flush, name))
            process.spawn(fail(), name="reaper")
            await process.serve(dummy_table(do_nothing))
            assert flushed == ["first", "bad", "last"]  # while what the service opened is still open

    with pytest.raises(ProcessFailedError):
        await live()


SCRIPT = """
import sys
from pathlib import Path
from services.runtime.calls import CallerClass, MethodTable
from services.runtime.process import Process, run
from services.runtime.settings import ProcessSettings

async def fail():
    raise LookupError

async def main():
    settings = ProcessSettings(name="probe-0", port=0, data_dir=Path(sys.argv[1]))
    async with Process(settings, CallerClass.EDGE) as process:
        if sys.argv[2] == "fail":
            process.spawn(fail(), name="reaper")
        await process.serve(MethodTable())

run(main)
"""


@pytest.mark.parametrize(
    ("ending", "code"), [pytest.param("term", 0, id="0 after SIGTERM"), pytest.param("fail", 1, id="1 when work fails")]
)
async def test_the_exit_code_tells_how_it_ended(tmp_path: Path, ending: str, code: int) -> None:
    mint_secrets(tmp_path / "secrets")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRIPT, str(tmp_path), ending),
        stderr=asyncio.subprocess.PIPE,
        cwd=PROTO.parent,
        env={"PYTHONPATH": f"{PROTO.parent}:{PROTO}"},
    )
    assert process.stderr is not None
    if ending == "term":
        while b"process.listening" not in await process.stderr.readline():
            pass
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    _, _ = await process.communicate()
    assert process.returncode == code
