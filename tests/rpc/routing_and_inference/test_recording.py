"""Usage finds its way on record: in batches, over an outage of metering, over a restart, with an unknown price book."""

import asyncio
from pathlib import Path

import pytest
from mws.admission.v1 import admission_service_pb2 as admission_pb

from services.routing_and_inference.adapters.spool import Spool
from services.runtime import errors
from tests.rpc.routing_and_inference.world import CHARGED, a_request, a_world, answers, text, until

pytestmark = pytest.mark.anyio


async def test_calls_that_end_together_are_recorded_together(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.gate = asyncio.Event()
        calls = [asyncio.create_task(world.generate(a_request())) for _ in range(50)]
        await until(lambda: world.upstream.closed == 50)
        world.metering.gate.set()
        await asyncio.gather(*calls)

        assert sum(world.metering.batches) == 50
        assert len(world.metering.batches) <= 4


async def test_an_outage_of_metering_delays_the_record_and_not_the_answer(tmp_path: Path) -> None:
    async with a_world(tmp_path, answers([text("Hi")], input_tokens=3, output_tokens=2)) as world:
        world.metering.is_down = True
        request = a_request()
        last = (await world.generate(request))[-1].finished
        assert not last.HasField("charged_nano_usd")
        assert len(world.spool) == 1
        await until(lambda: request.call_id in world.admission.finished)
        finished = world.admission.finished[request.call_id]
        assert (finished.HasField("cost_nano_usd"), finished.used_tokens) == (False, 5)

        await world.service.leases.renew()  # the hold lives on, as FINISHED
        assert [hold.state for hold in world.admission.renewed] == [admission_pb.HOLD_STATE_FINISHED]

        world.metering.is_down = False
        await until(lambda: request.call_id in world.metering.posted and not len(world.spool))
        assert len(world.service.leases) == 0
        again = (await world.generate(a_request()))[-1].finished
        assert again.charged_nano_usd == CHARGED


async def test_what_a_crash_left_is_sent_by_the_next_run(tmp_path: Path) -> None:
    request = a_request()
    async with a_world(tmp_path) as world:
        world.metering.is_down = True
        await world.generate(request)

    async with a_world(tmp_path) as world:
        await until(lambda: not len(world.spool))
        assert list(world.metering.posted) == [request.call_id]


async def test_what_another_runner_left_is_adopted(tmp_path: Path) -> None:
    request = a_request()
    async with a_world(tmp_path) as world:
        world.metering.is_down = True
        await world.generate(request)
    (tmp_path / "spool" / "inference-0").rename(tmp_path / "spool" / "inference-7")

    async with a_world(tmp_path) as world:
        adopting = asyncio.create_task(world.service.recorder.adopt())
        await until(lambda: request.call_id in world.metering.posted)
        adopting.cancel()


async def test_an_unknown_price_book_is_registered_and_the_event_sent_again(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.books.clear()
        request = a_request()
        last = (await world.generate(request))[-1].finished

        assert last.charged_nano_usd == CHARGED
        assert world.metering.received == 2


async def test_a_price_book_that_cannot_be_registered_defers_the_event(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.books.clear()
        world.metering.refuses_books = True
        request = a_request()
        last = (await world.generate(request))[-1].finished
        assert not last.HasField("charged_nano_usd")
        assert len(world.spool) == 1

        world.metering.refuses_books = False
        await until(lambda: request.call_id in world.metering.posted)


def _fill(spool: Spool) -> None:
    spool._max_bytes = 0


async def test_without_metering_and_room_no_call_starts(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.is_down = True
        await world.generate(a_request())  # the first one to notice
        _fill(world.spool)
        with pytest.raises(errors.UsageUnrecordableError) as caught:
            await world.generate(a_request())

        assert caught.value.retry_in is not None
        assert (len(world.upstream.requests), len(world.admission.asked)) == (1, 1)
        assert not world.service.recorder.can_record()
        world.metering.is_down = False
        await until(world.service.recorder.can_record)


async def test_a_running_call_that_can_be_recorded_nowhere_ends_in_a_typed_error(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.is_down = True
        _fill(world.spool)
        request = a_request()
        with pytest.raises(errors.UsageUnrecordableError):
            await world.generate(request)
        assert not world.service.recorder.can_record()

        world.metering.is_down = False  # it is kept in memory as long as that lasts
        await until(lambda: request.call_id in world.metering.posted)
        await until(world.service.recorder.can_record)


async def test_flushing_waits_for_the_last_record(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.is_down = True
        await world.generate(a_request())
        flushing = asyncio.create_task(world.service.recorder.flush(5.0))
        await asyncio.sleep(0)
        assert not flushing.done()
        world.metering.is_down = False
        assert await flushing
        assert len(world.metering.posted) == 1
        assert await world.service.finisher.flush(1.0)


async def test_a_flush_gives_up_on_metering_and_not_on_the_spool(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.gate = asyncio.Event()
        call = asyncio.create_task(world.generate(a_request()))
        await until(lambda: world.service.recorder.unsent == 1)
        world.metering.is_down = True
        flushing = asyncio.create_task(world.service.recorder.flush(0.0))
        world.metering.gate.set()

        assert not await flushing
        await call
        assert len(world.spool) == 1


async def test_an_answer_of_the_wrong_length_is_not_believed(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.forgets_outcomes = True
        request = a_request()
        last = (await world.generate(request))[-1].finished
        assert not last.HasField("charged_nano_usd")
        world.metering.forgets_outcomes = False
        await until(lambda: not len(world.spool))

        assert list(world.metering.posted) == [request.call_id]
