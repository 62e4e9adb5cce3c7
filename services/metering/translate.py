"""Protobuf to metering's values and back.

Owns parsing: past it nobody re-checks a request; refuses to decide what a value means for money.
"""

import re
from collections.abc import Iterable, Sequence
from operator import le

from google.protobuf.json_format import MessageToJson
from google.protobuf.timestamp_pb2 import Timestamp
from mws.common.v1 import token_usage_pb2 as tokens_pb
from mws.metering.v1 import ledger_service_pb2 as ledger_pb
from mws.metering.v1 import metering_service_pb2 as pb
from mws.metering.v1 import usage_service_pb2 as usage_pb

from services.metering.charging import Ending, Operation, UsageEvent
from services.metering.granting import Credit
from services.metering.ledger import MAX_GRANT_NANO_USD, CreditKind, Customer, Transfer, customer_account
from services.metering.ports import KeptAnswer, KeptAnswerRecord, PostedCall, Rejection, UsageRecord
from services.metering.pricing import NO_USAGE, ProfilePrice, TokenUsage, price_book_version
from services.metering.usage import OutcomeKind, RecordOutcome
from services.runtime.errors import FieldViolation, InvalidRequestError
from services.runtime.ids import unix_ms_of

MAX_BATCH = 1_000
MAX_COUNT = 1_000_000_000_000  # tokens or search units in one event: far above any call, far below 64 bits
MAX_ACCOUNT_ID = 128
MAX_IDEMPOTENCY_KEY = 255
_MAX_INSTANT_US = 253_402_300_799_999_999  # the end of the year 9999
_LONGEST_CALL_US = 2 * 86_400_000_000  # a call lasts minutes; one that is run again under its key keeps its id a day
_CLOCK_STEP_US = 60_000_000  # a clock that was set back a little harms nobody
_REJECTED_TEXT = 16_384
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}").fullmatch
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_SHA256 = re.compile(r"[0-9a-f]{64}").fullmatch
_OPERATIONS = frozenset(Operation)
_ENDINGS: frozenset[int] = frozenset(ending.value for ending in Ending)
_SHA256_BYTES = 32
_LONGEST_FORM = 128
_LONGEST_TEXTS = (MAX_ACCOUNT_ID, 128, 128, 256, 256, 128)
_KINDS = {
    ledger_pb.CREDIT_KIND_PURCHASE: CreditKind.PURCHASE,
    ledger_pb.CREDIT_KIND_PROMOTION: CreditKind.PROMOTION,
    ledger_pb.CREDIT_KIND_REFUND: CreditKind.REFUND,
}


def invalid(field: str, description: str) -> InvalidRequestError:
    """A request with one field at fault."""
    return InvalidRequestError(f"{field} {description}", violations=[FieldViolation(field, description)])


def lookup_id(field: str, value: str) -> str:
    """An id to look up, as UUID text. Raises InvalidRequestError."""
    if not _UUID(value):
        raise invalid(field, "is not UUID text")
    return value


def check_batch(field: str, count: int) -> None:
    """Raises InvalidRequestError for an empty batch or one that is too large."""
    if not 1 <= count <= MAX_BATCH:
        raise invalid(field, f"must have 1..{MAX_BATCH} elements")


def account_id_of(account_id: str) -> str:
    """A usable account id. Raises InvalidRequestError."""
    if not 1 <= len(account_id) <= MAX_ACCOUNT_ID or "\0" in account_id:
        raise invalid("account_id", f"must have 1..{MAX_ACCOUNT_ID} characters, none of them NUL")
    return account_id


def micros(instant: Timestamp) -> int:
    """An instant in Unix microseconds."""
    return instant.seconds * 1_000_000 + instant.nanos // 1_000


