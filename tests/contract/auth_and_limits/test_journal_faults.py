"""A journal that cannot be written: nothing is admitted, nothing stays taken, and it mends itself.

Owns the faults of the embedded journal; refuses the store's ordinary promises.
"""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from services.auth_and_limits.adapters.journal_file import JournalError, JournalFile, Rows
from services.auth_and_limits.holds import HoldState
from services.auth_and_limits.records import Admitted, Finished
from services.runtime.errors import CallAlreadyAdmittedError, StoreUnavailableError
from services.runtime.ids import new_id
from tests.contract.auth_and_limits.hold_store import ACCOUNT_ID, EmbeddedBench, ask, throttled


class SlowFile(JournalFile):
    """A disk that answers when it is let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.let_go = threading.Event()
        self.let_go.set()

    def write(self, rows: Rows) -> frozenset[int]:
        self.let_go.wait(timeout=10)
        return super().write(rows)


class FullFile(JournalFile):
    """A disk without room, as long as it says so."""

    is_full = False

    def write(self, rows: Rows) -> frozenset[int]:
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        self._connection.execute(f"PRAGMA max_page_count = {pages if self.is_full else 1_000_000}")
        return super().write(rows)


class FaultyBench(EmbeddedBench):
    """A bench whose file a test can reach."""

    file: JournalFile

    def on(self, make: Callable[[Path], JournalFile]) -> None:
        def opened(path: Path) -> JournalFile:
            self.file = make(path)
            return self.file

        self.open_file = opened


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[tuple[FaultyBench, threading.Event]]:
    it = FaultyBench(tmp_path / "auth")
    it.slow_s = 0.25
    it.on(SlowFile)
    await it.open()
    await it.fund(1_000)
    assert isinstance(it.file, SlowFile)
    yield it, it.file.let_go
    it.file.let_go.set()
    await it.holds.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def fails(work: Awaitable[object]) -> StoreUnavailableError:
    with pytest.raises(StoreUnavailableError) as raised:
        await work
    return raised.value


async def test_a_slow_disk_counts_as_down_after_250_ms_and_nothing_stays_taken(
    slow: tuple[FaultyBench, threading.Event],
) -> None:
    bench, let_go = slow
    before = await bench.holds.limits(throttled(bench.account)), await bench.held()
    let_go.clear()
    loop = asyncio.get_running_loop()
    started = loop.time()

    errors = await asyncio.gather(*(fails(bench.admit(ask(10, 10))) for _ in range(20)))

    assert 0.2 < loop.time() - started < 2
    assert {error.retry_in for error in errors} == {timedelta(seconds=1)}
    assert (await bench.holds.limits(throttled(bench.account)), await bench.held()) == before
    assert not bench.holds.is_healthy


async def test_while_a_write_hangs_nobody_waits_for_another(slow: tuple[FaultyBench, threading.Event]) -> None:
    bench, let_go = slow
    let_go.clear()
    await fails(bench.admit(ask()))
    started = asyncio.get_running_loop().time()

    await fails(bench.admit(ask()))
    await fails(bench.holds.finish([Finished(new_id(), new_id(), 0, 0)]))
    await fails(bench.holds.renew("runner/1", []))

    assert asyncio.get_running_loop().time() - started < 0.1


async def test_what_was_written_too_late_is_taken_out_again(slow: tuple[FaultyBench, threading.Event]) -> None:
    bench, let_go = slow
    asked = ask(10)
    let_go.clear()
    await fails(bench.admit(asked))
    let_go.set()
    await until(lambda: bench.holds.is_healthy)
    await bench.fund(999)

    await bench.crash()

    assert await bench.held() == (0, 0)
    assert await bench.admitted(asked)


async def test_a_resent_admit_succeeds_once_the_disk_is_back(slow: tuple[FaultyBench, threading.Event]) -> None:
    bench, let_go = slow
    asked = ask(10)
    let_go.clear()
    await fails(bench.admit(asked))
    let_go.set()
    await until(lambda: bench.holds.is_healthy)

    hold = await bench.admitted(asked)

    assert hold.state is HoldState.OPEN
    assert await bench.held() == (10, 1)
    await bench.crash()
    assert await bench.held() == (10, 1)


async def test_a_used_id_stays_used_when_a_late_write_is_taken_out(slow: tuple[FaultyBench, threading.Event]) -> None:
    bench, let_go = slow
    asked = ask(10)
    await bench.admitted(asked)
    await bench.holds.void(asked.call_id, asked.run_id, ACCOUNT_ID)
    let_go.clear()
    await fails(bench.admit(asked))
    let_go.set()
    await until(lambda: bench.holds.is_healthy)
    await bench.fund(1_000)

    with pytest.raises(CallAlreadyAdmittedError):
        await bench.admit(asked)


async def test_changes_that_could_not_be_written_are_written_later(slow: tuple[FaultyBench, threading.Event]) -> None:
    bench, let_go = slow
    asked = ask(10)
    await bench.admitted(asked)
    let_go.clear()
    await fails(bench.holds.finish([Finished(asked.call_id, asked.run_id, 4, 0, ACCOUNT_ID)]))
    let_go.set()
    await until(lambda: bench.holds.is_healthy)

    await bench.crash()

    assert await bench.held() == (4, 0)


async def test_an_extension_that_could_not_be_kept_is_taken_back(slow: tuple[FaultyBench, threading.Event]) -> None:
    bench, let_go = slow
    asked = ask(10)
    await bench.admitted(asked)
    let_go.clear()
    await fails(bench.holds.extend(asked.call_id, asked.run_id, 500, ACCOUNT_ID))
    let_go.set()

    assert await bench.held() == (10, 1)


async def test_a_repeat_of_an_admission_that_is_on_its_way_fails_with_it(
    slow: tuple[FaultyBench, threading.Event],
) -> None:
    bench, let_go = slow
    asked = ask(10)
    let_go.clear()

    await asyncio.gather(fails(bench.admit(asked)), fails(bench.admit(asked)))

    assert await bench.held() == (0, 0)


async def test_a_caller_that_leaves_while_its_hold_is_written_leaves_an_ordinary_hold(
    slow: tuple[FaultyBench, threading.Event],
) -> None:
    bench, let_go = slow
    asked = ask(10)
    let_go.clear()
    leaving = asyncio.ensure_future(bench.admit(asked))
    await asyncio.sleep(0)
    leaving.cancel()
    let_go.set()
    await asyncio.wait([leaving])

    assert isinstance(await bench.admit(asked), Admitted)
    await bench.holds.void(asked.call_id, asked.run_id, ACCOUNT_ID)
    assert await bench.held() == (0, 0)


async def test_a_locked_file_refuses_and_recovers(embedded: EmbeddedBench) -> None:
    bench = embedded
    await bench.fund(100)
    other = sqlite3.connect(bench.folder / "holds.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    await fails(bench.admit(ask(10)))
    assert await bench.held() == (0, 0)
    other.execute("ROLLBACK")
    other.close()

    await bench.admitted(ask(10))


async def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    bench = FaultyBench(tmp_path / "auth")
    bench.on(FullFile)
    await bench.open()
    await bench.fund(1_000_000)
    FullFile.is_full = True
    try:
        for _ in range(200):  # until the pages that are there are used up
            try:
                await bench.admit(ask(10))
            except StoreUnavailableError:
                break
        else:
            pytest.fail("the disk was never full")
        held = await bench.held()
        await fails(bench.admit(ask(10)))
        assert await bench.held() == held
    finally:
        FullFile.is_full = False

    await bench.admitted(ask(10))

    await bench.crash()
    assert await bench.held() == (held[0] + 10, held[1] + 1)
    await bench.holds.close()


async def test_two_processes_cannot_share_a_journal(embedded: EmbeddedBench) -> None:
    bench = embedded
    other = EmbeddedBench(bench.folder)

    with pytest.raises(JournalError, match="another process"):
        await other.open()


async def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "holds.sqlite3").write_bytes(b"no database " * 1000)

    with pytest.raises(JournalError, match=r"holds\.sqlite3"):
        await EmbeddedBench(tmp_path).open()


async def test_an_unknown_schema_is_refused(tmp_path: Path) -> None:
    bench = EmbeddedBench(tmp_path)
    with sqlite3.connect(tmp_path / "holds.sqlite3") as file:
        file.execute("PRAGMA user_version = 99")
    file.close()

    with pytest.raises(JournalError, match="schema version 99"):
        await bench.open()
