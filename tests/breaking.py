"""Breaking a running gateway on purpose, and knowing when it is whole again.

Owns signals to its processes and questions after their health; refuses to judge what callers were told meanwhile.
"""

import asyncio
import os
import signal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mws.admission.v1 import admission_service_pb2 as pb
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub
from mws.common.v1 import credential_pb2

from services.runtime.ids import new_id
from tests.gateway import Account
from tests.load import eventually
from tests.paced import Paced

SERVICES = ("edge", "inference", "metering", "auth")


async def kill(paced: Paced, service: str, number: signal.Signals = signal.SIGKILL) -> float:
    """Signals a service and waits until another process answers in its place; returns the seconds until then."""
    old = pid_of(paced, service)
    loop = asyncio.get_running_loop()
    began = loop.time()
    os.kill(old, number)
    await eventually(lambda: pid_of(paced, service) not in (old, 0), within_s=30, why=f"another {service}")
    await eventually(lambda: answers_again(paced, service), within_s=30, why=f"an answer of the new {service}")
    return loop.time() - began


def pid_of(paced: Paced, service: str) -> int:
    """The process id of a service now; 0 while it has none."""
    try:
        return paced.gateway.pid(service)
    except (OSError, ValueError):
        return 0


async def answers_again(paced: Paced, service: str) -> bool:
    """The service says that it is ready."""
    if service == "edge":
        return await _edge_is_ready(paced)
    async with grpc.aio.insecure_channel(paced.gateway.grpc_target(service)) as channel:
        request = health_pb2.HealthCheckRequest(service="readiness")
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=1)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _edge_is_ready(paced: Paced) -> bool:
    try:
        reader, writer = await asyncio.open_connection(paced.gateway.host, paced.gateway.port)
    except OSError:
        return False
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()


async def nothing_is_held(paced: Paced, account: Account) -> bool:
    """All of the balance can be spent: a call that asks for more than anyone has is told what is available."""
    request = pb.AdmitRequest(
        call_id=new_id(),
        run_id=new_id(),
        runner="a test",
        credential=credential_pb2.Credential(account_id=account.account_id),
        operation=pb.OPERATION_GENERATE,
        profile="dragon",
        amount_nano_usd=9 * 10**15,
    )
    metadata = (("authorization", f"Bearer {paced.gateway.token('inference')}"),)
    async with grpc.aio.insecure_channel(paced.gateway.grpc_target("auth")) as channel:
        answer = await AdmissionServiceStub(channel).Admit(request, metadata=metadata, timeout=5)
    assert answer.refused.reason == pb.Refusal.REASON_CREDIT, answer
    return bool(answer.refused.available_nano_usd == paced.balance_nano_usd(account))
