"""gRPC in, use case, gRPC out: LedgerService.

Owns nothing but the order decode, run, encode; refuses to know rules and stores.
"""

from collections.abc import Callable
from typing import Any

from mws.metering.v1 import ledger_service_pb2 as pb
from mws.metering.v1.ledger_service_pb2_grpc import LedgerServiceServicer

from services.metering import checking, pages, statements, translate, translate_reports
from services.metering.credits import Booked, Credits
from services.metering.ports import LedgerStore, PageQuery
from services.metering.reports import Reports
from services.metering.reversals import Correction
from services.runtime.callers import account_for
from services.runtime.calls import call_of


class LedgerServicer(LedgerServiceServicer):
    """See `LedgerService`."""

    def __init__(self, store: LedgerStore, reports: Reports, credits_: Credits, now_us: Callable[[], int]) -> None:
        self._store = store
        self._reports = reports
        self._credits = credits_
        self._now_us = now_us

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
        call_id = translate.lookup_id("call_id", request.call_id) if request.call_id else ""
        found = await self._store.entries(PageQuery(account_id, call_id, before, limit + 1))
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
        return pb.GrantCreditsResponse(**_booked(await self._credits.grant(credit)))

    async def RefundCredits(self, request: pb.RefundCreditsRequest, context: Any) -> pb.RefundCreditsResponse:
        account_id = translate.account_id_of(request.account_id)
        key, amount = translate.keyed_amount(request.idempotency_key, request.amount_nano_usd)
        call_of(context).note(account_id=account_id, amount_nano_usd=amount)
        return pb.RefundCreditsResponse(**_booked(await self._credits.refund(account_id, key, amount)))

    async def CorrectEntry(self, request: pb.CorrectEntryRequest, context: Any) -> pb.CorrectEntryResponse:
        account_id = translate.account_id_of(request.account_id)
        key, amount = translate.keyed_amount(request.idempotency_key, request.amount_nano_usd, smallest=0)
        entry_id = translate.lookup_id("entry_id", request.entry_id)
        call_of(context).note(account_id=account_id, entry_id=entry_id, amount_nano_usd=amount)
        return pb.CorrectEntryResponse(
            **_booked(await self._credits.correct(Correction(account_id, key, entry_id, amount)))
        )

    async def ListCredits(self, request: pb.ListCreditsRequest, context: Any) -> pb.ListCreditsResponse:
        account_id = _account_of(context, request.account_id)
        limit = pages.page_limit(request.page_size)
        before = pages.read_token(request.page_token, "credits", account_id)
        found = await self._reports.credits(account_id, before, limit + 1)
        customer = await self._store.customer(account_id)
        response = pb.ListCreditsResponse(
            credits=map(translate_reports.credit_to_pb, found[:limit]), refundable_nano_usd=customer.refundable_nano_usd
        )
        if len(found) > limit:
            last = found[limit - 1]
            place = (last.grant.transfer.posted_at_us, last.row_id)
            response.next_page_token = pages.write_token(place, "credits", account_id)
        return response

    async def ListBalanceEvents(
        self, request: pb.ListBalanceEventsRequest, context: Any
    ) -> pb.ListBalanceEventsResponse:
        account_id = _account_of(context, request.account_id)
        limit = pages.page_limit(request.page_size)
        before = pages.read_token(request.page_token, "balance events", account_id)
        found = await self._reports.balance_events(account_id, before, limit + 1)
        response = pb.ListBalanceEventsResponse(
            events=(translate_reports.balance_event_to_pb(row.event) for row in found[:limit])
        )
        if len(found) > limit:
            last = found[limit - 1]
            place = (last.event.occurred_at_us, last.row_id)
            response.next_page_token = pages.write_token(place, "balance events", account_id)
        return response

    async def GetStatement(self, request: pb.GetStatementRequest, context: Any) -> pb.GetStatementResponse:
        account_id = _account_of(context, request.account_id)
        span, now_us = statements.span_of(request.month), self._now_us()
        if span is None or span.since_us > now_us:
            raise translate.invalid("month", "must be a month that has begun, as in 2026-11")
        statement = statements.statement_of(await self._reports.statement(account_id, span))
        return translate_reports.statement_to_pb(
            account_id, request.month, span, statement, is_final=statements.is_final(span, now_us)
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


def _booked(booked: Booked) -> dict[str, Any]:
    """The fields that every answer to a booking has."""
    record = booked.record
    return {
        "entry": translate.entry_to_pb(record.transfer, record.account_id),
        "balance_nano_usd": record.balance_nano_usd,
        "tier_pending": not booked.is_known,
    }


def _account_of(context: Any, requested: str) -> str:
    call = call_of(context)
    account_id = translate.account_id_of(account_for(call, requested))
    call.note(account_id=account_id)
    return account_id
