"""The durable place for usage that metering has not acknowledged: checksummed records in a locked folder per runner.

Owns the files; refuses to send anything. A record survives `kill -9` and power loss once `append` has returned.

Layout: `<spool>/<runner>/lock` (flock while the runner lives) and numbered segments. A record is a header (magic,
length of the event, length of the hold, CRC-32 of both) and the two messages. A torn tail is what a crash leaves and is
ignored; bytes that are damaged otherwise are kept aside as `<segment>.damaged` for people.
"""

import asyncio
import fcntl
import itertools
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, TypeVar, TypeVarTuple

import structlog
from google.protobuf.message import DecodeError
from mws.admission.v1.admission_service_pb2 import Hold
from mws.metering.v1.metering_service_pb2 import UsageEvent

log = structlog.get_logger()

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

_HEADER = struct.Struct(">4sIII")
_MAGIC = b"MWS1"
_LOCK = "lock"
_SEGMENT_BYTES = 8 * 1024 * 1024
_LEAST_FREE_BYTES = 16 * 1024 * 1024  # of the file system: below it, the spool counts as full
_HEADROOM_BYTES = 1024 * 1024  # for the calls that run already


@dataclass(frozen=True, slots=True)
class SpooledUsage:
    """A usage event, and the hold that is renewed until the event is on record."""

    event: UsageEvent
    hold: Hold


class SpoolFullError(Exception):
    """Nothing can be written: no room, or the disk fails."""


@dataclass(slots=True, eq=False)
class _Segment:
    path: Path
    size_bytes: int = 0
    pending: int = 0  # records that were not removed yet


