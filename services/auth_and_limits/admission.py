"""Admission: who pays, may the call run, and how its hold goes on.

Owns the order of the steps and the rule which credential may pay for whom; refuses to know protobuf, clocks and stores.
"""

from collections.abc import Sequence

import msgspec

from services.auth_and_limits import api_keys
from services.auth_and_limits.directory import Directory
from services.auth_and_limits.holds import Hold
from services.auth_and_limits.limits import LimitsView, Reason
from services.auth_and_limits.metrics import COUNT_OF
from services.auth_and_limits.oidc_staff import StaffPayers
from services.auth_and_limits.ports import HoldStore
from services.auth_and_limits.records import (
    Admitted,
    Ask,
    Balance,
    Finished,
    OutOfCredit,
    Payer,
    Refused,
    Verdict,
)
from services.runtime.calls import Caller, CallerClass
from services.runtime.errors import ForeignAccountError, GatewayError

_COUNT_OF_REASON = {reason: COUNT_OF[reason.name.lower()] for reason in Reason}


class Credential(msgspec.Struct, frozen=True):
    """What was shown to prove who pays: exactly one is set."""

    key_digest: bytes = b""
    access_token: str = ""
    account_id: str = ""
    staff_token: str = ""

    def __repr__(self) -> str:
        return "Credential(…)"  # it may end up in a traceback


class Admission:
    """The use cases around a hold."""

    def __init__(self, directory: Directory, holds: HoldStore, staff: StaffPayers) -> None:
        self._directory = directory
        self._holds = holds
        self._staff = staff

    async def identify(self, credential: Credential) -> Payer:
        """Who pays. Raises InvalidCredentialError."""
        if credential.key_digest:
            return await self._directory.payer_by_key(credential.key_digest)
        if credential.access_token:
            return await self._directory.payer_by_token(credential.access_token)
        if credential.staff_token:
            return await self._staff.payer(credential.staff_token)
        return await self._directory.payer_by_account(credential.account_id)

    async def admit(self, ask: Ask, credential: Credential, only_account_id: str) -> tuple[Verdict, Payer]:
        """Decides about a call. Nothing is taken unless the verdict is `Admitted` and durable."""
        try:
            payer = await self.identify(credential)
            if only_account_id and payer.account.account_id != only_account_id:
                raise ForeignAccountError("the credential is of another account")
            verdict = await self._holds.admit(ask, payer)
        except GatewayError:
            COUNT_OF["failed"].inc()
            raise
        _count(verdict)
        return verdict, payer

    async def limits(self, credential: Credential) -> tuple[Payer, LimitsView]:
        """Who pays, and what may be done now."""
        payer = await self.identify(credential)
        return payer, await self._holds.limits(payer)

    async def extend(self, call_id: str, run_id: str, amount_nano_usd: int, account_id: str) -> Hold | OutOfCredit:
        """Raises what an OPEN hold keeps."""
        return await self._holds.extend(call_id, run_id, amount_nano_usd, account_id)

    async def renew(self, runner: str, holds: Sequence[Hold]) -> Sequence[str]:
        """Prolongs a runner's holds; returns those that it holds no more."""
        return await self._holds.renew(runner, holds)

    async def finish(self, finished: Sequence[Finished]) -> None:
        """Ends the running part of calls."""
        await self._holds.finish(finished)

    async def void(self, call_id: str, run_id: str, account_id: str, credential: Credential | None) -> None:
        """Releases a hold as if it had never been. A runner that never heard whose it is shows who was to pay."""
        if not account_id and credential is not None:
            account_id = (await self.identify(credential)).account.account_id
        await self._holds.void(call_id, run_id, account_id)

    async def change_balances(self, balances: Sequence[Balance]) -> None:
        """Takes over what metering has on record."""
        await self._holds.change_balances(balances)

    async def closed(self, call_id: str, account_id: str | None) -> Hold:
        """Waits until a hold is closed."""
        return await self._holds.closed(call_id, account_id)

    def lease_until_unix_us(self, hold: Hold) -> int:
        """A hold's lease by the wall clock."""
        return self._holds.lease_until_unix_us(hold)


class TeamCallers:
    """Turns the bearer value of a plain gRPC call into a team's caller."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def resolve(self, token: str) -> Caller:
        """An API key acts for its account under the key's id, an access token under the team's. Else invalid."""
        if not token.startswith(api_keys.PREFIX):
            team = await self._directory.team_by_token(token)
            await self._directory.payer_by_account(team.account_id)
            return Caller(CallerClass.TEAM, team.team_id, team.account_id)
        # Mistyped, unknown and revoked keys take the same way: one digest, one look-up.
        key_digest = api_keys.digest(token)
        payer = await self._directory.payer_by_key(key_digest)
        return Caller(CallerClass.TEAM, payer.key_id, payer.account.account_id, key_digest)


def _count(verdict: Verdict) -> None:
    if isinstance(verdict, Admitted):
        COUNT_OF["admitted"].inc()
    elif isinstance(verdict, Refused):
        _COUNT_OF_REASON[verdict.reason].inc()
    else:
        COUNT_OF["replay" if verdict.is_posted else "wait"].inc()
