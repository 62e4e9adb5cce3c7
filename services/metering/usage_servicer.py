"""gRPC in, store, gRPC out: UsageService.

Owns the bounds of a report's span; refuses to know stores and to change anything.
"""

from collections.abc import Callable
from typing import Any

from mws.metering.v1 import usage_service_pb2 as pb
from mws.metering.v1.usage_service_pb2_grpc import UsageServiceServicer

from services.metering import pages, translate
from services.metering.ports import LedgerStore, PageQuery, Span
from services.runtime.callers import account_for
from services.runtime.calls import call_of

_DAY_US = 86_400_000_000
_DEFAULT_SPAN_US = 30 * _DAY_US
_LONGEST_SPAN_US = 400 * _DAY_US
_GROUPINGS = {
    pb.USAGE_GROUPING_PROFILE: "profile",
    pb.USAGE_GROUPING_KEY: "key",
    pb.USAGE_GROUPING_APPLICATION: "application",
    pb.USAGE_GROUPING_DAY: "day",
    pb.USAGE_GROUPING_UPSTREAM: "upstream",
}


class UsageServicer(UsageServiceServicer):
    """See `UsageService`."""

    def __init__(self, store: LedgerStore, now_us: Callable[[], int]) -> None:
        self._store = store
        self._now_us = now_us

    async def SummarizeUsage(self, request: pb.SummarizeUsageRequest, context: Any) -> pb.SummarizeUsageResponse:
        account_id = _account_of(context, request.account_id)
        span = self._span_of(request)
        groups = await self._store.usage_sums(account_id, span, _GROUPINGS.get(request.group_by, "total"))
        return pb.SummarizeUsageResponse(
            groups=map(translate.sum_to_pb, groups), total=translate.sum_to_pb(translate.total_of(groups))
        )

    async def ListUsage(self, request: pb.ListUsageRequest, context: Any) -> pb.ListUsageResponse:
        account_id = _account_of(context, request.account_id)
        bound_to = ("usage", account_id, request.call_id)
        limit = pages.page_limit(request.page_size)
        before = pages.read_token(request.page_token, *bound_to)
        found = await self._store.usage(PageQuery(account_id, request.call_id, before, limit + 1))
        response = pb.ListUsageResponse(records=map(translate.record_to_pb, found[:limit]))
        if len(found) > limit:
            last = found[limit - 1]
            response.next_page_token = pages.write_token((last.recorded_at_us, last.row_id), *bound_to)
        return response

    def _span_of(self, request: pb.SummarizeUsageRequest) -> Span:
        until_us = translate.micros(request.until) if request.HasField("until") else self._now_us() + 1
        since_us = translate.micros(request.since) if request.HasField("since") else until_us - _DEFAULT_SPAN_US
        if not 0 < until_us - since_us <= _LONGEST_SPAN_US:
            raise translate.invalid("since", "and until must span more than nothing and at most 400 days")
        return Span(since_us, until_us)


def _account_of(context: Any, requested: str) -> str:
    call = call_of(context)
    account_id = translate.account_id_of(account_for(call, requested))
    call.note(account_id=account_id)
    return account_id
