"""Asks metering how calls ended whose runner does not renew them any more.

Owns the rhythm of asking; refuses to guess: without an answer a hold is kept.
"""

import asyncio

import structlog

from services.auth_and_limits.metrics import EXPIRED_COUNT_OF
from services.auth_and_limits.ports import HoldStore, OutcomeSource
from services.runtime.errors import GatewayError

BATCH = 1000
_PAUSE_S = 1.0

_log = structlog.get_logger()


class Reaper:
    """Settles expired holds, a batch at a time."""

    def __init__(self, holds: HoldStore, outcomes: OutcomeSource) -> None:
        self._holds = holds
        self._outcomes = outcomes

    async def run(self) -> None:
        """Goes on for ever."""
        while True:
            await asyncio.sleep(_PAUSE_S)
            await self.turn()

    async def turn(self) -> int:
        """One look: returns how many holds were expired."""
        try:
            call_ids = await self._holds.expired(BATCH)
        except GatewayError as error:
            _log.warning("holds.not_looked_at", why=error.message)
            return 0
        if not call_ids:
            return 0
        try:
            outcomes = await self._outcomes.resolve(call_ids)
            await self._holds.settle(outcomes)
        except GatewayError as error:
            EXPIRED_COUNT_OF["kept"].inc(len(call_ids))
            _log.warning("holds.kept", count=len(call_ids), why=error.message)
            return len(call_ids)
        posted = sum(outcome.is_posted for outcome in outcomes.values())
        EXPIRED_COUNT_OF["posted"].inc(posted)
        EXPIRED_COUNT_OF["void"].inc(len(outcomes) - posted)
        EXPIRED_COUNT_OF["kept"].inc(len(call_ids) - len(outcomes))
        _log.info("holds.settled", posted=posted, void=len(outcomes) - posted, kept=len(call_ids) - len(outcomes))
        return len(call_ids)
