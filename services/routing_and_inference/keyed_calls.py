"""Calls under an idempotency key: run once, to their end whoever leaves, and replayed to whoever asks again.

Owns that a keyed call outlives its caller; refuses to know how a call runs and how answers are kept.
"""

import asyncio
from collections.abc import AsyncIterator

import structlog
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as service_pb

from services.routing_and_inference.admission import AnsweredEarlierError
from services.routing_and_inference.catalog import Kind
from services.routing_and_inference.current import CurrentCatalogue
from services.routing_and_inference.generation import Generator, Run, profile_for
from services.routing_and_inference.ports import Kept
from services.routing_and_inference.replaying import KeptAnswers, read_kept
from services.runtime.calls import Call
from services.runtime.errors import GatewayError, IdempotencyKeyReusedError

log = structlog.get_logger()

_Item = service_pb.GenerateResponse | BaseException | None


class KeyedCalls:
    """Stands before the Generator."""

    def __init__(self, current: CurrentCatalogue, generator: Generator, answers: KeptAnswers) -> None:
        self._current = current
        self._generator = generator
        self._answers = answers
        self._running: set[asyncio.Task[None]] = set()

    async def generate(
        self, request: service_pb.GenerateRequest, call: Call
    ) -> AsyncIterator[service_pb.GenerateResponse]:
        """The answer of the one call that runs under the key. The request has a key."""
        key = request.idempotency_key, request.body_sha256
        try:
            run = await self._generator.open(request, call)
        except AnsweredEarlierError as earlier:
            kept = await self._answers.find(earlier.account_id, *key)
            if kept is None:
                raise IdempotencyKeyReusedError(
                    "the answer under the idempotency key is not kept any more", details=[earlier.limits]
                ) from None
            admitted = pb.Admitted(account_id=earlier.account_id, limits=earlier.limits)
        else:
            kept = await self._kept_anyway(run, key)
            if kept is None:
                async for response in self._follow(run):
                    yield response
                return
            admitted = pb.Admitted(account_id=run.opened.hold.account_id, limits=run.opened.limits)
        yield self._replay(request, kept, admitted)

    async def finish(self) -> None:
        """Waits for the calls that go on without their callers."""
        while self._running:
            await asyncio.wait(self._running)

    async def _kept_anyway(self, run: Run, key: tuple[str, bytes]) -> Kept | None:
        """An answer of which admission has forgotten: its store was lost. Then nothing runs, and nothing is held."""
        try:
            kept = await self._answers.find(run.opened.hold.account_id, *key)
        except BaseException as error:
            self._generator.void(run)
            if isinstance(error, GatewayError):
                error.details = (*error.details, run.opened.limits)
            raise
        if kept is not None:
            self._generator.void(run)
        return kept

    async def _follow(self, run: Run) -> AsyncIterator[service_pb.GenerateResponse]:
        """Hands on what a run says. If nobody listens any more, it goes on all the same."""
        items: asyncio.Queue[_Item] = asyncio.Queue()
        task = asyncio.get_running_loop().create_task(self._say(run, items), name="keyed call")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        while (item := await items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    async def _say(self, run: Run, items: "asyncio.Queue[_Item]") -> None:
        try:
            async for response in self._generator.run(run):
                items.put_nowait(response)
        except GatewayError as error:
            items.put_nowait(error)
        except asyncio.CancelledError as error:
            items.put_nowait(error)
            raise
        except Exception as error:
            log.exception("keyed_call.failed", exc_info=error)
            items.put_nowait(error)
        else:
            items.put_nowait(None)

    def _replay(
        self, request: service_pb.GenerateRequest, kept: Kept, admitted: pb.Admitted
    ) -> service_pb.GenerateResponse:
        admitted.call_id = request.call_id
        admitted.replay_of = kept.call_id
        admitted.profile = profile_for(self._current.catalogue, request.model, Kind.GENERATION).slug
        response = service_pb.GenerateResponse(events=[pb.GenerationEvent(admitted=admitted)])
        response.events.extend(read_kept(kept, service_pb.GenerateResponse()).events)
        return response
