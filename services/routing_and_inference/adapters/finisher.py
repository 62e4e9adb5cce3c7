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
_TIMEOUT_S = 2.0
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 2.0
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_MOST_QUEUED = 200_000  # beyond it, expiry has taken over long ago


class Finisher:
    """`finish` and `void` return at once; `run` delivers."""

    def __init__(self, admission: "AdmissionServiceAsyncStub") -> None:
        self._admission = admission
        self._finished: deque[pb.FinishedHold] = deque()
        self._voided: deque[pb.VoidRequest] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def finish(self, hold: pb.FinishedHold) -> None:
        """The running part of a call ended."""
        if len(self._finished) < _MOST_QUEUED:
            self._finished.append(hold)
        self._wake.set()
        self._idle.clear()

    def void(self, call_id: str, run_id: str) -> None:
        """The call came to nothing and will not be recorded."""
        if len(self._voided) < _MOST_QUEUED:
            self._voided.append(pb.VoidRequest(call_id=call_id, run_id=run_id))
        self._wake.set()
        self._idle.clear()

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
            if await self._deliver():
                retry_s = _FIRST_RETRY_S
                self._idle.set()
                continue
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, _LAST_RETRY_S)
            self._wake.set()

    async def _deliver(self) -> bool:
        """Sends all that is queued; whether nothing was left."""
        while self._finished:
            batch = list(itertools.islice(self._finished, _BATCH))
            if not await self._is_acknowledged(self._admission.Finish, pb.FinishRequest(holds=batch)):
                return False
            for _ in batch:
                self._finished.popleft()
        while self._voided:
            voids = list(itertools.islice(self._voided, _VOIDS_AT_ONCE))
            answers = await asyncio.gather(*(self._is_acknowledged(self._admission.Void, void) for void in voids))
            if not all(answers):  # the whole batch again: a repeat changes nothing
                return False
            for _ in voids:
                self._voided.popleft()
        return not self._finished

    async def _is_acknowledged(self, method: Callable[..., Awaitable[object]], request: object) -> bool:
        """Sends; false: again later. What is refused for good is dropped, since a repeat would be refused as well."""
        try:
            await method(request, timeout=_TIMEOUT_S)
        except HoldNotOpenError:
            return True  # finished, or never ours: nothing is left to release
        except GatewayError as error:
            is_passing = error.code in _PASSING
            log.warning("holds.not_settled", queued=len(self._finished), code=error.code.name, dropped=not is_passing)
            return not is_passing
        return True