class Spool:
    """Open one with `Spool.open`. Methods that touch the disk run in one thread, in order."""

    def __init__(self, directory: Path, lock: BinaryIO, *, max_bytes: int) -> None:
        self._directory = directory
        self._lock = lock
        self._max_bytes = max_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._turn = asyncio.Lock()  # what is pending and what is on disk change together
        self._pending: dict[str, tuple[SpooledUsage, _Segment]] = {}
        self._active: tuple[_Segment, BinaryIO] | None = None
        self._size_bytes = 0
        self._next_number = 1
        self._has_failed = False

    @classmethod
    def open(cls, parent: Path, runner: str, *, max_bytes: int) -> Self:
        """Locks this runner's folder (a numbered one beside it if another process has it) and reads what is there."""
        for attempt in range(100):
            directory = parent / (runner if attempt == 0 else f"{runner}.{attempt}")
            directory.mkdir(parents=True, exist_ok=True)
            lock = _try_lock(directory)
            if lock is not None:
                spool = cls(directory, lock, max_bytes=max_bytes)
                spool._read_own()
                return spool
        raise SpoolFullError(f"every folder for {runner} is taken")

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self._size_bytes

    def has_room(self) -> bool:
        """Whether the usage of one more call would find a place."""
        if self._has_failed:
            self._has_failed = not self._can_write()
        if self._has_failed or self._size_bytes + _HEADROOM_BYTES > self._max_bytes:
            return False
        return shutil.disk_usage(self._directory).free >= _LEAST_FREE_BYTES

    def oldest(self, limit: int) -> list[SpooledUsage]:
        """Records in the order of their coming."""
        return [record for record, _ in itertools.islice(self._pending.values(), limit)]

    async def append(self, records: Sequence[SpooledUsage]) -> None:
        """Writes records and syncs once for all. Raises SpoolFullError; then none of them may be relied on."""
        async with self._turn:
            segment = await self._in_thread(self._write, records)
            for record in records:
                self._forget(record.event.call_id)
                self._pending[record.event.call_id] = (record, segment)
                segment.pending += 1

    async def remove(self, call_ids: Iterable[str]) -> None:
        """Drops records that are on record elsewhere; a segment without any is deleted."""
        async with self._turn:
            touched = {segment for call_id in call_ids if (segment := self._forget(call_id)) is not None}
            emptied = [segment for segment in touched if not segment.pending]
            if emptied:
                await self._in_thread(self._delete, emptied)

    async def adopt_orphans(self) -> list[SpooledUsage]:
        """Takes over what runners that are dead left beside us; returns it."""
        adopted: list[SpooledUsage] = []
        for directory, lock, records in await self._in_thread(self._read_orphans):
            try:
                if records:
                    await self.append(records)
                await self._in_thread(self._bury, directory)
                adopted += records
            except SpoolFullError:
                log.warning("spool.orphan_left", directory=directory.name)  # for whoever has room
            finally:
                lock.close()
        return adopted

    async def _in_thread(self, work: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def close(self) -> None:
        """Releases the folder; it disappears when nothing is in it."""
        self._thread.shutdown()
        if self._active is not None:
            self._active[1].close()
            self._active = None
        if not self._pending and not any(self._directory.glob("*.damaged")):
            shutil.rmtree(self._directory, ignore_errors=True)
        self._lock.close()

    # ---- in the thread ----

    def _write(self, records: Sequence[SpooledUsage]) -> _Segment:
        data = b"".join(map(_encode, records))
        if self._size_bytes + len(data) > self._max_bytes:
            raise SpoolFullError("the spool has reached its size")
        segment, file = self._open_segment()
        try:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        except OSError as error:
            self._has_failed = True
            self._abandon_active()
            raise SpoolFullError("the spool cannot be written") from error
        segment.size_bytes += len(data)
        self._size_bytes += len(data)
        return segment

    def _open_segment(self) -> tuple[_Segment, BinaryIO]:
        if self._active is not None and self._active[0].size_bytes < _SEGMENT_BYTES and self._active[0].path.exists():
            return self._active
        self._abandon_active()
        segment = _Segment(self._directory / f"{self._next_number:012d}.log")
        self._next_number += 1
        try:
            file = segment.path.open("ab")
            _sync_directory(self._directory)
        except OSError as error:
            self._has_failed = True
            raise SpoolFullError("the spool cannot be opened") from error
        self._active = (segment, file)
        return self._active

    def _abandon_active(self) -> None:
        """A write that failed may have left half a record, after which nothing could be read: go on in a new file."""
        if self._active is not None:
            self._active[1].close()
            self._active = None

    def _delete(self, segments: Iterable[_Segment]) -> None:
        for segment in segments:
            if segment.pending:
                continue
            if self._active is not None and self._active[0] is segment:
                self._abandon_active()
            segment.path.unlink(missing_ok=True)
            self._size_bytes -= segment.size_bytes
            segment.size_bytes = 0

    def _can_write(self) -> bool:
        probe = self._directory / "probe"
        try:
            probe.write_bytes(b"\0" * 4096)
            probe.unlink()
        except OSError:
            return False
        return True

    def _read_own(self) -> None:
        for path in sorted(self._directory.glob("*.log")):
            segment = _Segment(path, size_bytes=path.stat().st_size)
            self._next_number = max(self._next_number, int(path.stem) + 1)
            self._size_bytes += segment.size_bytes
            for record in _read_segment(path):
                self._forget(record.event.call_id)
                self._pending[record.event.call_id] = (record, segment)
                segment.pending += 1
            if not segment.pending:
                self._delete([segment])

    def _read_orphans(self) -> list[tuple[Path, BinaryIO, list[SpooledUsage]]]:
        found = []
        for directory in sorted(self._directory.parent.iterdir()):
            if directory == self._directory or not (directory / _LOCK).exists():
                continue
            lock = _try_lock(directory)
            if lock is None:
                continue
            records = [record for path in sorted(directory.glob("*.log")) for record in _read_segment(path)]
            found.append((directory, lock, records))
        return found

    def _bury(self, orphan: Path) -> None:
        for damaged in orphan.glob("*.damaged"):
            damaged.replace(self._directory / f"{orphan.name}-{damaged.name}")
        shutil.rmtree(orphan, ignore_errors=True)

    def _forget(self, call_id: str) -> _Segment | None:
        known = self._pending.pop(call_id, None)
        if known is None:
            return None
        known[1].pending -= 1
        return known[1]


def _try_lock(directory: Path) -> BinaryIO | None:
    lock = (directory / _LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(record: SpooledUsage) -> bytes:
    event, hold = record.event.SerializeToString(), record.hold.SerializeToString()
    return _HEADER.pack(_MAGIC, len(event), len(hold), zlib.crc32(hold, zlib.crc32(event))) + event + hold


def _read_segment(path: Path) -> list[SpooledUsage]:
    data = path.read_bytes()
    records: list[SpooledUsage] = []
    offset = 0
    while (parsed := _decode(data, offset)) is not None:
        record, offset = parsed
        records.append(record)
    if offset < len(data):
        _set_aside(path, data, offset)
    return records


def _decode(data: bytes, offset: int) -> tuple[SpooledUsage, int] | None:
    """The record at an offset and where the next begins; None at the end, and where nothing whole stands."""
    body = offset + _HEADER.size
    if body > len(data):
        return None
    magic, event_bytes, hold_bytes, checksum = _HEADER.unpack_from(data, offset)
    end = body + event_bytes + hold_bytes
    if magic != _MAGIC or end > len(data) or zlib.crc32(data[body:end]) != checksum:
        return None
    try:
        event = UsageEvent.FromString(data[body : body + event_bytes])
        return SpooledUsage(event, Hold.FromString(data[body + event_bytes : end])), end
    except DecodeError:
        return None


def _set_aside(path: Path, data: bytes, offset: int) -> None:
    """A tail shorter than its own header says is a torn write, which was never acknowledged. All else is damage."""
    rest = data[offset:]
    is_torn = len(rest) < _HEADER.size or (rest[:4] == _MAGIC and len(rest) < _HEADER.size + sum(_lengths(rest)))
    log.warning("spool.tail_ignored", segment=path.name, torn=is_torn, tail_bytes=len(rest))
    if not is_torn:
        path.with_suffix(".damaged").write_bytes(rest)


def _lengths(header: bytes) -> tuple[int, int]:
    _, event_bytes, hold_bytes, _ = _HEADER.unpack_from(header)
    return event_bytes, hold_bytes
