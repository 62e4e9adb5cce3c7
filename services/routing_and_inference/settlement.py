"""Ends calls: one usage event or one void for every call that was admitted, whatever happened to it.

Owns what is told about an ended call, and that telling outlives the caller; refuses to price anything.

A call for which an upstream was tried ends in a usage event, even if all of them failed before content: nothing is
charged then, and the record says why. A call that never came that far, and one whose link was lost without anybody
cancelling it (a crash of ours), ends in a void.
"""

import asyncio
import functools
from collections.abc import Callable
from datetime import timedelta

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.metering.v1 import metering_service_pb2 as pb

from services.routing_and_inference import metrics
from services.routing_and_inference.adapters.finisher import Finisher
from services.routing_and_inference.adapters.leases import Leases
from services.routing_and_inference.adapters.recorder import Outcome, Recorded, UsageRecorder
from services.routing_and_inference.adapters.spool import SpooledUsage
from services.routing_and_inference.admission import OpenCall
from services.runtime.calls import CancelReason
from services.runtime.errors import UsageUnrecordableError

_MAX_MODEL = 256

COMPLETE, REFUSED, BALANCE_CUT = pb.ENDING_COMPLETE, pb.ENDING_REFUSED, pb.ENDING_BALANCE_CUT
RESCUED = pb.ENDING_RESCUED

_NAMES = {number: name.removeprefix("ENDING_").lower() for name, number in pb.Ending.items()}

_CHARGES_NOTHING = (pb.ENDING_FAILED_BEFORE_CONTENT,)
_CHARGES_INPUT = (pb.ENDING_CLIENT_LEFT_BEFORE_CONTENT,)


class Ended(msgspec.Struct, frozen=True, eq=False):
    """How a call ended. `reported` holds final counts only."""

    ending: "pb.Ending.ValueType"
    delivered: TokenUsage
    reported: TokenUsage | None = None
    upstream: str = ""
    attempt: int = 0
    upstream_accepted: bool = False
    kept: tuple[str, bytes] | None = None  # form and bytes of the answer, of a call under an idempotency key


def ending_of_failure(*, delivered: bool) -> "pb.Ending.ValueType":
    """The ending of a call that broke on our side or the upstream's."""
    return pb.ENDING_CUT if delivered else pb.ENDING_FAILED_BEFORE_CONTENT


def ending_of_cancellation(reason: CancelReason | None, *, delivered: bool) -> "pb.Ending.ValueType | None":
    """The ending of a call that was cancelled. None: its link was lost and nobody cancelled it; it is void."""
    if reason is None:
        return None
    if reason is CancelReason.SHUTDOWN:  # a process of ours ends, and not the caller's patience
        return ending_of_failure(delivered=delivered)
    return pb.ENDING_CLIENT_LEFT if delivered else pb.ENDING_CLIENT_LEFT_BEFORE_CONTENT


class Settlement:
    """Every open call goes through `settle` or `void`, once."""

    def __init__(
        self, recorder: UsageRecorder, leases: Leases, finisher: Finisher, *, wall_us: Callable[[], int]
    ) -> None:
        self._recorder = recorder
        self._leases = leases
        self._finisher = finisher
        self._wall_us = wall_us

    def require_room(self) -> None:
        """Raises UsageUnrecordableError when the usage of a call that starts now would find no place."""
        if not self._recorder.can_record():
            raise UsageUnrecordableError("usage can be recorded nowhere now", retry_in=timedelta(seconds=1))

    def settle(self, opened: OpenCall, ended: Ended) -> Recorded:
        """Records the call and finishes its hold. Await the result or do not: it happens anyway.

        A failure under an idempotency key is voided instead: a closed hold would stand for an answer that can be
        replayed, and the key's next call is to run.
        """
        if opened.order.idempotency_key and ended.ending in _CHARGES_NOTHING:
            return self._void_instead(opened)
        metrics.ENDINGS.by[opened.profile.slug, _NAMES[ended.ending]] += 1
        usage = SpooledUsage(self._event(opened, ended), opened.hold)
        return self._recorder.submit(usage, functools.partial(self._finish, opened, ended))

    def _void_instead(self, opened: OpenCall) -> Recorded:
        self.void(opened)
        recorded: Recorded = asyncio.get_running_loop().create_future()
        recorded.set_result(None)
        return recorded

    def void(self, opened: OpenCall) -> None:
        """The call came to nothing."""
        self._leases.drop(opened.order.call_id)
        hold = opened.hold
        self._finisher.void(
            admission_pb.VoidRequest(call_id=opened.order.call_id, run_id=hold.run_id, account_id=hold.account_id)
        )
        metrics.ENDINGS.by[opened.profile.slug, "void"] += 1

    def _finish(self, opened: OpenCall, ended: Ended, outcome: Outcome) -> None:
        hold = opened.hold
        finished = admission_pb.FinishedHold(
            call_id=hold.call_id, run_id=hold.run_id, used_tokens=used_tokens(ended), account_id=hold.account_id
        )
        if outcome is not None:  # with metering; what is not is renewed until it is
            self._leases.drop(hold.call_id)
            if outcome.HasField("charged_nano_usd"):
                finished.cost_nano_usd = outcome.charged_nano_usd
            slug, charged = opened.profile.slug, outcome.charged
            metrics.TOKENS.by[slug, "input"] += charged.input_tokens
            metrics.TOKENS.by[slug, "output"] += charged.output_tokens
        self._finisher.finish(finished)

    def _event(self, opened: OpenCall, ended: Ended) -> pb.UsageEvent:
        order, hold = opened.order, opened.hold
        event = pb.UsageEvent(
            call_id=order.call_id,
            account_id=hold.account_id,
            key_id=hold.key_id,
            application=order.application,
            operation=order.profile.kind.value,
            profile=order.profile.slug,
            requested_model=order.requested_model[:_MAX_MODEL],
            upstream=ended.upstream,
            attempt=ended.attempt,
            price_book_version=opened.price_book_version,
            ending=ended.ending,
            reported=ended.reported,
            delivered=ended.delivered,
            upstream_accepted=ended.upstream_accepted,
            held_nano_usd=hold.amount_nano_usd,
        )
        if order.idempotency_key:
            event.answer.idempotency_key, event.answer.body_sha256 = order.idempotency_key, order.body_sha256
            if ended.kept is not None:
                event.answer.form, event.answer.message = ended.kept
        _set_time(event.started_at, opened.started_at_us)
        _set_time(event.ended_at, self._wall_us())
        return event


def charged_of(outcome: Outcome) -> int | None:
    """What was charged, if that is known already."""
    if outcome is None or not outcome.HasField("charged_nano_usd"):
        return None
    return outcome.charged_nano_usd


def used_tokens(ended: Ended) -> int:
    """What the call took from the minute after all."""
    if ended.ending in _CHARGES_NOTHING:
        return 0
    counts = TokenUsage()
    counts.CopyFrom(ended.delivered)
    if ended.reported is not None:
        counts.MergeFrom(ended.reported)
    prompt = (
        counts.input_tokens + counts.cache_read_tokens + counts.cache_write_5m_tokens + counts.cache_write_1h_tokens
    )
    if ended.ending in _CHARGES_INPUT:
        return prompt if ended.upstream_accepted else 0
    return prompt + counts.output_tokens


def _set_time(timestamp: Timestamp, unix_us: int) -> None:
    timestamp.seconds = unix_us // 1_000_000
    timestamp.nanos = unix_us % 1_000_000 * 1_000