def timestamp(instant_us: int) -> Timestamp:
    """An instant from Unix microseconds."""
    seconds, rest = divmod(instant_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


# ---- usage events ----


def event_from_pb(message: pb.UsageEvent) -> UsageEvent | Rejection:
    """A usage event, or why it can never be posted."""
    event = UsageEvent(
        message.call_id,
        message.account_id,
        message.key_id,
        message.application,
        message.operation,
        message.profile,
        message.requested_model,
        message.upstream,
        message.attempt,
        message.price_book_version,
        message.ending,
        _usage_from_pb(message.reported) if message.HasField("reported") else NO_USAGE,
        _usage_from_pb(message.delivered) if message.HasField("delivered") else NO_USAGE,
        message.upstream_accepted,
        message.held_nano_usd,
        micros(message.started_at),
        micros(message.ended_at),
    )
    fault = _text_fault(event) or _number_fault(event) or _count_fault(event) or _answer_fault(message)
    return Rejection(event.call_id[:64], fault, _as_json(message)) if fault else event


def _text_fault(event: UsageEvent) -> str:
    if not _UUID7(event.call_id):
        return "call_id is not UUIDv7 text"
    if not _SHA256(event.price_book_version):
        return "price_book_version is not a SHA-256 in hex"
    if event.operation not in _OPERATIONS:
        return "operation is none of generate, embed, rerank"
    texts = (event.account_id, event.profile, event.key_id, event.application, event.requested_model, event.upstream)
    if any("\0" in text for text in texts):
        return "account_id, profile, key_id, application, requested_model or upstream: has a NUL character"
    if event.account_id and event.profile and all(map(le, map(len, texts), _LONGEST_TEXTS)):
        return ""
    return "account_id, profile, key_id, application, requested_model or upstream: empty or too long"


def _number_fault(event: UsageEvent) -> str:
    if event.ending not in _ENDINGS:
        return "ending is not set or not known"
    if event.attempt < 0 or event.held_nano_usd < 0:
        return "attempt or held_nano_usd is negative"
    if not 0 < event.started_at_us <= _MAX_INSTANT_US:
        return "started_at is absent or out of range"
    if not 0 < event.ended_at_us <= _MAX_INSTANT_US:
        return "ended_at is absent or out of range"
    if not -_CLOCK_STEP_US < event.ended_at_us - event.started_at_us < _LONGEST_CALL_US:
        return "ended_at and started_at cannot belong to one call: the runner's clock jumped"
    if abs(unix_ms_of(event.call_id) * 1_000 - event.started_at_us) > _LONGEST_CALL_US:
        return "call_id was minted at another time than started_at"
    return ""


def _count_fault(event: UsageEvent) -> str:
    for usage in (event.reported, event.delivered):
        for count in usage:
            if count and not 0 < count <= MAX_COUNT:
                return f"a count of tokens or search units is not 0..{MAX_COUNT}"
    return ""


def _answer_fault(message: pb.UsageEvent) -> str:
    if not message.HasField("answer"):
        return ""
    answer = message.answer
    is_usable = 1 <= len(answer.idempotency_key) <= MAX_IDEMPOTENCY_KEY and "\0" not in answer.idempotency_key
    if is_usable and len(answer.body_sha256) == _SHA256_BYTES and len(answer.form) <= _LONGEST_FORM:
        return ""
    return "answer: idempotency_key, body_sha256 or form is absent, too long or unusable"


def answers_from_pb(events: Iterable[pb.UsageEvent]) -> dict[str, KeptAnswer]:
    """The answers of calls under idempotency keys, by call id."""
    return {
        event.call_id: KeptAnswer(
            event.answer.idempotency_key, event.answer.body_sha256, event.answer.form, event.answer.message
        )
        for event in events
        if event.HasField("answer")
    }


def kept_answer_to_pb(record: KeptAnswerRecord) -> pb.GetKeptAnswerResponse:
    """What is kept under a key."""
    return pb.GetKeptAnswerResponse(
        call_id=record.call_id,
        answer=pb.KeptAnswer(**record.answer._asdict()),
        kept_until=timestamp(record.kept_until_us),
    )


def _as_json(event: pb.UsageEvent) -> str:
    if event.HasField("answer"):  # what a user was told is nothing to look at
        bare = pb.UsageEvent()
        bare.CopyFrom(event)
        bare.ClearField("answer")
        event = bare
    return MessageToJson(event, indent=None, preserving_proto_field_name=True)[:_REJECTED_TEXT]


def event_to_pb(event: UsageEvent) -> pb.UsageEvent:
    """The event as it was reported."""
    message = pb.UsageEvent(
        call_id=event.call_id,
        account_id=event.account_id,
        key_id=event.key_id,
        application=event.application,
        operation=event.operation,
        profile=event.profile,
        requested_model=event.requested_model,
        upstream=event.upstream,
        attempt=event.attempt,
        price_book_version=event.price_book_version,
        ending=pb.Ending.Name(event.ending),  # type: ignore[arg-type]
        upstream_accepted=event.upstream_accepted,
        held_nano_usd=event.held_nano_usd,
        started_at=timestamp(event.started_at_us),
        ended_at=timestamp(event.ended_at_us),
    )
    if event.reported != NO_USAGE:
        message.reported.CopyFrom(usage_to_pb(event.reported))
    if event.delivered != NO_USAGE:
        message.delivered.CopyFrom(usage_to_pb(event.delivered))
    return message


def _usage_from_pb(usage: tokens_pb.TokenUsage) -> TokenUsage:
    has = usage.HasField
    return TokenUsage(
        usage.input_tokens if has("input_tokens") else None,
        usage.output_tokens if has("output_tokens") else None,
        usage.cache_read_tokens if has("cache_read_tokens") else None,
        usage.cache_write_5m_tokens if has("cache_write_5m_tokens") else None,
        usage.cache_write_1h_tokens if has("cache_write_1h_tokens") else None,
        usage.reasoning_tokens if has("reasoning_tokens") else None,
        usage.search_units if has("search_units") else None,
    )


def usage_to_pb(usage: TokenUsage) -> tokens_pb.TokenUsage:
    """Token counts; what is not known stays absent."""
    return tokens_pb.TokenUsage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        search_units=usage.search_units,
    )


