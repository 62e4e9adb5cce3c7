"""Gets usage on record: with metering if it answers, in the spool if not; resends the spool until it is empty.

Owns the way of an event from the end of its call to durability; refuses to decide what is charged. One batch is on its
way at a time; what ends meanwhile forms the next, so that load makes batches larger and not more numerous.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog
from mws.metering.v1 import metering_service_pb2 as pb

from services.routing_and_inference import metrics
from services.routing_and_inference.adapters.leases import Leases
from services.routing_and_inference.adapters.prices import PriceRegistration
from services.routing_and_inference.adapters.spool import Spool, SpooledUsage, SpoolFullError
from services.runtime.errors import GatewayError, UsageUnrecordableError

if TYPE_CHECKING:
    from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub

log = structlog.get_logger()

Outcome = pb.RecordOutcome | None
"""What metering made of an event; None: it is not with metering yet."""

Recorded = asyncio.Future[Outcome]
"""Ends when the event is durable: with metering, or (None) in the spool."""

_BATCH = 500
_BATCH_BYTES = 3 * 1024 * 1024  # of kept answers; metering takes 4 MiB in all
_PACE_S = 0.003  # between two batches under load: what ends meanwhile shares the second
_TIMEOUT_S = 1.5
_RESEND_TIMEOUT_S = 5.0
_FIRST_RESEND_S = 0.25
_LAST_RESEND_S = 5.0
_ADOPT_EVERY_S = 10.0


class UsageRecorder:
    """`submit` returns at once; `run`, `resend` and `adopt` are background work for as long as the process lives."""

    def __init__(
        self,
        metering: "MeteringServiceAsyncStub",
        spool: Spool,
        leases: Leases,
        prices: PriceRegistration,
    ) -> None:
        self._metering = metering
        self._spool = spool
        self._leases = leases
        self._prices = prices
        self._waiting: deque[_Submitted] = deque()
        self._wake = asyncio.Event()
        self._resend_now = asyncio.Event()
        self._is_metering_up = True
        self._homeless: list[SpooledUsage] = []  # recorded nowhere: no metering, no room
        self._running = 0
        self.on_change: Callable[[], None] = lambda: None  # told when `can_record` may have changed

    def can_record(self) -> bool:
        """Whether the usage of a call that starts now would find a place."""
        return self._is_metering_up or (not self._homeless and self._spool.has_room())

    @property
    def unsent(self) -> int:
        """Events that metering has not acknowledged."""
        return len(self._waiting) + self._running + len(self._spool) + len(self._homeless)

    def submit(self, usage: SpooledUsage, settled: Callable[[Outcome], None]) -> Recorded:
        """Records an event. The future ends when that is durable, or with UsageUnrecordableError.

        The future is its reader's alone, who may be cancelled: the event is recorded nevertheless. `settled` is called
        in any case, just before the future ends.
        """
        recorded: Recorded = asyncio.get_running_loop().create_future()
        self._waiting.append(_Submitted(usage, settled, recorded))
        self._wake.set()
        return recorded

    async def run(self) -> None:
        """Sends what was submitted, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                started_s = loop.time()
                batch = self._next_batch()
                self._running = len(batch)
                await self._record(batch)
                self._running = 0
                if (left_s := started_s + _PACE_S - loop.time()) > 0:
                    await asyncio.sleep(left_s)

    def _next_batch(self) -> list["_Submitted"]:
        """As many as metering takes at once: kept answers make a batch large."""
        count = len(_first_of([submitted.usage for submitted in itertools.islice(self._waiting, _BATCH)]))
        return [self._waiting.popleft() for _ in range(count)]

    async def resend(self) -> None:
        """Sends what lies in the spool, for ever."""
        for usage in self._spool.oldest(len(self._spool)):
            self._leases.finish(usage.hold)
        pause_s = _FIRST_RESEND_S
        while True:
            while not (self._homeless or len(self._spool)):
                self._set_up(True)  # nothing is left to try it with: the next call that ends does
                self._resend_now.clear()
                await self._resend_now.wait()
            if await self._resend_batch():
                pause_s = _FIRST_RESEND_S
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LAST_RESEND_S)

    async def adopt(self) -> None:
        """Takes over the spools of runners that are dead, for ever."""
        while True:
            adopted = await self._spool.adopt_orphans()
            if adopted:
                log.info("spool.adopted", events=len(adopted))
                for usage in adopted:
                    self._leases.finish(usage.hold)
                self._resend_now.set()
            await asyncio.sleep(_ADOPT_EVERY_S)

    async def flush(self, timeout_s: float) -> bool:
        """Waits until metering has acknowledged everything; false: some of it stays in the spool.

        What is not even there yet is waited for in any case; that takes no longer than metering's timeout.
        """
        self._resend_now.set()
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while self._waiting or self._running:
            await asyncio.sleep(0.01)
        while self.unsent and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.05)
        return not self.unsent

    # ---- a batch that just ended ----

    async def _record(self, batch: Sequence["_Submitted"]) -> None:
        if not self._is_metering_up:
            await self._to_spool(batch)
            return
        try:
            outcomes = await self._send([submitted.usage for submitted in batch], _TIMEOUT_S)
        except GatewayError as error:
            log.warning("usage.not_recorded", events=len(batch), code=error.code.name)
            self._set_up(False)
            await self._to_spool(batch)
            return
        kept = []
        for submitted, outcome in zip(batch, outcomes, strict=True):
            if _is_settled(outcome):
                submitted.resolve(outcome)
            else:
                kept.append(submitted)
        if kept:
            await self._to_spool(kept)

    async def _to_spool(self, batch: Sequence["_Submitted"]) -> None:
        try:
            await self._spool.append([submitted.usage for submitted in batch])
        except SpoolFullError as error:
            log.error("usage.unrecordable", events=len(batch), cause=str(error))  # noqa: TRY400 - the cause says it
            for submitted in batch:
                self._homeless.append(submitted.usage)
                self._leases.finish(submitted.usage.hold)
                submitted.fail(UsageUnrecordableError("the usage of the call could not be recorded"))
        else:
            for submitted in batch:
                self._leases.finish(submitted.usage.hold)
                submitted.resolve(None)
        self._gauge()
        self.on_change()
        self._resend_now.set()

    # ---- what was spooled ----

    async def _resend_batch(self) -> bool:
        """Sends the oldest events; false: metering does not take them now."""
        batch = _first_of([*self._homeless, *self._spool.oldest(_BATCH)])
        try:
            outcomes = await self._send(batch, _RESEND_TIMEOUT_S)
        except GatewayError as error:
            log.warning("spool.not_resent", events=len(self._spool), code=error.code.name)
            self._set_up(False)
            return False
        self._set_up(True)
        settled = {outcome.call_id for outcome in outcomes if _is_settled(outcome)}
        for call_id in settled:
            self._leases.drop(call_id)
        await self._spool.remove(settled)
        self._homeless = [usage for usage in self._homeless if usage.event.call_id not in settled]
        self._gauge()
        self.on_change()
        return bool(settled)

    async def _send(self, batch: Sequence[SpooledUsage], timeout_s: float) -> Sequence[pb.RecordOutcome]:
        """Sends events; those with a price book that metering does not know once more, after registering it."""
        request = pb.RecordUsageRequest(events=[usage.event for usage in batch])
        outcomes = await self._outcomes(request, timeout_s)
        late = [index for index, outcome in enumerate(outcomes) if not _is_settled(outcome)]
        if late and await self._prices.is_registered():
            request = pb.RecordUsageRequest(events=[batch[index].event for index in late])
            for index, outcome in zip(late, await self._outcomes(request, timeout_s), strict=True):
                outcomes[index] = outcome
        return outcomes

    async def _outcomes(self, request: pb.RecordUsageRequest, timeout_s: float) -> list[pb.RecordOutcome]:
        outcomes = list((await self._metering.RecordUsage(request, timeout=timeout_s)).outcomes)
        if len(outcomes) != len(request.events):  # nothing of such an answer may be believed
            raise GatewayError("metering answered with another number of outcomes")
        return outcomes

    def _set_up(self, is_up: bool) -> None:
        if self._is_metering_up is not is_up:
            self._is_metering_up = is_up
            log.info("metering.answers" if is_up else "metering.silent", spooled=len(self._spool))
            self.on_change()

    def _gauge(self) -> None:
        metrics.SPOOLED.set(len(self._spool))
        metrics.SPOOL_BYTES.set(self._spool.size_bytes)


