"""The embedded hold journal lost under load: refused for some seconds, then all is as it was, with nothing lent out.

Owns that one loss; the suite of the shared stores breaks theirs.
"""

import asyncio

import pytest

from tests.breaking import kill, nothing_is_held
from tests.load import Load, chat, eventually, messages
from tests.paced import Paced

WIDTH = 12
REQUESTS = [messages("chunks=8 pace_ms=30"), chat("chunks=4 pace_ms=30"), messages("chunks=3", stream=False)]


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_lost_journal_heals_from_metering_and_the_runners(faulty: Paced) -> None:
    account = faulty.account("lost holds")
    load = Load(faulty.caller(account), REQUESTS, WIDTH)
    over = asyncio.Event()
    running = asyncio.ensure_future(load.until(over))
    await eventually(lambda: len(load.answers) >= 2 * WIDTH, within_s=30, why="load")

    for file in (faulty.gateway.data_dir / "auth").glob("holds.sqlite3*"):
        file.unlink()
    await kill(faulty, "auth")
    seen = len(load.answers)

    def good_round() -> bool:
        newest = load.answers[seen:][-WIDTH:]
        return len(newest) == WIDTH and all(answer.ok for answer in newest)

    await eventually(good_round, within_s=40, why="calls flow again")
    over.set()
    answers = await running
    assert {answer.status for answer in answers} <= {200, 500, 503}
    await faulty.reconciled(account, answers)
    await eventually(lambda: nothing_is_held(faulty, account), within_s=60, why="all holds settled")
    assert faulty.gateway.mws("ledger", "check")["violations"] == []
