"""Short ways to ask for accounts, keys and audit events.

Owns requests that several suites make; refuses to assert anything.
"""

from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from mws.admission.v1 import account_service_pb2 as pb
from mws.admission.v1 import audit_service_pb2 as audit_pb
from mws.admission.v1 import key_service_pb2 as key_pb

from services.runtime.calls import CallerClass
from tests.rpc.auth_and_limits.serving import TIMEOUT_S, Running, Stubs

USD = 1_000_000_000


async def admin(running: Running) -> Stubs:
    return await running.by(CallerClass.ADMIN)


async def update(running: Running, account_id: str, *paths: str, **fields: Any) -> pb.Account:
    request = pb.UpdateAccountRequest(
        account=pb.Account(account_id=account_id, **fields), update_mask=FieldMask(paths=paths)
    )
    answer = await (await admin(running)).accounts.UpdateAccount(request, timeout=TIMEOUT_S)
    account: pb.Account = answer.account
    return account


async def update_key(running: Running, key_id: str, *paths: str, **fields: Any) -> key_pb.Key:
    request = key_pb.UpdateKeyRequest(key=key_pb.Key(key_id=key_id, **fields), update_mask=FieldMask(paths=paths))
    answer = await (await admin(running)).keys.UpdateKey(request, timeout=TIMEOUT_S)
    key: key_pb.Key = answer.key
    return key


async def audit(running: Running, account_id: str = "") -> list[audit_pb.AuditEvent]:
    request = audit_pb.ListAuditEventsRequest(account_id=account_id)
    return list((await (await admin(running)).audit.ListAuditEvents(request, timeout=TIMEOUT_S)).events)


async def pages(list_: Any, request: Any, field: str) -> list[list[Any]]:
    """All pages of a list."""
    found = []
    while True:
        answer = await list_(request, timeout=TIMEOUT_S)
        found.append(list(getattr(answer, field)))
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token
