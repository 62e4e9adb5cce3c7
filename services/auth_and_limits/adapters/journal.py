"""Writes what memory decided to SQLite, many changes per transaction and one fsync for all of them.

Owns the group commit and who waits for it; refuses to decide anything, and to know SQL.
"""

import asyncio
import functools
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import structlog

from services.auth_and_limits.adapters.journal_file import JournalFile, Recovered, rows_of
from services.auth_and_limits.adapters.memory_records import Changes
from services.auth_and_limits.adapters.memory_state import MemoryState
from services.auth_and_limits.holds import Hold
from services.auth_and_limits.metrics import JOURNAL_BATCH_ROWS, JOURNAL_COMMIT_SECONDS
from services.runtime.errors import CallAlreadyAdmittedError, StoreUnavailableError

SLOW_S = 0.25  # slow counts as down
_PACE_S = 0.003  # between two transactions under load: what is decided meanwhile shares the second
_LINGER_S = 0.02  # how long changes that nobody's answer waits for may wait for company
_RETRY_S = 0.25
_CLOSE_S = 5.0

_log = structlog.get_logger()


@dataclass(slots=True)
class _Batch:
    """One transaction, and who waits for it; `fresh_waiters` stand in the order of `changes.fresh`."""

    changes: Changes
    fresh_waiters: list[asyncio.Future[None]]
    waiters: list[asyncio.Future[None]]
    started_s: float
    writing: Future[frozenset[int]] | None = None
    is_given_up: bool = False


