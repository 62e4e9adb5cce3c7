"""The largest bodies among live streams: served or refused, and nobody else waits long for it.

Owns the sizes and the measurement; minutes on a busy machine, so it runs with --run-long.
"""

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.gateway import Gateway
from tests.paced import Paced
from tests.provider import Provider
from tests.rule_book import CheckedTransport

pytestmark = [pytest.mark.long, pytest.mark.anyio, pytest.mark.timeout(300)]

LIMIT_BYTES = 32 << 20
STREAMS, CHUNKS, PACE_MS = 20, 100, 60
LONGEST_GAP_S = 0.75  # between two pieces of a stream whose own pace is 60 ms, on a machine that does nothing else
PROMPT = {"role": "user", "content": f"chunks={CHUNKS} pace_ms={PACE_MS}"}


@pytest.fixture(scope="module", params=["link", "grpc"])
def paced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paced]:
    with Provider() as provider:
        folder: Path = tmp_path_factory.mktemp(f"large-{request.param}")
        with Gateway(folder, *provider.options, environment={"MWS_TRANSPORT": request.param}) as gateway:
            yield Paced(gateway, provider)


def body_of(size_bytes: int, model: str = "dragon") -> bytes:
    """A request of exactly this size, nearly all of it an image."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "@"}}
    content = [image, {"type": "text", "text": "chunks=2 pace_ms=0"}]
    text = json.dumps({"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": content}]})
    return text.replace("@", "A" * (size_bytes - len(text) + 1)).encode()


async def longest_gap_s(client: httpx2.AsyncClient, ready: asyncio.Semaphore) -> float:
    """Reads one paced stream; the longest time between two of its pieces."""
    loop = asyncio.get_running_loop()
    request = {"model": "dragon", "max_tokens": 500, "stream": True, "messages": [PROMPT]}
    longest, last = 0.0, 0.0
    async with client.stream("POST", "/v1/messages", json=request) as reply:
        assert reply.status_code == 200
        async for _ in reply.aiter_raw():
            if last:
                longest = max(longest, loop.time() - last)
            else:
                ready.release()
            last = loop.time()
    return longest


def large_ones() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Made before the streams begin, so that making them holds up no reader."""
    packed = {"content-encoding": "gzip"}
    whole = body_of(LIMIT_BYTES)
    return {
        "dropped": (whole, {}),
        "seen": (body_of(LIMIT_BYTES, "dragon-seer"), {}),
        "packed": (gzip.compress(whole, 1), packed),
        "over": (body_of(LIMIT_BYTES + (1 << 20)), {}),
        "by a byte": (body_of(LIMIT_BYTES + 1), {}),
        "bomb": (gzip.compress(b"\0" * (256 << 20), compresslevel=1), packed),
    }


def send_all(
    base_url: str, key: str, bodies: dict[str, tuple[bytes, dict[str, str]]]
) -> tuple[dict[str, httpx2.Response], float]:
    """The replies, and how busy the machine was meanwhile. From a thread of its own, so that no reader waits."""
    replies, busy = {}, 1.0
    with httpx2.Client(base_url=base_url, headers={"x-api-key": key}, timeout=60) as client:
        for name, (body, headers) in bodies.items():
            replies[name] = client.post("/v1/messages", content=body, headers=headers)
            busy = max(busy, busyness())
    return replies, busy


def busyness() -> float:
    """How many times longer work takes here than it would alone, since others work as well."""
    wall, worked = time.perf_counter(), time.thread_time()
    while time.thread_time() - worked < 0.1:
        pass
    return (time.perf_counter() - wall) / 0.1


async def test_the_largest_bodies_hold_up_nobody(paced: Paced) -> None:
    ready, bodies = asyncio.Semaphore(0), large_ones()
    key = paced.account(rpm=100_000, tpm=150_000_000).api_key
    edge = psutil.Process(paced.gateway.pid("edge"))
    memory = edge.memory_info().rss
    transport = CheckedTransport(httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_connections=100)))
    options: Any = {"base_url": paced.gateway.base_url, "headers": {"x-api-key": key}, "timeout": 60}
    async with httpx2.AsyncClient(transport=transport, **options) as client, asyncio.TaskGroup() as group:
        streams = [group.create_task(longest_gap_s(client, ready)) for _ in range(STREAMS)]
        for _ in range(STREAMS):
            await ready.acquire()
        replies, busy = await asyncio.to_thread(send_all, paced.gateway.base_url, key, bodies)
    gaps = [stream.result() for stream in streams]
    grown = edge.memory_info().rss - memory

    statuses = {name: reply.status_code for name, reply in replies.items()}
    assert statuses == {"dropped": 200, "seen": 200, "packed": 200, "over": 413, "by a byte": 413, "bomb": 413}
    assert replies["dropped"].headers["x-mws-dropped"] == "images=1"
    assert {replies[name].json()["error"]["type"] for name in ("over", "by a byte", "bomb")} == {"request_too_large"}
    print(
        f"longest gap {max(gaps):.3f} s of {STREAMS} streams at {PACE_MS} ms on a machine {busy:.1f} times too busy; "
        f"memory grew by {grown >> 20} MiB"
    )
    assert max(gaps) < LONGEST_GAP_S * busy
    assert grown < 8 * LIMIT_BYTES
