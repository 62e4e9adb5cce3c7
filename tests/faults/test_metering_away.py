"""Metering stopped or hung under load: answers go on, usage waits in the spool, and is posted to the token afterwards.

Owns the spool's promise over the wire; its file format has a suite of its own.
"""

import asyncio
import os
import signal

import pytest

from tests.breaking import answers_again, nothing_is_held, pid_of
from tests.load import Load, chat, eventually, messages
from tests.paced import Paced

WIDTH = 16
REQUESTS = [messages("chunks=8 pace_ms=20"), chat("chunks=8 pace_ms=20"), messages("chunks=2", stream=False)]


@pytest.mark.timeout(120)
async def test_usage_waits_in_the_spool_while_metering_hangs(faulty: Paced) -> None:
    account = faulty.account("spooled")
    load = Load(faulty.caller(account), REQUESTS, WIDTH)
    over = asyncio.Event()
    running = asyncio.ensure_future(load.until(over))
    await eventually(lambda: len(load.answers) >= 2 * WIDTH, why="load")
    metering = pid_of(faulty, "metering")

    os.kill(metering, signal.SIGSTOP)
    try:
        answered = len(load.answers)
        await eventually(lambda: len(load.answers) > answered + 2 * WIDTH, within_s=30, why="answers without metering")
        spooled = await eventually(lambda: _spooled_bytes(faulty), why="usage in the spool")
    finally:
        os.kill(metering, signal.SIGCONT)

    await eventually(lambda: answers_again(faulty, "metering"), within_s=30, why="metering")
    over.set()
    answers = await running
    assert spooled > 0
    assert all(answer.ok for answer in answers), [answer.error for answer in answers if not answer.ok]
    await faulty.reconciled(account, answers, within_s=40)
    await eventually(lambda: nothing_is_held(faulty, account), within_s=45, why="all holds settled")
    assert faulty.gateway.mws("ledger", "check")["violations"] == []


def _spooled_bytes(paced: Paced) -> int:
    return sum(path.stat().st_size for path in (paced.gateway.data_dir / "spool").rglob("*") if path.is_file())
