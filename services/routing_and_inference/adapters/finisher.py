"""Tells auth-and-limits that calls ended: queued, in batches, again and again until it is acknowledged.

Owns the queue of Finish and Void; nobody waits for it. What a crash loses, the lease's expiry makes good.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import grpc
import structlog
from mws.admission.v1 import admission_service_pb2 as pb

from services.runtime.errors import GatewayError, HoldNotOpenError

if TYPE_CHECKING:
    from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceAsyncStub

log = structlog.get_logger()

_BATCH = 500
_VOIDS_AT_ONCE = 32
_LINGER_S = 0.005
_TIMEOUT_S = 2.0
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 2.0
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_MOST_QUEUED = 200_000  # beyond it, expiry has taken over long ago


class Finisher:
    """`finish` and `void` return at once; `run` delivers.

    Under load what is finished waits a moment for company, but never behind an admission: `hurry` sends it ahead,
    so that a caller whose call has ended does not find its slot still taken.
    """

    def __init__(self, admission: "AdmissionServiceAsyncStub", *, is_busy: Callable[[], bool] = lambda: False) -> None:
        self._admission = admission
        self._is_busy = is_busy
        self._finished: deque[pb.FinishedHold] = deque()
        self._voided: deque[pb.VoidRequest] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._deliveries: set[asyncio.Task[None]] = set()
        self._is_refused = False  # the last delivery failed: `run` decides when to try again

    def finish(self, hold: pb.FinishedHold) -> None:
        """The running part of a call ended."""
        if len(self._finished) < _MOST_QUEUED:
            self._finished.append(hold)
        self._wake.set()
        self._idle.clear()

    def void(self, void: pb.VoidRequest) -> None:
        """The call came to nothing and will not be recorded."""
        if len(self._voided) < _MOST_QUEUED:
            self._voided.append(void)
        self._wake.set()
        self._idle.clear()

    def hurry(self) -> None:
        """Sends what is queued, now: a call made after this one arrives after it."""
        if self._finished and not self._is_refused:
            self._start()

    async def flush(self, timeout_s: float) -> bool:
        """Waits until nothing is queued; whether that came true in time."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Delivers for ever."""
        retry_s = _FIRST_RETRY_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._is_busy() and not self._is_refused:
                await asyncio.sleep(_LINGER_S)
            self._is_refused = False
            while self._finished:
                self._start()
            if self._deliveries:
                await asyncio.wait(self._deliveries)
            are_voided = await self._deliver_voids()
            if are_voided and not self._is_refused:
                retry_s = _FIRST_RETRY_S
                if not (self._finished or self._voided or self._deliveries):
                    self._idle.set()
                continue
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, _LAST_RETRY_S)
            self._wake.set()

    def _start(self) -> None:
        batch = [self._finished.popleft() for _ in range(min(_BATCH, len(self._finished)))]
        # The call is made here and not in the task, since its place among other calls is what matters.
        call = self._admission.Finish(pb.FinishRequest(holds=batch), timeout=_TIMEOUT_S)
        delivery = asyncio.get_running_loop().create_task(self._deliver(call, batch), name="finish")
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    async def _deliver(self, call: Awaitable[object], batch: list[pb.FinishedHold]) -> None:
        if not await self._is_acknowledged(call):
            self._finished.extendleft(reversed(batch))
            self._is_refused = True
        self._wake.set()

    async def _deliver_voids(self) -> bool:
        """Sends all voids that are queued; whether they were taken."""
        while self._voided:
            voids = list(itertools.islice(self._voided, _VOIDS_AT_ONCE))
            calls = [self._admission.Void(void, timeout=_TIMEOUT_S) for void in voids]
            answers = await asyncio.gather(*(self._is_acknowledged(call) for call in calls))
            if not all(answers):  # the whole batch again: a repeat changes nothing
                return False
            for _ in voids:
                self._voided.popleft()
        return True

    async def _is_acknowledged(self, call: Awaitable[object]) -> bool:
        """Waits; false: again later. What is refused for good is dropped, since a repeat would be refused as well."""
        try:
            await call
        except HoldNotOpenError:
            return True  # finished, or never ours: nothing is left to release
        except GatewayError as error:
            is_passing = error.code in _PASSING
            log.warning("holds.not_settled", queued=len(self._finished), code=error.code.name, dropped=not is_passing)
            return not is_passing
        return True
