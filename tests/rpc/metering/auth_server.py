"""A real gRPC server that stands for auth-and-limits, as far as metering calls it.

Owns its wiring; refuses to assert anything.
"""

import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.admission.v1.admission_service_pb2_grpc import (
    AdmissionServiceServicer,
    AdmissionServiceStub,
    add_AdmissionServiceServicer_to_server,
)

from services.metering.adapters.auth_listener import AuthListener
from services.metering.ports import BalanceNotice
from services.runtime.callers import BearerCallers, ServiceTokens, mint_secrets, read_token
from services.runtime.calls import CallerClass, MethodTable
from services.runtime.channel import connect
from services.runtime.errors import InvalidCredentialError
from services.runtime.guard import ServiceGuard
from services.runtime.logging import EventLog
from services.runtime.server import GrpcListener, Health
from tests.contract.metering.building import ACCOUNT
from tests.rpc.metering.serving import ScriptedAuth

API_KEY = "mws_live_of_a_team"
ACCESS_TOKEN = "header.claims.signature"


class _FakeAdmission(AdmissionServiceServicer):
    """An AdmissionService of which only what metering calls does something."""

    def __init__(self, auth: ScriptedAuth) -> None:
        self._auth = auth

    async def BalanceChanged(
        self, request: admission_pb.BalanceChangedRequest, context: Any
    ) -> admission_pb.BalanceChangedResponse:
        await self._auth.balances_changed(
            [
                BalanceNotice(
                    0,
                    change.account_id,
                    change.seq,
                    change.balance_nano_usd,
                    change.lifetime_paid_nano_usd,
                    tuple(change.closed_call_ids),
                )
                for change in request.changes
            ]
        )
        return admission_pb.BalanceChangedResponse()

    async def GetLimits(self, request: admission_pb.GetLimitsRequest, context: Any) -> admission_pb.GetLimitsResponse:
        credential = request.credential
        known = hashlib.sha256(API_KEY.encode()).digest()
        if credential.api_key_sha256 != known and credential.access_token != ACCESS_TOKEN:
            raise InvalidCredentialError("nobody pays")
        return admission_pb.GetLimitsResponse(account_id=ACCOUNT, key_id="key-1" if credential.api_key_sha256 else "")


@asynccontextmanager
async def auth_server(auth: ScriptedAuth, folder: Path, port: int = 0) -> AsyncIterator[int]:
    """A real gRPC server in front of the scripted auth-and-limits; yields its port."""
    mint_secrets(folder)
    table = MethodTable()
    registry: Any = table
    add_AdmissionServiceServicer_to_server(_FakeAdmission(auth), registry)  # type: ignore[abstract]
    guard = ServiceGuard(table, EventLog(io.BytesIO()))
    listener = GrpcListener(table, guard, BearerCallers(ServiceTokens.read(folder)), Health())
    try:
        yield await listener.start(f"127.0.0.1:{port}")
    finally:
        await listener.drain(0.0)


def real_listener(folder: Path, port: int) -> tuple[AuthListener, Any]:
    channel = connect(
        [f"127.0.0.1:{port}"], transport="grpc", token=read_token(folder, CallerClass.METERING), name="auth"
    )
    stub: Any = AdmissionServiceStub(channel)
    return AuthListener(stub), channel
