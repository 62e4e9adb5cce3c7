"""A gateway that is told to stop: it finishes what runs, refuses what comes, loses nothing, and starts where it was.

Owns SIGTERM under load, for the whole gateway and for single processes.
"""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.gateway import Gateway
from tests.load import Load, at_once, chat, eventually, messages
from tests.paced import Paced, reconcile
from tests.provider import Provider

STREAMS = [dialect(f"chunks={20 + n % 10} pace_ms=80") for n in range(30) for dialect in (messages, chat)]


@pytest.mark.parametrize("transport", ["link", pytest.param("grpc", marks=pytest.mark.long)])
async def test_sigterm_under_load_loses_no_call(tmp_path: Path, transport: str) -> None:
    environment = {"MWS_TRANSPORT": transport}
    with Provider() as provider:
        with Gateway(tmp_path, *provider.options, environment=environment) as gateway:
            paced = Paced(gateway, provider)
            account = paced.account("drained")
            running = asyncio.ensure_future(at_once(paced.caller(account), STREAMS))
            await eventually(lambda: len(provider.log()) == len(STREAMS), why="all streams running")

            status = asyncio.ensure_future(asyncio.to_thread(gateway.stop))
            answers = await running

            assert await status == 0
            assert all(answer.ok for answer in answers)
            assert not list((tmp_path / "run").glob("*.pid"))
        with Gateway(tmp_path, *provider.options, environment=environment) as gateway:
            again = Paced(gateway, provider)
            entries = again.entries(account)
            assert entries.keys() == {answer.call_id for answer in answers}
            reconcile(answers, provider.log(), entries)
            assert gateway.mws("ledger", "check")["violations"] == []
            assert (await again.caller(account).send(messages("chunks=1"))).ok


@pytest.mark.parametrize("service", ["inference", "metering", "auth"])
async def test_a_service_that_restarts_cleanly_breaks_no_running_call(paced: Paced, service: str) -> None:
    account = paced.account(f"rolled-{service}")
    over = asyncio.Event()
    load = Load(paced.caller(account), [messages("chunks=20 pace_ms=40"), chat("chunks=10 pace_ms=40")], width=20)
    running = asyncio.ensure_future(load.until(over))
    await eventually(lambda: len(load.answers) >= 20, why="a first round of answers")
    old = paced.gateway.pid(service)

    os.kill(old, signal.SIGTERM)

    await eventually(lambda: _pid(paced, service) not in (old, 0), within_s=20, why="a new process")
    await _flows_again(load)
    over.set()
    answers = await running
    broken = [answer for answer in answers if answer.status == 200 and not answer.ok]
    assert not broken, [answer.error for answer in broken]
    assert {answer.status for answer in answers} <= {200, 503}
    await paced.reconciled(account, answers)


def _pid(paced: Paced, service: str) -> int:
    try:
        return paced.gateway.pid(service)
    except (OSError, ValueError):
        return 0


async def _flows_again(load: Load) -> None:
    """The newest answers are all good ones."""
    await eventually(lambda: all(answer.ok for answer in load.answers[-20:]), within_s=20, why="calls flow again")
