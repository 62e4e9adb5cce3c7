"""Auth-and-limits as its callers see it: the real servicers on real embedded stores, called in process.

Owns wiring for tests; refuses to assert anything.
"""

import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from mws.admission.v1 import account_service_pb2 as account_pb
from mws.admission.v1 import admission_service_pb2 as pb
from mws.admission.v1 import key_service_pb2 as key_pb
from mws.admission.v1.account_service_pb2_grpc import AccountServiceStub
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub
from mws.admission.v1.audit_service_pb2_grpc import AuditServiceStub
from mws.admission.v1.key_service_pb2_grpc import KeyServiceStub
from mws.admission.v1.plan_service_pb2_grpc import PlanServiceStub
from mws.common.v1 import credential_pb2

from services.auth_and_limits.app import Service, open_service
from services.auth_and_limits.settings import Settings
from services.link.in_process import InProcessChannel
from services.runtime.callers import mint_secrets
from services.runtime.calls import Caller, CallerClass
from services.runtime.guard import ServiceGuard
from services.runtime.ids import new_id
from services.runtime.logging import EventLog

TIMEOUT_S = 20.0


class Stubs:
    """The services for one caller. (The stubs' types know synchronous calls only, hence Any.)"""

    def __init__(self, channel: Any) -> None:
        self.admission: Any = AdmissionServiceStub(channel)
        self.accounts: Any = AccountServiceStub(channel)
        self.keys: Any = KeyServiceStub(channel)
        self.audit: Any = AuditServiceStub(channel)
        self.plans: Any = PlanServiceStub(channel)


class Running:
    """A running auth-and-limits and short ways to ask it."""

    def __init__(self, service: Service, log: io.BytesIO, stack: AsyncExitStack) -> None:
        self.service = service
        self.log = log
        self._stack = stack
        self._guard = ServiceGuard(service.table, EventLog(log))
        self._stubs: dict[Caller, Stubs] = {}
        self._seqs: dict[str, int] = {}

    async def as_(self, caller: Caller) -> Stubs:
        """The services as this caller reaches them."""
        if caller not in self._stubs:
            channel = InProcessChannel(self.service.table, self._guard, caller)
            self._stubs[caller] = Stubs(await self._stack.enter_async_context(channel))
        return self._stubs[caller]

    async def by(self, caller_class: CallerClass) -> Stubs:
        return await self.as_(Caller(caller_class, str(caller_class)))

    async def team(self, account_id: str, name: str = "team-1") -> Stubs:
        return await self.as_(Caller(CallerClass.TEAM, name, account_id))

    async def new_account(self, name: str = "acme", **fields: Any) -> str:
        """The id of a new account."""
        request = account_pb.CreateAccountRequest(request_id=new_id(), name=name, **fields)
        answer = await (await self.by(CallerClass.ADMIN)).accounts.CreateAccount(request, timeout=TIMEOUT_S)
        account_id: str = answer.account.account_id
        return account_id

    async def new_key(self, account_id: str, **fields: Any) -> tuple[str, str]:
        """(key id, key text) of a new key."""
        request = key_pb.CreateKeyRequest(account_id=account_id, **fields)
        answer = await (await self.by(CallerClass.ADMIN)).keys.CreateKey(request, timeout=TIMEOUT_S)
        return answer.key.key_id, answer.api_key

    async def fund(self, account_id: str, nano_usd: int, *closed: str, paid: int = 0) -> None:
        """Metering tells of a balance."""
        self._seqs[account_id] = self._seqs.get(account_id, 0) + 1
        change = pb.BalanceChange(
            account_id=account_id,
            seq=self._seqs[account_id],
            balance_nano_usd=nano_usd,
            lifetime_paid_nano_usd=paid,
            closed_call_ids=closed,
        )
        metering = (await self.by(CallerClass.METERING)).admission
        await metering.BalanceChanged(pb.BalanceChangedRequest(changes=[change]), timeout=TIMEOUT_S)

    async def admit(self, request: pb.AdmitRequest) -> Any:
        return await (await self.by(CallerClass.INFERENCE)).admission.Admit(request, timeout=TIMEOUT_S)

    async def limits(self, credential: credential_pb2.Credential, by: CallerClass = CallerClass.EDGE) -> Any:
        request = pb.GetLimitsRequest(credential=credential)
        return await (await self.by(by)).admission.GetLimits(request, timeout=TIMEOUT_S)


def settings_for(folder: Path, **fields: Any) -> Settings:
    """Settings of a process that nobody reaches by a socket."""
    patient = {"store_timeout_s": 20.0}  # a busy disk is no fault here
    own = {"name": "auth-0", "port": 0, "data_dir": folder, "metering_endpoints": ("127.0.0.1:1",)}
    return Settings(**{**patient, **own, **fields})


@asynccontextmanager
async def serving(folder: Path, **fields: Any) -> AsyncIterator[Running]:
    """The service on what is in the folder."""
    mint_secrets(folder / "secrets")
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(open_service(settings_for(folder, **fields)))
        yield Running(service, io.BytesIO(), stack)


def by_key(api_key: str) -> credential_pb2.Credential:
    """The credential as the edge sends it."""
    return credential_pb2.Credential(api_key_sha256=hashlib.sha256(api_key.encode()).digest())


def admit_request(credential: credential_pb2.Credential | None, **fields: Any) -> pb.AdmitRequest:
    """A good request, but for what `fields` say."""
    good: dict[str, Any] = {
        "call_id": new_id(),
        "run_id": new_id(),
        "runner": "inference-0/1",
        "operation": pb.OPERATION_GENERATE,
        "profile": "dragon",
        "price_book_version": "book",
    }
    return pb.AdmitRequest(credential=credential, **{**good, **fields})
