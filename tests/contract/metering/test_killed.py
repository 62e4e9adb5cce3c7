"""kill -9 in the middle of groups: what was acknowledged is there, and the ledger holds.

Owns the crash of the whole process; crashes at chosen steps are in test_any_order.py.
"""

import subprocess
import sys
from pathlib import Path

from services.metering import checking
from tests.contract.metering.building import Bookkeeper
from tests.contract.metering.places import Database, Place

ROOT = Path(__file__).parents[3]
LINES_BEFORE_THE_KILL = (1, 300)


async def test_nothing_acknowledged_is_lost_to_a_kill(place: Place) -> None:
    where = place.url if isinstance(place, Database) else str(place.path)  # type: ignore[attr-defined]
    acknowledged: list[str] = []
    for count in LINES_BEFORE_THE_KILL:
        acknowledged += _record_and_kill(where, count)

    async with place.open() as store:
        report = await store.inspect(lambda snapshot: checking.check(snapshot, ""))
        books = Bookkeeper(store)
        outcomes = [
            outcome
            for start in range(0, len(acknowledged), 500)
            for outcome in await books.resolve(*acknowledged[start : start + 500])
        ]

    assert report.violations == ()
    assert report.checked_usage_events >= len(acknowledged) >= sum(LINES_BEFORE_THE_KILL)
    assert {"posted"} == set(outcomes)


def _record_and_kill(where: str, lines: int) -> list[str]:
    """Lets the child acknowledge at least so many calls, then kills it; returns all whole lines."""
    command = [sys.executable, "-m", "tests.contract.metering.recording_child", where]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = [child.stdout.readline() for _ in range(lines)]
        child.kill()
        seen += child.stdout.readlines()
    return [line.strip() for line in seen if line.endswith("\n")]
