"""The real process over both transports, killed while it admits.

Owns what must survive `kill -9`: every acknowledged hold, and that the balance is never lent out twice.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from mws.admission.v1 import account_service_pb2, key_service_pb2
from mws.admission.v1 import admission_service_pb2 as pb
from mws.common.v1 import credential_pb2

from services.runtime.callers import mint_secrets, read_token
from services.runtime.calls import CallerClass
from services.runtime.channel import connect
from services.runtime.errors import CallAlreadyAdmittedError, GatewayError
from services.runtime.ids import new_id
from tests.rpc.auth_and_limits.serving import Stubs, admit_request, by_key

Transport = Literal["link", "grpc"]
AMOUNT = 10
COVERED = 300


class RunningProcess:
    """A child process and channels to it."""

    def __init__(self, child: asyncio.subprocess.Process, folder: Path, ports: dict[str, int]) -> None:
        self.child, self._folder, self._ports = child, folder, ports
        self._channels: list[Any] = []

    def by(self, caller_class: CallerClass, transport: Transport) -> Stubs:
        # The link dials 100 above the port it is given, which a free port is not.
        port = self._ports["grpc"] if transport == "grpc" else self._ports["link"] - 100
        token = read_token(self._folder / "secrets", caller_class)
        channel = connect([f"127.0.0.1:{port}"], transport=transport, token=token, name="test")
        self._channels.append(channel)
        return Stubs(channel)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[RunningProcess]:
    """`python -m services.auth_and_limits` on what is in the folder; killed at the end if it still runs."""
    environment = {
        **os.environ,  # noqa: TID251 - the child needs PATH
        "MWS_AUTH_NAME": "auth-0",
        "MWS_AUTH_PORT": "0",
        "MWS_AUTH_DATA_DIR": str(folder),
        "MWS_AUTH_METERING_ENDPOINTS": "127.0.0.1:1",
    }
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.auth_and_limits", env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert child.stderr is not None
    async with asyncio.timeout(30):
        async for line in child.stderr:
            event = json.loads(line)
            if event["event"] == "process.listening":
                break
    rest = asyncio.ensure_future(child.stderr.read())  # the log must not fill its pipe
    running = RunningProcess(child, folder, event)
    try:
        yield running
    finally:
        await running.close()
        if child.returncode is None:
            child.kill()
        await child.wait()
        await rest


async def prepare(running: RunningProcess, transport: Transport) -> tuple[str, credential_pb2.Credential]:
    """An account that covers COVERED calls, and its key."""
    admin = running.by(CallerClass.ADMIN, transport)
    ceilings = account_service_pb2.CeilingOverrides(
        requests_per_minute=10**8, tokens_per_minute=10**8, concurrent_calls=10**6
    )
    request = account_service_pb2.CreateAccountRequest(request_id=new_id(), name="acme", overrides=ceilings)
    account_id: str = (await admin.accounts.CreateAccount(request, timeout=5)).account.account_id
    key = await admin.keys.CreateKey(key_service_pb2.CreateKeyRequest(account_id=account_id), timeout=5)
    change = pb.BalanceChange(account_id=account_id, seq=1, balance_nano_usd=AMOUNT * COVERED)
    metering = running.by(CallerClass.METERING, transport).admission
    await metering.BalanceChanged(pb.BalanceChangedRequest(changes=[change]), timeout=5)
    return account_id, by_key(key.api_key)


async def admit_until_it_fails(
    stub: Any, credential: credential_pb2.Credential, acknowledged: list[pb.AdmitRequest]
) -> None:
    while True:
        request = admit_request(credential, amount_nano_usd=AMOUNT)
        try:
            answer = await stub.Admit(request, timeout=5)
        except GatewayError:
            return
        if not answer.HasField("admitted"):
            return
        acknowledged.append(request)


@pytest.mark.parametrize("transport", ["link", "grpc"])
async def test_every_acknowledged_hold_survives_kill_9(tmp_path: Path, transport: Transport) -> None:
    mint_secrets(tmp_path / "secrets")
    before: list[pb.AdmitRequest] = []
    async with process(tmp_path) as running:
        _, credential = await prepare(running, transport)
        stub = running.by(CallerClass.INFERENCE, transport).admission
        callers = [asyncio.ensure_future(admit_until_it_fails(stub, credential, before)) for _ in range(16)]
        async with asyncio.timeout(20):
            while len(before) < COVERED // 3:
                await asyncio.sleep(0.001)
        running.child.kill()
        await asyncio.gather(*callers)
        await running.child.wait()

    after: list[pb.AdmitRequest] = []
    async with process(tmp_path) as running:
        stub = running.by(CallerClass.INFERENCE, transport).admission
        again = await asyncio.gather(*(stub.Admit(request, timeout=5) for request in before))
        with pytest.raises(CallAlreadyAdmittedError):
            await stub.Admit(admit_request(credential, call_id=before[0].call_id), timeout=5)
        await admit_until_it_fails(stub, credential, after)

    assert all(answer.admitted.call_id == request.call_id for answer, request in zip(again, before, strict=True))
    # What was on disk but not acknowledged stays held too; nobody can have been lent more than there is.
    assert COVERED - 16 <= len(before) + len(after) <= COVERED


async def test_sigterm_drains_and_exits_0(tmp_path: Path) -> None:
    mint_secrets(tmp_path / "secrets")
    async with process(tmp_path) as running:
        running.child.terminate()

        assert await asyncio.wait_for(running.child.wait(), timeout=20) == 0
