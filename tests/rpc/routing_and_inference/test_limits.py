"""Upstreams at their limits: calls go elsewhere, wait their turn, or are told when to come back."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.catalog import Catalogue, Limits
from services.routing_and_inference.ports import UpstreamRequest
from services.runtime import errors
from tests.rpc.routing_and_inference.world import (
    a_request,
    a_world,
    answers,
    finished,
    small_catalogue,
    started,
    text,
    until,
)


def limited(limits: Limits, queue_timeout_s: float = 5.0) -> Catalogue:
    catalogue = small_catalogue()
    profiles = [
        replace(
            profile,
            upstreams=tuple(replace(target, limits=limits) for target in profile.upstreams),
            queue_timeout_s=queue_timeout_s,
        )
        for profile in catalogue.profiles
    ]
    return Catalogue(profiles, defaults=catalogue.defaults)


class Gate:
    """Lets answers go on when it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.running = 0
        self.most = 0

    async def behave(self, request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.opened.wait()
            yield [started(request), text("Hi"), finished()]
        finally:
            self.running -= 1


async def test_no_more_calls_run_at_an_upstream_than_it_takes_and_the_others_wait(tmp_path: Path) -> None:
    gate = Gate()
    async with a_world(tmp_path, gate.behave, catalogue=limited(Limits(concurrency=2))) as world:
        calls = [asyncio.ensure_future(world.generate(a_request("single"))) for _ in range(10)]
        await until(lambda: gate.running == 2 and len(world.service.fleet.queue(_single(world))) == 8)
        gate.opened.set()
        await asyncio.gather(*calls)

        assert gate.most == 2


async def test_the_other_upstream_takes_what_the_first_one_cannot(tmp_path: Path) -> None:
    gate = Gate()
    async with a_world(tmp_path, gate.behave, catalogue=limited(Limits(concurrency=1))) as world:
        calls = [asyncio.ensure_future(world.generate(a_request())) for _ in range(2)]
        await until(lambda: gate.running == 2)
        gate.opened.set()
        await asyncio.gather(*calls)

        assert {request.target.name for request in world.upstream.requests} == {"first", "second"}


async def test_a_call_that_waits_for_too_long_is_told_to_come_back(tmp_path: Path) -> None:
    gate = Gate()
    async with a_world(tmp_path, gate.behave, catalogue=limited(Limits(concurrency=1), 0.02)) as world:
        running = asyncio.ensure_future(world.generate(a_request("single")))
        await until(lambda: gate.running == 1)
        with pytest.raises(errors.UpstreamOverloadedError) as caught:
            await world.generate(a_request("single"))
        gate.opened.set()
        await running

        assert caught.value.retry_in is not None
        assert len(world.upstream.requests) == 1


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(Limits(requests_per_minute=2), id="requests"),
        pytest.param(Limits(tokens_per_minute=2_050), id="tokens"),
    ],
)
async def test_what_a_minute_allows_is_not_exceeded(tmp_path: Path, limits: Limits) -> None:
    async with a_world(tmp_path, answers([text("Hi")]), catalogue=limited(limits, 0.02)) as world:
        for _ in range(2):
            await world.generate(a_request("single"))
        with pytest.raises(errors.UpstreamOverloadedError):
            await world.generate(a_request("single"))

        assert len(world.upstream.requests) == 2


async def test_a_caller_that_leaves_the_queue_takes_nobodys_turn(tmp_path: Path) -> None:
    gate = Gate()
    async with a_world(tmp_path, gate.behave, catalogue=limited(Limits(concurrency=1))) as world:
        queue = world.service.fleet.queue(_single(world))
        running = asyncio.ensure_future(world.generate(a_request("single")))
        await until(lambda: gate.running == 1)
        leaving = asyncio.ensure_future(world.generate(a_request("single")))
        await until(lambda: len(queue) == 1)
        staying = asyncio.ensure_future(world.generate(a_request("single")))
        await until(lambda: len(queue) == 2)
        leaving.cancel()
        await asyncio.wait([leaving])
        gate.opened.set()
        await asyncio.gather(running, staying)

        assert len(queue) == 0


def _single(world: Any) -> Any:
    return world.service.fleet.states("single")[0].profile
