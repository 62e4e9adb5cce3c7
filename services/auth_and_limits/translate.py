"""Messages of admission.v1's `AdmissionService` to domain values and back.

Owns the rules of its fields: past these functions nobody checks them again. Refuses to decide.
"""

from collections.abc import Callable, Sequence

from google.protobuf.duration_pb2 import Duration
from mws.admission.v1 import admission_service_pb2 as pb
from mws.common.v1 import credential_pb2, limits_pb2

from services.auth_and_limits.admission import Credential
from services.auth_and_limits.holds import LARGEST_AMOUNT_NANO_USD, Hold, HoldState
from services.auth_and_limits.limits import LimitsView
from services.auth_and_limits.records import Admitted, Ask, Balance, Finished, Payer, Refused, Verdict
from services.runtime.errors import FieldViolation, InvalidRequestError, MissingCredentialError
from services.runtime.ids import unix_ms_of

LARGEST_TOKENS = 1_000_000_000
OLDEST_CALL_MS = 30 * 60_000
LARGEST_CLOCK_SKEW_MS = 5 * 60_000
LARGEST_ACCESS_TOKEN = 16 * 1024
_SHA256_BYTES = 32
_MICROSECONDS = 1_000_000

_STATE_TO_PB = {
    HoldState.OPEN: pb.HOLD_STATE_OPEN,
    HoldState.FINISHED: pb.HOLD_STATE_FINISHED,
    HoldState.CLOSED: pb.HOLD_STATE_CLOSED,
    HoldState.VOIDED: pb.HOLD_STATE_CLOSED,
}
_STATE_FROM_PB = {pb.HOLD_STATE_OPEN: HoldState.OPEN, pb.HOLD_STATE_FINISHED: HoldState.FINISHED}


_OPERATIONS = frozenset({pb.OPERATION_GENERATE, pb.OPERATION_EMBED, pb.OPERATION_RERANK})


class Rules:
    """Collects what is wrong with a request, so that one answer names all of it."""

    __slots__ = ("_prefix", "violations")

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self.violations: list[FieldViolation] = []

    def broken(self, field: str, rule: str) -> None:
        self.violations.append(FieldViolation(self._prefix + field, rule))

    def length(self, field: str, value: str | bytes, largest: int, smallest: int = 0) -> None:
        if not smallest <= len(value) <= largest:
            self.broken(field, f"must have {smallest}..{largest} characters")

    def number(self, field: str, value: int, largest: int, smallest: int = 0) -> None:
        if not smallest <= value <= largest:
            self.broken(field, f"must be {smallest}..{largest}")

    def id(self, field: str, value: str) -> int:
        """Checks a UUIDv7; returns when it was minted, in unix milliseconds."""
        try:
            return unix_ms_of(value)
        except ValueError:
            self.broken(field, "must be a canonical UUIDv7")
            return 0

    def check(self) -> None:
        """Raises InvalidRequestError if any rule was broken."""
        if self.violations:
            raise InvalidRequestError("the request breaks a rule of its contract", violations=self.violations)


def credential_from_pb(credential: credential_pb2.Credential) -> Credential:
    """Raises MissingCredentialError for none at all."""
    if key_digest := credential.api_key_sha256:
        if len(key_digest) != _SHA256_BYTES:
            raise _broken("credential.api_key_sha256", "must have 32 bytes")
        return Credential(key_digest=key_digest)
    if token := credential.access_token:
        if len(token) > LARGEST_ACCESS_TOKEN:
            raise _broken("credential.access_token", "must have at most 16,384 characters")
        return Credential(access_token=token)
    if account_id := credential.account_id:
        return Credential(account_id=account_id)
    if token := credential.staff_token:
        if len(token) > LARGEST_ACCESS_TOKEN:
            raise _broken("credential.staff_token", "must have at most 16,384 characters")
        return Credential(staff_token=token)
    raise MissingCredentialError("no credential was presented")


def ask_from_pb(request: pb.AdmitRequest, now_unix_ms: int) -> Ask:
    """Raises InvalidRequestError."""
    idempotency_key = request.idempotency_key
    ask = Ask(
        request.call_id,
        request.run_id,
        request.runner,
        request.amount_nano_usd,
        request.rate_tokens,
        request.price_book_version,
        idempotency_key,
        request.body_sha256 if idempotency_key else b"",
    )
    rules = Rules()
    minted_ms = rules.id("call_id", ask.call_id)
    if minted_ms and not now_unix_ms - OLDEST_CALL_MS <= minted_ms <= now_unix_ms + LARGEST_CLOCK_SKEW_MS:
        rules.broken("call_id", "must have been minted within the last 30 minutes")
    rules.id("run_id", ask.run_id)
    rules.length("runner", ask.runner, 128, 1)
    if request.operation not in _OPERATIONS:
        rules.broken("operation", "must be set")
    rules.length("profile", request.profile, 128)
    rules.number("amount_nano_usd", ask.amount_nano_usd, LARGEST_AMOUNT_NANO_USD)
    rules.number("rate_tokens", ask.rate_tokens, LARGEST_TOKENS)
    rules.length("price_book_version", ask.price_book_version, 64)
    if idempotency_key:
        rules.length("idempotency_key", idempotency_key, 255)
        if len(ask.body_sha256) != _SHA256_BYTES:
            rules.broken("body_sha256", "must have 32 bytes with an idempotency_key")
    rules.check()
    return ask