_OUTCOME_KINDS = {
    OutcomeKind.DEFERRED: pb.RecordOutcome.KIND_DEFERRED,
    OutcomeKind.REJECTED: pb.RecordOutcome.KIND_REJECTED,
}


def outcome_to_pb(outcome: RecordOutcome) -> pb.RecordOutcome:
    """What became of an event."""
    call_id, kind, charged_nano_usd, rule, usage, is_repeated, detail = outcome
    if kind is not OutcomeKind.POSTED:
        return pb.RecordOutcome(call_id=call_id, kind=_OUTCOME_KINDS[kind], repeated=is_repeated, detail=detail)
    return pb.RecordOutcome(
        call_id=call_id,
        kind=pb.RecordOutcome.KIND_POSTED,
        charged_nano_usd=charged_nano_usd,
        rule=rule,
        charged=usage_to_pb(usage),
        repeated=is_repeated,
    )


def call_ids_from_pb(call_ids: Sequence[str]) -> list[str]:
    """Call ids to resolve. Raises InvalidRequestError."""
    check_batch("call_ids", len(call_ids))
    for index, call_id in enumerate(call_ids):
        if not _UUID7(call_id):
            raise invalid(f"call_ids[{index}]", "is not UUIDv7 text")
    return list(call_ids)


def call_outcome_to_pb(call_id: str, posted: PostedCall | None) -> pb.CallOutcome:
    """How a call ended; None is void."""
    if posted is None:
        return pb.CallOutcome(call_id=call_id, kind=pb.CallOutcome.KIND_VOID)
    return pb.CallOutcome(call_id=call_id, kind=pb.CallOutcome.KIND_POSTED, charged_nano_usd=posted.charged_nano_usd)


# ---- prices ----


def prices_from_pb(request: pb.RegisterPriceBookRequest) -> list[ProfilePrice]:
    """A price book whose version is the right one. Raises InvalidRequestError."""
    prices = [_price_from_pb(index, price) for index, price in enumerate(request.prices)]
    if not prices:
        raise invalid("prices", "must not be empty")
    if len({price.profile for price in prices}) != len(prices):
        raise invalid("prices", "must name each profile once")
    if price_book_version(prices) != request.version:
        raise invalid("version", "is not the SHA-256 of the prices in canonical JSON")
    return prices


