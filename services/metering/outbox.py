"""Delivers balance changes from the outbox to auth-and-limits, in batches, until each is acknowledged.

Owns coalescing, order and patience; refuses to decide what a change says.
"""

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from services.metering import metrics
from services.metering.ports import BalanceListener, BalanceNotice, LedgerStore
from services.runtime.errors import GatewayError, StoreUnavailableError

_log = structlog.get_logger()
_BATCH_ROWS = 1_000
_MAX_CALL_IDS = 20_000  # in one message: about 800 KB
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_LOOK_AGAIN_S = 2.0
_ASK_AGAIN_S = 0.1


class Outbox:
    """Sends the rows that this process claims, oldest first, as absolute values: any order and repetition is right.

    A row is deleted after its acknowledgement. When the process dies in between it is sent again, by whoever claims it.
    """

    def __init__(self, store: LedgerStore, listener: BalanceListener, *, linger_s: float = 0.025) -> None:
        self._store = store
        self._listener = listener
        self._linger_s = linger_s
        self._changed = asyncio.Event()
        self._changed.set()  # whatever an earlier life of this process left
        self._waiters = 0
        self._is_awaited = asyncio.Event()
        self._delivery = asyncio.Event()  # the next one; replaced by each
        store.on_commit(self._changed.set)

    async def run(self) -> None:
        """Delivers for ever. Neither a store nor a listener that fails ends it."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            with contextlib.suppress(TimeoutError):  # a replica that died may have left rows of which nobody told us
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await self._changed.wait()
            self._changed.clear()
            try:
                while await self._deliver_batch():
                    backoff_s = _FIRST_BACKOFF_S
            except GatewayError as error:
                _log.warning("outbox.delayed", reason=type(error).__name__, retry_in_s=backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
                self._changed.set()
            else:
                backoff_s = _FIRST_BACKOFF_S
                await self._linger()

    async def acknowledged(self, mark: int, *, timeout_s: float) -> bool:
        """Whether auth-and-limits knows of everything up to a row, waiting this long for it."""
        self._waiters += 1
        self._is_awaited.set()
        try:
            async with asyncio.timeout(timeout_s):
                delivery = self._delivery
                while not await self._store.is_delivered(mark):
                    with contextlib.suppress(TimeoutError):  # another replica may deliver it
                        async with asyncio.timeout(_ASK_AGAIN_S):
                            await delivery.wait()
                    delivery = self._delivery
        except (TimeoutError, StoreUnavailableError):
            return False
        finally:
            self._waiters -= 1
        return True

    async def _linger(self) -> None:
        """Lets the next batch gather, unless somebody waits for it."""
        if not self._waiters:
            self._is_awaited.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._linger_s):
                    await self._is_awaited.wait()

    async def _deliver_batch(self) -> bool:
        """Sends the next rows. False when there are none."""
        async with self._store.claim_notices(_BATCH_ROWS) as claim:
            metrics.OUTBOX_BACKLOG.set(len(claim.notices))
            notices = _within(claim.notices, _MAX_CALL_IDS)
            if not notices:
                return False
            latest = coalesce(notices)
            await self._listener.balances_changed(latest)
            await claim.delivered(notices, {notice.account_id: notice.seq for notice in latest})
        delivery, self._delivery = self._delivery, asyncio.Event()
        delivery.set()
        return True


def _within(notices: Sequence[BalanceNotice], max_call_ids: int) -> list[BalanceNotice]:
    """The first rows that together close at most so many calls; at least one row."""
    count = 0
    for index, notice in enumerate(notices):
        count += len(notice.closed_call_ids)
        if index > 0 and count > max_call_ids:
            return list(notices[:index])
    return list(notices)


def coalesce(notices: Sequence[BalanceNotice]) -> list[BalanceNotice]:
    """One change per account: the values of its highest seq, the closed calls of all of them."""
    newest: dict[str, BalanceNotice] = {}
    closed: dict[str, dict[str, None]] = {}
    for notice in notices:
        known = newest.get(notice.account_id)
        if known is None or notice.seq > known.seq:
            newest[notice.account_id] = notice
        closed.setdefault(notice.account_id, {}).update(dict.fromkeys(notice.closed_call_ids))
    return [
        notice._replace(closed_call_ids=tuple(closed[account_id])) if len(closed[account_id]) else notice
        for account_id, notice in newest.items()
    ]