def hold_from_pb(hold: pb.Hold, runner: str, index: int) -> Hold:
    """A hold as a runner reports it. Raises InvalidRequestError."""
    rules = Rules(f"holds[{index}].")
    rules.id("call_id", hold.call_id)
    rules.id("run_id", hold.run_id)
    rules.id("account_id", hold.account_id)
    if hold.state not in _STATE_FROM_PB:
        rules.broken("state", "must be OPEN or FINISHED")
    rules.number("amount_nano_usd", hold.amount_nano_usd, LARGEST_AMOUNT_NANO_USD)
    rules.number("rate_tokens", hold.rate_tokens, LARGEST_TOKENS)
    rules.length("price_book_version", hold.price_book_version, 64)
    rules.check()
    return Hold(
        hold.call_id,
        hold.run_id,
        runner,
        hold.account_id,
        hold.key_id,
        _STATE_FROM_PB[hold.state],
        hold.amount_nano_usd,
        hold.rate_tokens,
        hold.price_book_version,
    )


def finished_from_pb(holds: Sequence[pb.FinishedHold]) -> list[Finished]:
    """Raises InvalidRequestError."""
    if not holds:
        raise _broken("holds", "must have at least one")
    return [_finished(hold, index) for index, hold in enumerate(holds)]


def _finished(hold: pb.FinishedHold, index: int) -> Finished:
    cost, used = hold.cost_nano_usd, hold.used_tokens
    if not 0 <= cost <= LARGEST_AMOUNT_NANO_USD:
        raise _broken(f"holds[{index}].cost_nano_usd", f"must be 0..{LARGEST_AMOUNT_NANO_USD}")
    if not 0 <= used <= LARGEST_TOKENS:
        raise _broken(f"holds[{index}].used_tokens", f"must be 0..{LARGEST_TOKENS}")
    return Finished(
        hold.call_id,
        hold.run_id,
        cost if hold.HasField("cost_nano_usd") else None,
        used if hold.HasField("used_tokens") else None,
        hold.account_id,
    )


def balances_from_pb(changes: Sequence[pb.BalanceChange]) -> list[Balance]:
    """Raises InvalidRequestError."""
    if not changes:
        raise _broken("changes", "must have at least one")
    return [_balance(change, index) for index, change in enumerate(changes)]


def _balance(change: pb.BalanceChange, index: int) -> Balance:
    balance = Balance(
        change.account_id,
        change.seq,
        change.balance_nano_usd,
        change.lifetime_paid_nano_usd,
        tuple(change.closed_call_ids),
    )
    rules = Rules(f"changes[{index}].")
    largest = LARGEST_AMOUNT_NANO_USD
    rules.length("account_id", balance.account_id, 36, 1)
    rules.number("seq", balance.seq, 2**62, 1)
    rules.number("balance_nano_usd", balance.balance_nano_usd, largest, -largest)
    rules.number("lifetime_paid_nano_usd", balance.lifetime_paid_nano_usd, largest)
    rules.check()
    return balance


def admit_response(verdict: Verdict, payer: Payer, lease_until_unix_us: Callable[[Hold], int]) -> pb.AdmitResponse:
    """The decision as it travels."""
    response = pb.AdmitResponse(account_id=payer.account.account_id, key_id=payer.key_id)
    fill_limits(response.limits, verdict.limits)
    if isinstance(verdict, Admitted):
        fill_hold(response.admitted, verdict.hold, lease_until_unix_us(verdict.hold))
    elif isinstance(verdict, Refused):
        _fill_refusal(response.refused, verdict)
    elif verdict.is_posted:
        response.replay.call_id = verdict.call_id
    else:
        response.wait.call_id = verdict.call_id
    return response


def fill_hold(message: pb.Hold, hold: Hold, lease_until_unix_us: int) -> None:
    """Writes a hold into its message. A closed one has no lease."""
    message.call_id = hold.call_id
    message.run_id = hold.run_id
    message.runner = hold.runner
    message.account_id = hold.account_id
    message.key_id = hold.key_id
    message.state = _STATE_TO_PB[hold.state]
    message.amount_nano_usd = hold.amount_nano_usd
    message.rate_tokens = hold.rate_tokens
    message.price_book_version = hold.price_book_version
    if hold.is_live:
        lease = message.lease_until
        lease.seconds, microseconds = divmod(lease_until_unix_us, _MICROSECONDS)
        lease.nanos = microseconds * 1000


def fill_limits(message: limits_pb2.LimitsSnapshot, limits: LimitsView) -> None:
    """Writes limits into their message."""
    for bucket_message, bucket in ((message.requests, limits.requests), (message.tokens, limits.tokens)):
        bucket_message.limit = bucket.limit
        bucket_message.remaining = bucket.remaining
        _fill_span(bucket_message.reset, bucket.reset_us)


def _broken(field: str, rule: str) -> InvalidRequestError:
    """One rule that was broken, where there is no need to look for others."""
    return InvalidRequestError(f"{field} {rule}", violations=[FieldViolation(field, rule)])


def _fill_refusal(message: pb.Refusal, refused: Refused) -> None:
    message.reason = pb.Refusal.Reason.ValueType(refused.reason)
    if refused.retry_in_us is not None:
        _fill_span(message.retry_in, refused.retry_in_us)
    if refused.available_nano_usd is not None:
        message.available_nano_usd = refused.available_nano_usd
    if refused.ceiling is not None:
        message.ceiling = refused.ceiling


def _fill_span(message: Duration, span_us: int) -> None:
    message.seconds, microseconds = divmod(span_us, _MICROSECONDS)
    message.nanos = microseconds * 1000