def _price_from_pb(index: int, price: pb.ProfilePrice) -> ProfilePrice:
    def optional(name: str) -> int | None:
        return getattr(price, name) if price.HasField(name) else None  # type: ignore[arg-type]

    value = ProfilePrice(
        price.profile,
        price.input_nano_usd,
        price.output_nano_usd,
        optional("cache_read_nano_usd"),
        optional("cache_write_5m_nano_usd"),
        optional("cache_write_1h_nano_usd"),
        price.search_unit_nano_usd,
    )
    if not 1 <= len(value.profile) <= 128:
        raise invalid(f"prices[{index}].profile", "must have 1..128 characters")
    for name, amount in zip(value._fields[1:], value[1:], strict=True):
        if isinstance(amount, int) and amount < 0:
            raise invalid(f"prices[{index}].{name}", "must not be negative")
    return value


# ---- credits and reports ----


def credit_from_pb(request: ledger_pb.GrantCreditsRequest) -> Credit:
    """A credit to grant. Raises InvalidRequestError."""
    kind = _KINDS.get(request.kind)
    if kind is None:
        raise invalid("kind", "must be a purchase, a promotion or a refund")
    key, amount_nano_usd = keyed_amount(request.idempotency_key, request.amount_nano_usd)
    expires_at_us: int | None = None
    if request.HasField("expires_at"):
        if kind is not CreditKind.PROMOTION:
            raise invalid("expires_at", "belongs to a promotion only")
        expires_at_us = micros(request.expires_at)
        if not 0 < expires_at_us <= _MAX_INSTANT_US:
            raise invalid("expires_at", "is out of range")
    return Credit(account_id_of(request.account_id), key, amount_nano_usd, kind, expires_at_us)


def usable_key(idempotency_key: str) -> str:
    """A usable idempotency key. Raises InvalidRequestError."""
    if not 1 <= len(idempotency_key) <= MAX_IDEMPOTENCY_KEY or "\0" in idempotency_key:
        raise invalid("idempotency_key", f"must have 1..{MAX_IDEMPOTENCY_KEY} characters, none of them NUL")
    return idempotency_key


def keyed_amount(idempotency_key: str, amount_nano_usd: int, smallest: int = 1) -> tuple[str, int]:
    """A usable idempotency key and amount. Raises InvalidRequestError."""
    usable_key(idempotency_key)
    if not smallest <= amount_nano_usd <= MAX_GRANT_NANO_USD:
        raise invalid("amount_nano_usd", f"must be {smallest}..{MAX_GRANT_NANO_USD}")
    return idempotency_key, amount_nano_usd


def entry_to_pb(transfer: Transfer, account_id: str) -> ledger_pb.Entry:
    """A transfer as the customer sees it."""
    is_credit = transfer.credit == customer_account(account_id)
    return ledger_pb.Entry(
        entry_id=transfer.transfer_id,
        account_id=account_id,
        amount_nano_usd=transfer.amount_nano_usd if is_credit else -transfer.amount_nano_usd,
        counterpart=transfer.debit if is_credit else transfer.credit,
        rule=transfer.rule,
        call_id=transfer.call_id or "",
        posted_at=timestamp(transfer.posted_at_us),
        flags=transfer.flags.split(",") if transfer.flags else (),
        reference=transfer.reference or "",
        attempt=transfer.attempt,
    )


def record_to_pb(record: UsageRecord) -> usage_pb.UsageRecord:
    """A call on record."""
    return usage_pb.UsageRecord(
        event=event_to_pb(record.event),
        rule=record.charge.rule,
        charged=usage_to_pb(record.charge.usage),
        charged_nano_usd=record.charge.nano_usd,
        flags=record.charge.flags,
        recorded_at=timestamp(record.recorded_at_us),
    )


def balance_to_pb(customer: Customer) -> pb.AccountBalance:
    """What an account has, as auth-and-limits needs it."""
    return pb.AccountBalance(
        account_id=customer.account_id,
        seq=customer.seq,
        balance_nano_usd=customer.balance_nano_usd,
        lifetime_paid_nano_usd=customer.lifetime_paid_nano_usd,
    )
