"""One writer thread that runs every queued job in one transaction and answers all of them with one wake-up of the loop.

Owns the grouping, the isolation of a failing job and the time limit; refuses to know tables.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from services.metering import metrics
from services.metering.ports import Footprint
from services.runtime.errors import StoreUnavailableError

T = TypeVar("T")
Tx = TypeVar("Tx")
Begun = TypeVar("Begun", covariant=True)
_RETRY_IN = timedelta(seconds=1)
_LAZY_WAIT_S = 1.0
_MAX_GROUP_CALLS = 4_000  # a transaction ends in good time, also when every job is a full batch
_MAX_TRIES = 4


class Database(Protocol[Begun]):
    """What the writer thread drives; used on that thread only."""

    def begin(self, footprints: Sequence[Footprint | None]) -> Begun:
        """Starts a transaction for jobs that touch this, one footprint per job."""

    def commit(self) -> None:
        """Makes it durable. If it raises, it may or may not have landed."""

    def rollback(self) -> None:
        """Undoes it; must not raise."""

    def close(self) -> None:
        """Closes the connection."""


@dataclass(slots=True)
class _Job(Generic[Tx]):
    run: Callable[[Tx], Any]
    future: asyncio.Future[Any] | None  # None: nobody waits
    footprint: Footprint | None = None


class _Answer:
    __slots__ = ("error", "future", "value")

    def __init__(self, future: asyncio.Future[Any] | None, value: Any, error: BaseException | None) -> None:
        self.future = future
        self.value = value
        self.error = error


class GroupCommitter(Generic[Tx]):
    """Commits jobs in groups: while one group is made durable, the next one gathers."""

    def __init__(
        self,
        database: Database[Tx],
        is_store_failure: Callable[[BaseException], bool],
        *,
        timeout_s: float,
        is_conflict: Callable[[BaseException], bool] = lambda _: False,
        max_group: int = 256,
        max_queue: int = 4096,
    ) -> None:
        """`is_conflict`: another replica was in the way, and running the job again from its start is right."""
        self._database = database
        self._is_store_failure = is_store_failure
        self._is_conflict = is_conflict
        self._timeout_s = timeout_s
        self._max_group = max_group
        self._max_queue = max_queue
        self._queue: queue.SimpleQueue[_Job[Tx] | None] = queue.SimpleQueue()
        self._lazy: queue.SimpleQueue[_Job[Tx]] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._committed: list[Callable[[], None]] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._write, name="ledger-writer", daemon=True)
        self._thread.start()

    def on_commit(self, notify: Callable[[], None]) -> None:
        """Calls `notify`, on the loop, after every group that somebody waited for."""
        self._committed.append(notify)

    async def commit(
        self, run: Callable[[Tx], T], timeout_s: float | None = None, footprint: Footprint | None = None
    ) -> T:
        """Runs a job and returns its value once it is durable. Raises the job's own error, or StoreUnavailableError.

        After the time limit the job may still land.
        """
        if self._is_closed or self._queue.qsize() >= self._max_queue:
            raise StoreUnavailableError("the ledger cannot take more work now", retry_in=_RETRY_IN)
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Job(run, future, footprint))
        try:
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                return await future
        except TimeoutError as error:
            raise StoreUnavailableError("the ledger did not answer in time", retry_in=_RETRY_IN) from error

    def commit_soon(self, run: Callable[[Tx], object]) -> None:
        """Runs a job with the next group, at the latest after a second. Its failure is only counted."""
        self._lazy.put(_Job(run, None))

    async def close(self) -> None:
        """Finishes what is queued, then ends the thread and closes the database."""
        self._is_closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _write(self) -> None:
        is_running = True
        while is_running:
            jobs, is_running = self._gather()
            if jobs:
                self._answer(self._run_group(jobs))
        self._database.close()

    def _gather(self) -> tuple[list[_Job[Tx]], bool]:
        """Waits for work, then takes all there is. False: the last group."""
        is_running = True
        jobs: list[_Job[Tx]] = []
        calls = 0
        try:
            first = self._queue.get(timeout=_LAZY_WAIT_S)
            while True:
                if first is None:
                    is_running = False
                else:
                    jobs.append(first)
                    calls += 0 if first.footprint is None else len(first.footprint.call_ids)
                if len(jobs) >= self._max_group or calls >= _MAX_GROUP_CALLS:
                    break
                first = self._queue.get_nowait()
        except queue.Empty:
            pass
        for _ in range(self._lazy.qsize()):
            jobs.append(self._lazy.get_nowait())
        return jobs, is_running

    def _run_group(self, jobs: Sequence[_Job[Tx]]) -> list[_Answer]:
        """One transaction for all. If a job fails for a reason of its own, each runs alone: none harms another."""
        tries = 1
        while True:
            try:
                return self._run_together(jobs)
            except Exception as error:  # noqa: BLE001 - the thread's boundary: a job's error belongs to its caller
                failure = error
            if self._is_store_failure(failure):
                metrics.STORE_FAILURES.inc()
                return [_Answer(job.future, None, _unavailable(failure)) for job in jobs]
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._run_group([job])]
            if not self._is_conflict(failure):
                return [_Answer(jobs[0].future, None, failure)]
            if tries == _MAX_TRIES:
                return [_Answer(jobs[0].future, None, _unavailable(failure))]
            tries += 1

    def _run_together(self, jobs: Sequence[_Job[Tx]]) -> list[_Answer]:
        started = time.perf_counter()
        try:
            transaction = self._database.begin([job.footprint for job in jobs])
            values = [job.run(transaction) for job in jobs]
            self._database.commit()
        except BaseException:
            self._database.rollback()
            raise
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - started)
        return [_Answer(job.future, value, None) for job, value in zip(jobs, values, strict=True)]

    def _answer(self, answers: list[_Answer]) -> None:
        if any(answer.future is not None for answer in answers):
            self._loop.call_soon_threadsafe(self._complete, answers)

    def _complete(self, answers: list[_Answer]) -> None:
        for answer in answers:
            future = answer.future
            if future is None or future.done():
                continue
            if answer.error is None:
                future.set_result(answer.value)
            else:
                future.set_exception(answer.error)
        for notify in self._committed:
            notify()


def _unavailable(cause: Exception) -> StoreUnavailableError:
    """One for each waiter: a raised exception gathers the traceback of whoever raised it."""
    error = StoreUnavailableError("the ledger cannot be written now", retry_in=_RETRY_IN)
    error.__cause__ = cause
    return error
