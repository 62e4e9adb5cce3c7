"""The real process: starts in any order, serves with the simulated upstream, drains, and leaves nothing behind."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mws.admission.v1.admission_service_pb2_grpc import add_AdmissionServiceServicer_to_server
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from mws.metering.v1.metering_service_pb2_grpc import add_MeteringServiceServicer_to_server

from services.runtime import errors
from services.runtime.callers import mint_secrets, read_token
from services.runtime.calls import CallerClass, MethodTable
from services.runtime.channel import connect
from services.runtime.process import Process
from services.runtime.settings import ProcessSettings
from tests.rpc.routing_and_inference.world import FakeAdmission, FakeMetering, a_request

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    """A port whose neighbours for the link and the metrics are free too."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        if port < 65_000 and all(_is_free(port + offset) for offset in (100, 200)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@asynccontextmanager
async def neighbour(
    data_dir: Path, caller_class: CallerClass, port: int, add: Callable[[Any, Any], None], servicer: object
) -> AsyncIterator[None]:
    """A process in this loop that serves a fake."""
    settings = ProcessSettings(name=f"{caller_class}-0", port=port, data_dir=data_dir, drain_s=0.2, log_level="error")
    table = MethodTable()
    add(servicer, table)
    async with Process(settings, caller_class) as process:
        await process.start(table)
        try:
            yield
        finally:
            await process.drain()


@asynccontextmanager
async def inference(data_dir: Path, ports: tuple[int, int, int]) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m services.routing_and_inference`."""
    own, auth, metering = ports
    environment = os.environ | {  # noqa: TID251 - a child needs its own
        "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}",
        "MWS_INFERENCE_NAME": "inference-0",
        "MWS_INFERENCE_PORT": str(own),
        "MWS_INFERENCE_DATA_DIR": str(data_dir),
        "MWS_INFERENCE_AUTH_ENDPOINTS": f"127.0.0.1:{auth}",
        "MWS_INFERENCE_METERING_ENDPOINTS": f"127.0.0.1:{metering}",
        "MWS_INFERENCE_SIMULATED_PACE": "instant",
        "MWS_INFERENCE_DRAIN_S": "1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.routing_and_inference", env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answer(stub: Any) -> Any:
    """A whole answer's `finished`, asked for until the process serves."""
    async with asyncio.timeout(30):
        while True:
            try:
                events = [e async for r in stub.Generate(a_request("dragon"), timeout=10.0) for e in r.events]
                return events[-1].finished
            except errors.ServiceUnavailableError:
                await asyncio.sleep(0.05)


async def test_it_starts_first_records_late_and_drains_clean(tmp_path: Path) -> None:
    mint_secrets(tmp_path / "secrets")
    own, auth, metering = free_port(), free_port(), free_port()
    admission_fake, metering_fake = FakeAdmission(), FakeMetering()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(inference(tmp_path, (own, auth, metering)))
        await stack.enter_async_context(
            neighbour(tmp_path, CallerClass.AUTH, auth, add_AdmissionServiceServicer_to_server, admission_fake)
        )
        channel = connect(
            [f"127.0.0.1:{own}"], transport="link", token=read_token(tmp_path / "secrets", CallerClass.EDGE)
        )
        stack.push_async_callback(channel.close, None)
        stub = InferenceServiceStub(channel)

        # Metering is not there: usage goes to the spool, and stays there over a drain.
        assert not (await answer(stub)).HasField("charged_nano_usd")
        first.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(first.wait(), 20) == 0
        assert list((tmp_path / "spool" / "inference-0").glob("*.log")) != []

        # The next run finds it, and metering.
        await stack.enter_async_context(
            neighbour(tmp_path, CallerClass.METERING, metering, add_MeteringServiceServicer_to_server, metering_fake)
        )
        second = await stack.enter_async_context(inference(tmp_path, (own, auth, metering)))
        async with asyncio.timeout(20):
            while len(metering_fake.posted) < 1:
                await asyncio.sleep(0.02)
        assert (await answer(stub)).HasField("charged_nano_usd")
        second.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(second.wait(), 20) == 0
        assert len(metering_fake.posted) == 2
        assert not (tmp_path / "spool" / "inference-0").exists()


@pytest.mark.parametrize(
    ("catalogue", "said"),
    [
        pytest.param("default_profile: x\n", "profiles: Field required", id="a broken catalogue"),
        pytest.param(None, "cannot be read", id="no catalogue"),
    ],
)
async def test_a_catalogue_that_cannot_serve_ends_the_start(tmp_path: Path, catalogue: str | None, said: str) -> None:
    file = tmp_path / "catalog.yaml"
    if catalogue is not None:
        file.write_text(catalogue)
    environment = os.environ | {  # noqa: TID251 - a child needs its own
        "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}",
        "MWS_INFERENCE_NAME": "inference-0",
        "MWS_INFERENCE_PORT": "0",
        "MWS_INFERENCE_DATA_DIR": str(tmp_path),
        "MWS_INFERENCE_AUTH_ENDPOINTS": "127.0.0.1:1",
        "MWS_INFERENCE_METERING_ENDPOINTS": "127.0.0.1:1",
        "MWS_INFERENCE_CATALOGUE": str(file),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.routing_and_inference", env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == 1
    assert f"{file}: " in stderr.decode()
    assert said in stderr.decode()