class HoldJournal:
    """Takes the changes of a MemoryState and says when they are durable. Lives on one loop; SQL runs on a thread."""

    def __init__(
        self,
        open_file: Callable[[], JournalFile],
        state: MemoryState,
        *,
        now_us: Callable[[], int],
        unix_offset_us: int,
        slow_s: float = SLOW_S,
    ) -> None:
        self._open_file = open_file
        self._state = state
        self._now_us = now_us
        self._unix_offset_us = unix_offset_us  # unix time less the monotonic one
        self._slow_s = slow_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hold-journal")
        self._fresh_waiters: list[asyncio.Future[None]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._in_flight: _Batch | None = None
        self._writing: asyncio.Future[frozenset[int]] | None = None
        self._due: asyncio.Handle | None = None  # the next transaction; may be moved forward
        self._due_at_s = 0.0  # loop time
        self._handed_over_at_s = 0.0  # loop time
        self._is_closed = False

    async def open(self) -> Recovered:
        """Opens or makes the file and reads it. Raises JournalError."""
        self._loop = asyncio.get_running_loop()
        self._file = await self._loop.run_in_executor(self._thread, self._open_file)
        return await self._loop.run_in_executor(self._thread, self._file.recover)

    async def close(self) -> None:
        """Writes what is left and lets go of the file."""
        deadline = self._loop.time() + _CLOSE_S
        while (self._writing is not None or self._state.changes) and self._loop.time() < deadline:
            self._hand_over()
            writing = self._writing
            assert writing is not None
            await asyncio.wait([writing], timeout=_CLOSE_S)
            if writing.done() and writing.exception() is not None:
                break
        self._is_closed = True
        await self._loop.run_in_executor(self._thread, self._file.close)
        self._thread.shutdown(wait=False)

    @property
    def is_stuck(self) -> bool:
        """A write is out that takes too long; until it ends nothing can be kept."""
        return self._in_flight is not None and self._in_flight.is_given_up

    def check(self) -> None:
        """Refuses a decision that could not be kept, before it is made."""
        if self.is_stuck:
            raise _unavailable()

    def kept(self) -> asyncio.Future[None]:
        """Done when the hold noted last as fresh is durable. Fails with CallAlreadyAdmittedError: its id is used."""
        waiter = self._loop.create_future()
        self._fresh_waiters.append(waiter)
        self._schedule(_PACE_S)
        return waiter

    def written(self, *, is_urgent: bool = True) -> asyncio.Future[None]:
        """Done when everything noted so far is durable. What is not urgent may wait for something that is."""
        self.check()
        waiter = self._loop.create_future()
        if self._state.changes:
            self._waiters.append(waiter)
            self._schedule(_PACE_S if is_urgent else _LINGER_S)
        elif self._in_flight is not None:
            self._in_flight.waiters.append(waiter)
        else:
            waiter.set_result(None)
        return waiter

    async def find(self, call_ids: Sequence[str]) -> dict[str, Hold]:
        """The holds that are on file, closed ones included."""
        await self.written()
        try:
            async with asyncio.timeout(self._slow_s):
                return await self._loop.run_in_executor(self._thread, self._file.find, call_ids)
        except (sqlite3.Error, TimeoutError) as error:
            raise _unavailable() from error

    async def forget(self, before_id: str, keyed_before_id: str) -> None:
        """Drops closed holds with lower ids; those with an idempotency key below their own bound."""
        forget = functools.partial(self._file.forget, before_id, keyed_before_id)
        try:
            while await self._loop.run_in_executor(self._thread, forget):
                pass
        except sqlite3.Error as error:
            _log.warning("journal.forget_failed", exc_info=error)

    def _schedule(self, pace_s: float) -> None:
        """Hands over so long after the last time, or at the end of this turn of the loop if that is past."""
        if self._in_flight is not None:
            return
        at_s = self._handed_over_at_s + pace_s
        if self._due is not None:
            if self._due_at_s <= at_s:
                return
            self._due.cancel()
        self._due, self._due_at_s = self._loop.call_at(at_s, self._hand_over), at_s

    def _hand_over(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._in_flight is not None or self._is_closed:
            return
        self._handed_over_at_s = self._loop.time()
        batch = _Batch(self._state.take_changes(), self._fresh_waiters, self._waiters, time.perf_counter())
        self._fresh_waiters, self._waiters = [], []
        self._in_flight = batch
        timer = self._loop.call_later(self._slow_s, self._give_up, batch)
        rows = rows_of(batch.changes, self._unix_offset_us)
        batch.writing = self._thread.submit(self._file.write, rows)
        self._writing = asyncio.wrap_future(batch.writing)
        self._writing.add_done_callback(functools.partial(self._ended, batch, timer))

    def _ended(self, batch: _Batch, timer: asyncio.TimerHandle, writing: asyncio.Future[frozenset[int]]) -> None:
        timer.cancel()
        self._in_flight = self._writing = None
        JOURNAL_COMMIT_SECONDS.observe(time.perf_counter() - batch.started_s)
        JOURNAL_BATCH_ROWS.observe(len(batch.changes.fresh) + len(batch.changes.changed))
        error = writing.exception()
        if error is not None:
            _log.error("journal.write_failed", exc_info=error)
            if not batch.is_given_up:
                self._fail(batch.changes.fresh, batch.fresh_waiters + batch.waiters)
            self._state.put_back(batch.changes)
            self._take_out(batch)
            self._loop.call_later(_RETRY_S, self._schedule, _PACE_S)
            return
        if not batch.is_given_up:
            self._succeed(batch, writing.result())
        if self._state.changes or self._waiters:
            self._schedule(_PACE_S if self._fresh_waiters else _LINGER_S)

    def _succeed(self, batch: _Batch, duplicates: frozenset[int]) -> None:
        if duplicates:
            for index in duplicates:
                self._state.undo(batch.changes.fresh[index], self._now_us())
                _fail_waiter(batch.fresh_waiters[index], CallAlreadyAdmittedError("the call id was used before"))
        for waiter in batch.fresh_waiters:
            if not waiter.done():
                waiter.set_result(None)
        for waiter in batch.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _give_up(self, batch: _Batch) -> None:
        """Slow counts as down: nobody waits longer, and what may still be written is taken out again afterwards."""
        if batch.writing is not None and batch.writing.done():
            return  # it was this loop that was slow
        _log.error("journal.slow")
        batch.is_given_up = True
        changes = self._state.changes
        self._fail(batch.changes.fresh, batch.fresh_waiters + batch.waiters)
        self._fail(changes.fresh, self._fresh_waiters + self._waiters)
        changes.fresh.clear()
        self._take_out(batch)
        self._fresh_waiters, self._waiters = [], []

    def _take_out(self, batch: _Batch) -> None:
        """What may be on file although nobody was told so."""
        self._state.changes.removed.extend(batch.changes.fresh)

    def _fail(self, fresh: Sequence[Hold], waiters: Sequence[asyncio.Future[None]]) -> None:
        for hold in fresh:
            self._state.undo(hold, self._now_us())
        for waiter in waiters:
            _fail_waiter(waiter, _unavailable())


def _fail_waiter(waiter: asyncio.Future[None], error: Exception) -> None:
    if not waiter.done():
        waiter.set_exception(error)


def _unavailable() -> StoreUnavailableError:
    return StoreUnavailableError("the hold journal cannot be written", retry_in=timedelta(seconds=1))
