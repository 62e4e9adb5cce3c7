"""The real Envoy in front: an SSE answer and a gRPC call pass through unchanged.

Owns traffic through the proxy; its configuration is the one that the manifests carry, for other addresses.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from deploy.k8s.front_proxy.bootstrap import Address, FrontProxy, bootstrap
from tests.load import Caller, chat, eventually, messages
from tests.paced import Paced
from tests.plain_grpc import generate, generate_request, kinds, stub
from tests.provider import words

ENVOY = Path(sys.executable).with_name("envoy")
pytestmark = pytest.mark.parametrize("paced", ["link"], indirect=True)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running Envoy."""

    http_url: str
    grpc_target: str
    admin_url: str

    def is_ready(self) -> bool:
        """Envoy and everything behind it are healthy."""
        try:
            with urllib.request.urlopen(f"{self.admin_url}/clusters?format=json", timeout=2) as answer:
                clusters = json.load(answer).get("cluster_statuses", [])
        except (OSError, urllib.error.URLError, ValueError):
            return False
        hosts = [host for cluster in clusters for host in cluster.get("host_statuses", [])]
        return len(hosts) == 4 and all(
            host["health_status"].get("eds_health_status") == "HEALTHY"
            and not host["health_status"].get("failed_active_health_check")
            for host in hosts
        )


@pytest.fixture
def proxy(paced: Paced, tmp_path: Path) -> Iterator[Proxy]:
    gateway = paced.gateway
    http, grpc_port, admin = _free_ports(3)
    services = {
        service: Address(gateway.host, gateway.grpc_base_port + offset)
        for offset, service in enumerate(("auth", "inference", "metering"))
    }
    local = gateway.host
    plan = FrontProxy(
        Address(local, http), Address(local, grpc_port), Address(local, admin), Address(local, gateway.port), services
    )
    config = tmp_path / "envoy.json"
    config.write_text(json.dumps(bootstrap(plan)))
    log = (tmp_path / "envoy.log").open("wb")
    command: list[Any] = [ENVOY, "-c", config, "--concurrency", "1", "--base-id", str(os.getpid() % 30_000 + 1)]
    process = subprocess.Popen([*command, "-l", "warning"], stdout=log, stderr=log)
    try:
        yield Proxy(f"http://{local}:{http}", f"{local}:{grpc_port}", f"http://{local}:{admin}")
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.close()


async def test_sse_and_grpc_pass_through_envoy(paced: Paced, proxy: Proxy) -> None:
    account = paced.account("behind-envoy")
    await eventually(proxy.is_ready, within_s=20, why="envoy and its clusters")
    caller = Caller(proxy.http_url, account.api_key)

    streamed = await caller.send(messages("chunks=12 pace_ms=40"))
    whole = await caller.send(chat("chunks=12", stream=False))
    async with stub(InferenceServiceStub, proxy.grpc_target) as inference:
        events: Any = await generate(inference, generate_request("chunks=12 pace_ms=10"), account.api_key)

    assert streamed.ok
    assert streamed.text == whole.text == words(12)
    assert streamed.head_after_s < streamed.seconds / 2, "the stream was held back"
    assert kinds(events) == ["admitted", "message_started", "text_delta", "finished"]


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
