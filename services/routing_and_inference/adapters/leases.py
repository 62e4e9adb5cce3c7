"""The holds of this process, and their renewal: all of them in one batch every 5 s.

Owns which holds are ours; refuses to settle any. A renewal carries the whole record, so it recreates one that was lost.
"""

import asyncio
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import structlog
from mws.admission.v1 import admission_service_pb2 as pb

from services.routing_and_inference import metrics
from services.runtime.errors import GatewayError

if TYPE_CHECKING:
    from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceAsyncStub

log = structlog.get_logger()

RENEW_EVERY_S = 5.0
_TIMEOUT_S = 4.0
_BATCH = 1_000


class Leases:
    """`open` a hold that was admitted, `finish` it while its usage waits in the spool, `drop` it when it is settled."""

    def __init__(self, admission: "AdmissionServiceAsyncStub", runner: str) -> None:
        self._admission = admission
        self._runner = runner
        self._holds: dict[str, pb.Hold] = {}

    def __len__(self) -> int:
        return len(self._holds)

    def open(self, hold: pb.Hold) -> None:
        """Renews an OPEN hold, as admitted or extended, from now on."""
        self._holds[hold.call_id] = hold

    def finish(self, hold: pb.Hold) -> None:
        """Renews a hold as FINISHED: its call ended, and its usage is only here."""
        kept = pb.Hold()
        kept.CopyFrom(hold)
        kept.runner = self._runner  # an adopted one was another's
        kept.state = pb.HOLD_STATE_FINISHED
        self._holds[hold.call_id] = kept

    def drop(self, call_id: str) -> None:
        """Stops renewing."""
        self._holds.pop(call_id, None)

    async def run(self) -> None:
        """Renews for ever."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            metrics.OPEN_HOLDS.set(len(self._holds))
            await self.renew()

    async def renew(self) -> None:
        """Renews once. What fails is renewed at the next turn: a lease outlasts three of them."""
        waiting = iter(list(self._holds.values()))
        while batch := list(itertools.islice(waiting, _BATCH)):
            try:
                await self._renew(batch)
            except GatewayError as error:
                log.warning("holds.not_renewed", holds=len(batch), reason=str(error.code.name))
                return

    async def _renew(self, holds: Iterable[pb.Hold]) -> None:
        request = pb.RenewRequest(runner=self._runner)
        for hold in holds:
            request.holds.append(hold)
            request.holds[-1].ClearField("lease_until")
        response = await self._admission.Renew(request, timeout=_TIMEOUT_S)
        for call_id in response.gone_call_ids:
            self.drop(call_id)
