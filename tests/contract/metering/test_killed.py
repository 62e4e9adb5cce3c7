"""kill -9 in the middle of groups: what was acknowledged is there, and the ledger holds.

Owns the crash of the whole process; crashes at chosen steps are in test_any_order.py.
"""

import subprocess
import sys
from pathlib import Path

from services.metering import checking
from services.metering.adapters.sqlite_ledger import open_ledger
from tests.contract.metering.building import Bookkeeper, an_event

ROOT = Path(__file__).parents[3]
LINES_BEFORE_THE_KILL = (1, 200, 500)


async def test_nothing_acknowledged_is_lost_to_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    acknowledged: list[str] = []
    for count in LINES_BEFORE_THE_KILL:
        acknowledged += _record_and_kill(path, count)

    async with open_ledger(path, write_timeout_s=20.0) as store:
        report = await store.inspect(lambda snapshot: checking.check(snapshot, ""))
        books = Bookkeeper(store)
        outcomes = [
            outcome
            for start in range(0, len(acknowledged), 500)
            for outcome in await books.record(*(an_event(call_id=each) for each in acknowledged[start : start + 500]))
        ]

    assert report.violations == ()
    assert report.checked_usage_events >= len(acknowledged) >= sum(LINES_BEFORE_THE_KILL)
    assert {True} == {outcome.is_repeated for outcome in outcomes}


def _record_and_kill(path: Path, lines: int) -> list[str]:
    """Lets the child acknowledge at least so many calls, then kills it; returns all whole lines."""
    command = [sys.executable, "-m", "tests.contract.metering.recording_child", str(path)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = [child.stdout.readline() for _ in range(lines)]
        child.kill()
        seen += child.stdout.readlines()
    return [line.strip() for line in seen if line.endswith("\n")]
