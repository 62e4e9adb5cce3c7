"""The spool keeps what it acknowledged: over a restart, a torn write, damage, a dead neighbour."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mws.admission.v1.admission_service_pb2 import Hold
from mws.metering.v1.metering_service_pb2 import UsageEvent

from services.routing_and_inference.adapters.spool import Spool, SpooledUsage, SpoolFullError

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
ROOT = Path(__file__).parents[3]

WRITER = """
import asyncio, sys
from pathlib import Path
from mws.admission.v1.admission_service_pb2 import Hold
from mws.metering.v1.metering_service_pb2 import UsageEvent
from services.routing_and_inference.adapters.spool import Spool, SpooledUsage

async def write():
    spool = Spool.open(Path(sys.argv[1]), "victim", max_bytes=1 << 24)
    for number in range(10**9):
        ids = [f"{number}-{i}" for i in "ab"]
        await spool.append([SpooledUsage(UsageEvent(call_id=one), Hold(call_id=one)) for one in ids])
        print(number, flush=True)

asyncio.run(write())
"""


def usage(call_id: str) -> SpooledUsage:
    return SpooledUsage(UsageEvent(call_id=call_id, profile="dragon"), Hold(call_id=call_id, run_id="r"))


def opened(path: Path, name: str = "inference-0", max_bytes: int = 16 * MIB) -> Spool:
    return Spool.open(path, name, max_bytes=max_bytes)


def ids(spool: Spool) -> list[str]:
    return [record.event.call_id for record in spool.oldest(10**6)]


def abandon(spool: Spool) -> None:
    """What a crash does: the lock goes, the files stay."""
    spool._thread.shutdown()
    spool._abandon_active()
    spool._lock.close()


async def test_records_are_there_after_a_restart_in_their_order(tmp_path: Path) -> None:
    first = opened(tmp_path)
    await first.append([usage("a"), usage("b")])
    await first.append([usage("c")])
    await first.remove(["b"])
    abandon(first)

    again = opened(tmp_path)
    # A removed record may come back after a crash: sending it twice posts it once.
    assert ids(again) == ["a", "b", "c"]
    assert again.oldest(1)[0] == usage("a")
    again.close()


async def test_a_spool_that_was_emptied_leaves_nothing(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    await spool.append([usage("a")])
    await spool.remove(["a", "unknown"])
    assert (len(spool), spool.size_bytes) == (0, 0)
    await spool.append([usage("b")])
    await spool.remove(["b"])
    spool.close()

    assert list(tmp_path.iterdir()) == []


async def test_a_segment_is_deleted_with_its_last_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.routing_and_inference.adapters.spool._SEGMENT_BYTES", 1)
    spool = opened(tmp_path)
    for call_id in "abc":
        await spool.append([usage(call_id)])
    await spool.remove(["b"])

    assert len(list(tmp_path.glob("*/*.log"))) == 2
    spool.close()


@pytest.mark.parametrize("lost_bytes", [1, 10, 30])
async def test_a_torn_tail_is_ignored(tmp_path: Path, lost_bytes: int) -> None:
    spool = opened(tmp_path)
    await spool.append([usage("a"), usage("b")])
    abandon(spool)
    segment = next(tmp_path.glob("*/*.log"))
    os.truncate(segment, segment.stat().st_size - lost_bytes)

    again = opened(tmp_path)
    assert ids(again) == ["a"]
    assert list(tmp_path.glob("*/*.damaged")) == []
    again.close()


async def test_damage_is_kept_for_people(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    await spool.append([usage("a"), usage("b"), usage("c")])
    abandon(spool)
    segment = next(tmp_path.glob("*/*.log"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)

    again = opened(tmp_path)
    assert ids(again) == ["a"]
    await again.remove(["a"])
    again.close()
    assert len(list(tmp_path.glob("*/*.damaged"))) == 1


async def test_a_living_neighbour_is_left_alone_and_a_dead_one_adopted(tmp_path: Path) -> None:
    alive, dead, mine = opened(tmp_path, "alive"), opened(tmp_path, "dead"), opened(tmp_path, "mine")
    await alive.append([usage("x")])
    await dead.append([usage("y"), usage("z")])
    abandon(dead)

    assert [record.event.call_id for record in await mine.adopt_orphans()] == ["y", "z"]
    assert (ids(mine), ids(alive)) == (["y", "z"], ["x"])
    assert not (tmp_path / "dead").exists()
    assert await mine.adopt_orphans() == []
    abandon(mine)

    again = opened(tmp_path, "mine")
    assert ids(again) == ["y", "z"]  # they are ours durably
    again.close()
    alive.close()


async def test_two_processes_of_one_name_do_not_share(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    await first.append([usage("a")])

    assert ids(second) == []
    first.close()
    second.close()


async def test_a_full_spool_says_so_before_and_when_it_matters(tmp_path: Path) -> None:
    spool = opened(tmp_path, max_bytes=MIB + 200)
    assert spool.has_room()
    await spool.append([usage("a" * 300)])
    assert not spool.has_room()
    with pytest.raises(SpoolFullError):
        await spool.append([usage("b" * 2 * MIB)])
    assert ids(spool) == ["a" * 300]
    await spool.remove(["a" * 300])
    assert spool.has_room()
    spool.close()


async def test_a_disk_that_fails_is_noticed_and_may_recover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(tmp_path)
    await spool.append([usage("a")])

    def fail(_: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(SpoolFullError):
        await spool.append([usage("b")])
    monkeypatch.undo()
    assert spool.has_room()
    await spool.append([usage("c")])
    abandon(spool)

    # The write that failed may be there or not; what was acknowledged is.
    again = opened(tmp_path)
    assert {"a", "c"} <= set(ids(again))
    again.close()


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}  # noqa: TID251 - a child needs its own
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as writer:
        assert writer.stdout is not None
        acknowledged = -1
        while acknowledged < 50:
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in writer.stdout.read().split())])

    spool = opened(tmp_path, "victim")
    expected = {f"{number}-{i}" for number in range(acknowledged + 1) for i in "ab"}
    assert expected <= set(ids(spool))
    spool.close()
