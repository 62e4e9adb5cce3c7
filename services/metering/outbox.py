"""Delivers balance changes from the outbox to auth-and-limits, in batches, until each is acknowledged.

Owns coalescing, order and patience; refuses to decide what a change says.
"""

import asyncio
import bisect
import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from services.metering import metrics
from services.metering.ports import BalanceListener, BalanceNotice, LedgerStore
from services.runtime.errors import GatewayError

_log = structlog.get_logger()
_BATCH_ROWS = 1_000
_MAX_CALL_IDS = 20_000  # in one message: about 800 KB
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0


class _Waiter(NamedTuple):
    mark: int
    future: asyncio.Future[None]


class Outbox:
    """Sends rows in the order of their commits, so everything up to `acknowledged` is known to auth-and-limits.

    A row is deleted after its acknowledgement. When the process dies in between it is sent again: changes are absolute.
    """

    def __init__(self, store: LedgerStore, listener: BalanceListener, *, linger_s: float = 0.025) -> None:
        self._store = store
        self._listener = listener
        self._linger_s = linger_s
        self._acknowledged = 0
        self._changed = asyncio.Event()
        self._changed.set()  # whatever an earlier life of this process left
        self._waiters: list[_Waiter] = []  # by mark
        self._is_awaited = asyncio.Event()
        store.on_commit(self._changed.set)

    async def run(self) -> None:
        """Delivers for ever. Neither a store nor a listener that fails ends it."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
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
        if mark <= self._acknowledged:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(mark, future)
        bisect.insort(self._waiters, waiter, key=lambda each: each.mark)
        self._is_awaited.set()
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
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
        notices = await self._store.notices(self._acknowledged, _BATCH_ROWS)
        metrics.OUTBOX_BACKLOG.set(len(notices))
        notices = _within(notices, _MAX_CALL_IDS)
        if not notices:
            return False
        latest = coalesce(notices)
        await self._listener.balances_changed(latest)
        self._acknowledged = last = notices[-1].row_id
        seqs = {notice.account_id: notice.seq for notice in latest}
        self._store.commit_soon(lambda transaction: transaction.forget_notices(last, seqs))
        while self._waiters and self._waiters[0].mark <= last:
            future = self._waiters.pop(0).future
            if not future.done():
                future.set_result(None)
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
