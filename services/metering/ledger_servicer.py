"""gRPC in, use case, gRPC out: LedgerService.

Owns nothing but the order decode, run, encode; refuses to know rules and stores.
"""

from collections.abc import Callable
from typing import Any

from mws.metering.v1 import ledger_service_pb2 as pb
from mws.metering.v1.ledger_service_pb2_grpc import LedgerServiceServicer

from services.metering import checking, granting, pages, translate
from services.metering.outbox import Outbox
from services.metering.ports import LedgerStore, PageQuery
from services.runtime.callers import account_for
from services.runtime.calls import call_of

GRANT_TIMEOUT_S = 5.0
ACKNOWLEDGE_WAIT_S = 2.0


class LedgerServicer(LedgerServiceServicer):
    """See `LedgerService`."""

    def __init__(
        self, store: LedgerStore, outbox: Outbox, now_us: Callable[[], int], new_id: Callable[[], str]
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._now_us = now_us
        self._new_id = new_id

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Any) -> pb.GetBalanceResponse:
        account_id = _account_of(context, request.account_id)
        customer = await self._store.customer(account_id)
        return pb.GetBalanceResponse(
            account_id=account_id,
            balance_nano_usd=customer.balance_nano_usd,
            lifetime_paid_nano_usd=customer.lifetime_paid_nano_usd,
            promotional_nano_usd=customer.promotional_nano_usd,
            seq=customer.seq,
        )

    async def ListEntries(self, request: pb.ListEntriesRequest, context: Any) -> pb.ListEntriesResponse:
        account_id = _account_of(context, request.account_id)
        bound_to = ("entries", account_id, request.call_id)
        limit = pages.page_limit(request.page_size)
        before = pages.read_token(request.page_token, *bound_to)
        found = await self._store.entries(PageQuery(account_id, request.call_id, before, limit + 1))
        response = pb.ListEntriesResponse(
            entries=(translate.entry_to_pb(row.transfer, account_id) for row in found[:limit])
        )
        if len(found) > limit:
            last = found[limit - 1]
            response.next_page_token = pages.write_token((last.transfer.posted_at_us, last.row_id), *bound_to)
        return response

    async def GrantCredits(self, request: pb.GrantCreditsRequest, context: Any) -> pb.GrantCreditsResponse:
        credit = translate.credit_from_pb(request)
        call_of(context).note(
            account_id=credit.account_id, kind=credit.kind.value, amount_nano_usd=credit.amount_nano_usd
        )
        now_us = self._now_us()
        granted = await self._store.commit(
            lambda transaction: granting.grant(transaction, credit, now_us, self._new_id), GRANT_TIMEOUT_S
        )
        is_known = await self._outbox.acknowledged(granted.notice_mark, timeout_s=ACKNOWLEDGE_WAIT_S)
        return pb.GrantCreditsResponse(
            entry=translate.entry_to_pb(granted.record.transfer, credit.account_id),
            balance_nano_usd=granted.record.balance_nano_usd,
            tier_pending=not is_known,
        )

    async def CheckLedger(self, request: pb.CheckLedgerRequest, context: Any) -> pb.CheckLedgerResponse:
        account_id = request.account_id
        report = await self._store.inspect(lambda snapshot: checking.check(snapshot, account_id))
        call_of(context).note(violations=len(report.violations))
        return pb.CheckLedgerResponse(
            checked_transfers=report.checked_transfers,
            checked_accounts=report.checked_accounts,
            checked_usage_events=report.checked_usage_events,
            violations=(pb.LedgerViolation(**violation._asdict()) for violation in report.violations),
        )


def _account_of(context: Any, requested: str) -> str:
    call = call_of(context)
    account_id = translate.account_id_of(account_for(call, requested))
    call.note(account_id=account_id)
    return account_id
