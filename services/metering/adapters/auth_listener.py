"""auth-and-limits over its stubs: takes balance changes, and says whose credential a team's is.

Owns these two calls; refuses to retry and to cache.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mws.admission.v1 import admission_service_pb2 as pb
from mws.common.v1 import credential_pb2

from services.metering.ports import BalanceNotice
from services.runtime.calls import Caller, CallerClass

if TYPE_CHECKING:  # this name exists in the stub file alone
    from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceAsyncStub

_API_KEY_PREFIX = "mws_live_"
_CHANGE_TIMEOUT_S = 5.0
_IDENTIFY_TIMEOUT_S = 2.0


class AuthListener:
    """See `BalanceListener`."""

    def __init__(self, stub: "AdmissionServiceAsyncStub") -> None:
        self._stub = stub

    async def balances_changed(self, notices: Sequence[BalanceNotice]) -> None:
        request = pb.BalanceChangedRequest(
            changes=(
                pb.BalanceChange(
                    account_id=notice.account_id,
                    seq=notice.seq,
                    balance_nano_usd=notice.balance_nano_usd,
                    lifetime_paid_nano_usd=notice.lifetime_paid_nano_usd,
                    closed_call_ids=notice.closed_call_ids,
                )
                for notice in notices
            )
        )
        await self._stub.BalanceChanged(request, timeout=_CHANGE_TIMEOUT_S)

    async def team_of(self, token: str) -> Caller:
        """The team behind an API key or an OIDC token. Raises InvalidCredentialError."""
        credential = credential_pb2.Credential()
        if token.startswith(_API_KEY_PREFIX):
            credential.api_key_sha256 = hashlib.sha256(token.encode()).digest()
        else:
            credential.access_token = token
        limits = await self._stub.GetLimits(pb.GetLimitsRequest(credential=credential), timeout=_IDENTIFY_TIMEOUT_S)
        return Caller(CallerClass.TEAM, limits.key_id or limits.account_id, limits.account_id)
