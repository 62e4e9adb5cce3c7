"""Reports to protobuf, and what a report was asked for from it.

Owns spans, filters and the forms of reports; refuses to decide what a number means.
"""

from google.protobuf.timestamp_pb2 import Timestamp
from mws.metering.v1 import ledger_service_pb2 as ledger_pb
from mws.metering.v1 import usage_service_pb2 as pb

from services.metering import translate
from services.metering.ledger import CreditKind
from services.metering.ports import BalanceEvent, Span
from services.metering.pricing import NO_USAGE
from services.metering.queries import cost_lines
from services.metering.reports import CallOnRecord, CreditOnRecord, GroupedSum, UsageSelection
from services.metering.statements import Line, Statement

DAY_US = 86_400_000_000
_DEFAULT_SPAN_US = 30 * DAY_US
_LONGEST_SPAN_US = 400 * DAY_US
_EVER = Span(0, 1 << 60)
_MAX_FILTER_VALUES = 100
_GROUPINGS = {
    pb.USAGE_GROUPING_PROFILE: "profile",
    pb.USAGE_GROUPING_KEY: "key",
    pb.USAGE_GROUPING_APPLICATION: "application",
    pb.USAGE_GROUPING_DAY: "day",
    pb.USAGE_GROUPING_UPSTREAM: "upstream",
    pb.USAGE_GROUPING_ACCOUNT: "account",
    pb.USAGE_GROUPING_HOUR: "hour",
}
_KINDS = {
    CreditKind.PURCHASE: ledger_pb.CREDIT_KIND_PURCHASE,
    CreditKind.PROMOTION: ledger_pb.CREDIT_KIND_PROMOTION,
    CreditKind.REFUND: ledger_pb.CREDIT_KIND_REFUND,
}


def span_from_pb(request: pb.SummarizeUsageRequest | pb.ExportUsageRequest, now_us: int) -> Span:
    """The span that a report covers. Raises InvalidRequestError."""
    until_us = translate.micros(request.until) if request.HasField("until") else now_us + 1
    since_us = translate.micros(request.since) if request.HasField("since") else until_us - _DEFAULT_SPAN_US
    if not 0 < until_us - since_us <= _LONGEST_SPAN_US:
        raise translate.invalid("since", "and until must span more than nothing and at most 400 days")
    return Span(since_us, until_us)


def any_span_from_pb(request: pb.ListUsageRequest) -> Span:
    """The span of a list, open where nothing is said."""
    since_us = translate.micros(request.since) if request.HasField("since") else _EVER.since_us
    until_us = translate.micros(request.until) if request.HasField("until") else _EVER.until_us
    return Span(since_us, until_us)


def span_text(since: Timestamp, until: Timestamp) -> str:
    """What binds a token to the span that was asked for."""
    return f"{translate.micros(since)}-{translate.micros(until)}"


def selection_from_pb(account_id: str, span: Span, wanted: pb.UsageFilter) -> UsageSelection:
    """Which calls. Raises InvalidRequestError for lists that are too long."""
    lists = wanted.key_ids, wanted.applications, wanted.profiles, wanted.upstreams, wanted.rules
    if any(len(values) > _MAX_FILTER_VALUES for values in lists):
        raise translate.invalid("filter", f"may list at most {_MAX_FILTER_VALUES} values of a kind")
    if any("\0" in value for values in lists for value in values):
        raise translate.invalid("filter", "may not have a NUL character")
    return UsageSelection(account_id, span, *(tuple(values) for values in lists))


def filter_text(wanted: pb.UsageFilter) -> str:
    """What binds a token to a filter."""
    return wanted.SerializeToString(deterministic=True).hex()


def groupings_from_pb(request: pb.SummarizeUsageRequest) -> tuple[str, str]:
    """How to group. A grouping that we do not know is none."""
    return _GROUPINGS.get(request.group_by, "total"), _GROUPINGS.get(request.then_by, "total")


def sum_to_pb(found: GroupedSum) -> pb.UsageSummary:
    """A sum over calls."""
    return pb.UsageSummary(
        group=found.group,
        calls=found.calls,
        charged=translate.usage_to_pb(found.usage),
        charged_nano_usd=found.charged_nano_usd,
        then_group=found.then_group,
    )


def call_to_pb(call: CallOnRecord) -> pb.GetCallResponse:
    """A call and its money."""
    event, charge = call.record.event, call.record.charge
    entries = [translate.entry_to_pb(transfer, event.account_id) for transfer in call.transfers]
    return pb.GetCallResponse(
        record=translate.record_to_pb(call.record),
        lines=(
            pb.CostLine(
                token_class=line.token_class,
                quantity=line.quantity,
                unit_price_nano_usd=line.unit_price_nano_usd,
                cost_nano_usd=line.cost_nano_usd,
            )
            for line in cost_lines(charge.usage, call.price_book[event.profile])
        ),
        entries=entries,
        net_nano_usd=-sum(entry.amount_nano_usd for entry in entries),
    )


def credit_to_pb(credit: CreditOnRecord) -> ledger_pb.Credit:
    """A credit on record."""
    grant = credit.grant
    message = ledger_pb.Credit(
        entry=translate.entry_to_pb(grant.transfer, grant.account_id),
        kind=_KINDS[CreditKind(grant.kind)],
        remaining_nano_usd=credit.remaining_nano_usd,
        corrected_nano_usd=credit.taken_back_nano_usd,
        idempotency_key=grant.idempotency_key,
    )
    if grant.expires_at_us is not None:
        message.expires_at.CopyFrom(translate.timestamp(grant.expires_at_us))
    return message


def balance_event_to_pb(event: BalanceEvent) -> ledger_pb.BalanceEvent:
    """A crossing."""
    return ledger_pb.BalanceEvent(
        account_id=event.account_id,
        threshold_nano_usd=event.threshold_nano_usd,
        balance_nano_usd=event.balance_nano_usd,
        occurred_at=translate.timestamp(event.occurred_at_us),
    )


def statement_to_pb(
    account_id: str, month: str, span: Span, statement: Statement, *, is_final: bool
) -> ledger_pb.GetStatementResponse:
    """A month."""
    return ledger_pb.GetStatementResponse(
        account_id=account_id,
        month=month,
        since=translate.timestamp(span.since_us),
        until=translate.timestamp(span.until_us),
        opening_nano_usd=statement.opening_nano_usd,
        credits=map(_line_to_pb, statement.credits),
        charges=map(_line_to_pb, statement.charges),
        closing_nano_usd=statement.closing_nano_usd,
        is_final=is_final,
    )


def _line_to_pb(line: Line) -> ledger_pb.StatementLine:
    return ledger_pb.StatementLine(
        name=line.name,
        count=line.entries,
        amount_nano_usd=line.amount_nano_usd,
        charged=translate.usage_to_pb(line.usage) if line.usage != NO_USAGE else None,
    )
