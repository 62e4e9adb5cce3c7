"""gRPC in, reports, gRPC out: UsageService.

Owns nothing but the order decode, read, encode; refuses to know stores and to change anything.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

from mws.metering.v1 import usage_service_pb2 as pb
from mws.metering.v1.usage_service_pb2_grpc import UsageServiceServicer

from services.metering import exports, pages, queries, translate, translate_reports
from services.metering.ports import Span
from services.metering.reports import Reports
from services.runtime.callers import account_for
from services.runtime.calls import CallerClass, call_of
from services.runtime.errors import NotFoundError

_FORMATS = {pb.EXPORT_FORMAT_JSONL: "jsonl"}


class UsageServicer(UsageServiceServicer):
    """See `UsageService`."""

    def __init__(self, reports: Reports, now_us: Callable[[], int]) -> None:
        self._reports = reports
        self._now_us = now_us

    async def SummarizeUsage(self, request: pb.SummarizeUsageRequest, context: Any) -> pb.SummarizeUsageResponse:
        account_id = _account_or_all(context, request.account_id)
        groupings = translate_reports.groupings_from_pb(request)
        limit = pages.page_limit(request.page_size, default=pages.MAX_PAGE)
        filter_text = translate_reports.filter_text(request.filter)
        span_text = translate_reports.span_text(request.since, request.until)
        bound_to = ("sums", account_id, *groupings, filter_text, span_text)
        place = pages.read_cursor(request.page_token, "page_token", *bound_to)
        span = Span(*place[:2]) if place else translate_reports.span_from_pb(request, self._now_us())
        selection = translate_reports.selection_from_pb(account_id, span, request.filter)
        groups = queries.ordered(await self._reports.sums(selection, groupings), groupings)
        rest = queries.after(groups, groupings, tuple(place[2:]) if place else None)
        response = pb.SummarizeUsageResponse(
            groups=map(translate_reports.sum_to_pb, rest[:limit]),
            total=translate_reports.sum_to_pb(queries.total_of(groups)),
        )
        if len(rest) > limit:
            last = rest[limit - 1]
            values = (*span, last.charged_nano_usd, last.group, last.then_group)
            response.next_page_token = pages.write_cursor(values, *bound_to)
        return response

    async def ListUsage(self, request: pb.ListUsageRequest, context: Any) -> pb.ListUsageResponse:
        account_id = _account_of(context, request.account_id)
        span_text = translate_reports.span_text(request.since, request.until)
        bound_to = ("usage", account_id, request.call_id, translate_reports.filter_text(request.filter), span_text)
        limit = pages.page_limit(request.page_size)
        before = pages.read_token(request.page_token, *bound_to)
        span = translate_reports.any_span_from_pb(request)
        selection = translate_reports.selection_from_pb(account_id, span, request.filter)
        call_id = translate.lookup_id("call_id", request.call_id) if request.call_id else ""
        found = await self._reports.usage(selection, call_id, before, limit + 1)
        response = pb.ListUsageResponse(records=map(translate.record_to_pb, found[:limit]))
        if len(found) > limit:
            last = found[limit - 1]
            response.next_page_token = pages.write_token((last.recorded_at_us, last.row_id), *bound_to)
        return response

    async def GetCall(self, request: pb.GetCallRequest, context: Any) -> pb.GetCallResponse:
        account_id = _account_or_all(context, request.account_id)
        call_id = translate.lookup_id("call_id", request.call_id)
        found = await self._reports.call(call_id, account_id)
        if found is None:
            raise NotFoundError("no such call is on record")
        return translate_reports.call_to_pb(found)

    async def ExportUsage(self, request: pb.ExportUsageRequest, context: Any) -> AsyncIterator[pb.ExportUsageResponse]:
        account_id = _account_of(context, request.account_id)
        format_name = _FORMATS.get(request.format, "csv")
        bound_to = translate_reports.span_text(request.since, request.until)
        span = translate_reports.span_from_pb(request, self._now_us())
        wanted = exports.resumed(account_id, format_name, span, request.cursor, bound_to)
        total: int | None = await self._reports.export_size(account_id, wanted.span)
        async for piece in exports.export(self._reports, wanted, bound_to):
            yield pb.ExportUsageResponse(
                data=piece.data,
                rows=piece.rows,
                cursor=piece.cursor,
                records=piece.records,
                total_records=total,
                is_last=piece.is_last,
            )
            total = None


def _account_of(context: Any, requested: str) -> str:
    call = call_of(context)
    account_id = translate.account_id_of(account_for(call, requested))
    call.note(account_id=account_id)
    return account_id


def _account_or_all(context: Any, requested: str) -> str:
    """Only an administrator may leave the account out and mean all."""
    if not requested and call_of(context).caller.caller_class is CallerClass.ADMIN:
        return ""
    return _account_of(context, requested)
