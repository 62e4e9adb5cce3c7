"""Many streams for a long time, twice: none fails, none is slow to a neighbour's cost, and memory does not creep.

Owns steady load without faults; the provider paces the streams in its own process, so it is not the bottleneck.
"""

import asyncio
from pathlib import Path

import pytest

from tests.gateway import Gateway
from tests.load import Answer, Caller, Load, Request, chat, messages
from tests.paced import Paced
from tests.provider import Provider, words

STREAMS = 500
SECONDS = 60.0
MEMORY_GROWTH = 1.05


async def test_sixty_streams_at_once_all_arrive_whole(faulty: Paced) -> None:
    account = faulty.account("short soak")
    requests = [messages("chunks=15 pace_ms=100"), chat("chunks=15 pace_ms=100")]

    answers = await _soak(faulty, requests, account.api_key, streams=60, seconds=3.0)

    assert len(answers) >= 120
    assert {answer.text for answer in answers} == {words(15)}
    await faulty.reconciled(account, answers)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("transport", ["link", "grpc"])
async def test_five_hundred_streams_for_a_minute_twice(tmp_path: Path, transport: str) -> None:
    environment = {"MWS_TRANSPORT": transport}
    with Provider() as provider, Gateway(tmp_path, *provider.options, environment=environment) as gateway:
        paced = Paced(gateway, provider)
        account = paced.account("soak")
        requests = [messages("chunks=40 pace_ms=250"), chat("chunks=40 pace_ms=250")]
        memory: list[int] = []
        for _ in range(2):
            answers = await _soak(paced, requests, account.api_key, streams=STREAMS, seconds=SECONDS)
            assert {answer.text for answer in answers} == {words(40)}
            await paced.reconciled(account, answers, within_s=60)
            memory.append(gateway.memory_bytes())
        print(f"{transport}: {len(answers)} streams, resident {[f'{size / 2**20:.1f} MiB' for size in memory]}")
        assert memory[1] <= memory[0] * MEMORY_GROWTH
        assert gateway.mws("ledger", "check")["violations"] == []


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_five_hundred_simulated_streams_for_a_minute_twice(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        account = gateway.account("soak")
        requests = [messages("Go on.", max_tokens=600), chat("Go on.", max_tokens=600)]
        memory: list[int] = []
        for _ in range(2):
            load = Load(_caller(gateway, account.api_key), requests, STREAMS)
            answers = await _run(load, SECONDS)
            memory.append(gateway.memory_bytes())
        print(f"simulated: {len(answers)} streams, resident {[f'{size / 2**20:.1f} MiB' for size in memory]}")
        assert memory[1] <= memory[0] * MEMORY_GROWTH
        assert gateway.mws("ledger", "check")["violations"] == []


async def _soak(paced: Paced, requests: list[Request], api_key: str, *, streams: int, seconds: float) -> list[Answer]:
    return await _run(Load(_caller(paced.gateway, api_key), requests, streams), seconds)


def _caller(gateway: Gateway, api_key: str) -> Caller:
    return Caller(gateway.base_url, api_key)


async def _run(load: Load, seconds: float) -> list[Answer]:
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    answers = await load.until(over)
    failed = [answer for answer in answers if not answer.ok]
    assert not failed, f"{len(failed)} of {len(answers)} failed: {failed[0].status} {failed[0].error}"
    return answers