class _Submitted:
    """An event on its way, and who wants to know what became of it."""

    __slots__ = ("_recorded", "_settled", "usage")

    def __init__(self, usage: SpooledUsage, settled: Callable[[Outcome], None], recorded: Recorded) -> None:
        self.usage = usage
        self._settled = settled
        self._recorded = recorded

    def resolve(self, outcome: Outcome) -> None:
        self._settled(outcome)
        if not self._recorded.done():
            self._recorded.set_result(outcome)

    def fail(self, error: UsageUnrecordableError) -> None:
        self._settled(None)
        if not self._recorded.done():
            self._recorded.set_exception(error)
            self._recorded.exception()  # nobody may be left to read it


def _first_of(spooled: Sequence[SpooledUsage]) -> list[SpooledUsage]:
    """As many as metering takes at once."""
    batch: list[SpooledUsage] = []
    size_bytes = 0
    for usage in spooled[:_BATCH]:
        size_bytes += len(usage.event.answer.message)
        if batch and size_bytes > _BATCH_BYTES:
            break
        batch.append(usage)
    return batch


def _is_settled(outcome: pb.RecordOutcome) -> bool:
    if outcome.kind == pb.RecordOutcome.KIND_REJECTED:
        log.error("usage.rejected", call_id=outcome.call_id, detail=outcome.detail)
        return True
    return outcome.kind == pb.RecordOutcome.KIND_POSTED
