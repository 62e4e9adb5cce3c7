"""The use case `Generate`: read, bound, admit, route, relay, record, finish, in this order, whatever happens.

Owns the life of one call; refuses to speak any upstream's dialect and to move bytes.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import cast

import msgspec
from mws.admission.v1.admission_service_pb2 import OPERATION_GENERATE
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as service_pb
from mws.inference.v1.generation_pb2 import GenerationEvent
from mws.metering.v1 import metering_service_pb2 as metering_pb

from services.routing_and_inference import bounding, metrics
from services.routing_and_inference.adapters.recorder import Recorded
from services.routing_and_inference.admission import Admissions, OpenCall, Order
from services.routing_and_inference.answer import Answer
from services.routing_and_inference.attempts import Attempts, context_too_long
from services.routing_and_inference.catalog import Catalogue, Kind, Profile, UpstreamTarget
from services.routing_and_inference.current import CurrentCatalogue
from services.routing_and_inference.fleet import Demand, Fleet
from services.routing_and_inference.patience import Batches, first_content_within
from services.routing_and_inference.ports import Upstream, UpstreamRequest
from services.routing_and_inference.prompt import Prompt, drop_images, head_of, read_prompt
from services.routing_and_inference.replaying import Fold, kept_form
from services.routing_and_inference.rescue import Continuation, continuation
from services.routing_and_inference.settlement import (
    BALANCE_CUT,
    COMPLETE,
    REFUSED,
    RESCUED,
    Ended,
    Settlement,
    charged_of,
    ending_of_cancellation,
    ending_of_failure,
)
from services.runtime.calls import Call
from services.runtime.errors import GatewayError, UnimplementedError

_EXTEND_BEFORE_TOKENS = 512  # so much of a slice is left when the next one is asked for


class Run(msgspec.Struct, eq=False):
    """One call that was admitted, from then to its end."""

    call: Call
    opened: OpenCall
    request: service_pb.GenerateRequest  # its generation is adapted to the profile
    prompt: Prompt
    answer: Answer
    attempts: Attempts
    slice_end_tokens: int | None  # output that the hold covers; None: the caller stated a maximum, held in full
    is_streamed: bool
    is_settled: bool = False
    is_prefilled: bool = False  # the last attempt was asked to go on with the text that had left
    refuse_prefill: set[str] = msgspec.field(default_factory=set)  # upstreams


class Generator:
    """Runs calls. `upstreams` are the dialects that the catalogue names."""

    def __init__(
        self,
        current: CurrentCatalogue,
        upstreams: Mapping[str, Upstream],
        fleet: Fleet,
        admissions: Admissions,
        settlement: Settlement,
    ) -> None:
        self._current = current
        self._upstreams = upstreams
        self._fleet = fleet
        self._admissions = admissions
        self._settlement = settlement

    async def generate(
        self, request: service_pb.GenerateRequest, call: Call
    ) -> AsyncIterator[service_pb.GenerateResponse]:
        """The answer's events, in the order of the contract. Adapts the request's generation in place."""
        async for response in self.run(await self.open(request, call)):
            yield response

    async def run(self, run: Run) -> AsyncIterator[service_pb.GenerateResponse]:
        """The answer of a call that was admitted."""
        try:
            response = service_pb.GenerateResponse()
            _write_admitted(run, response.events.add().admitted)
            if run.is_streamed:
                yield response
                response = service_pb.GenerateResponse()
            while not run.attempts.has_served:
                batches = await self._next(run)
                with run.attempts:
                    try:
                        async for batch in batches:
                            if events := self._take(run, batch):
                                yield service_pb.GenerateResponse(events=events)
                            if run.slice_end_tokens is not None and not await self._covers(run, run.slice_end_tokens):
                                break
                    finally:
                        await batches.aclose()
                    run.answer.require_end()
            response.events.extend(run.answer.remainder())  # from here on it counts as delivered
            charged = charged_of(await self._settle(run))
            run.answer.finish(response.events.add().finished, charged)
            yield response
        except BaseException as error:
            await self._broke(run, error)
            raise

    async def open(self, request: service_pb.GenerateRequest, call: Call) -> Run:
        """Admits a call. Raises AnsweredEarlierError, and what the contract lists for a call that may not run."""
        try:
            profile = profile_for(self._current.catalogue, request.model, Kind.GENERATION)
            prompt = read_prompt(request.generation, has_vision=profile.capabilities.vision)
            adapt(request.generation, prompt, profile)
        except GatewayError as error:
            raise await self._admissions.at_fault(error, request.credential, call) from error
        self._settlement.require_room()
        generation = request.generation
        stated = generation.max_output_tokens if generation.HasField("max_output_tokens") else None
        order = Order(
            call_id=request.call_id,
            credential=request.credential,
            operation=OPERATION_GENERATE,
            profile=profile,
            bound=bounding.bound_generation(profile, prompt.size, stated),
            requested_model=request.model,
            application=request.application,
            idempotency_key=request.idempotency_key,
            body_sha256=request.body_sha256,
            max_output_tokens=profile.max_output_tokens,
        )
        opened = await self._admissions.open(order, call)
        return Run(
            call=call,
            opened=opened,
            request=request,
            prompt=prompt,
            answer=Answer(
                prompt.estimated_tokens,
                is_streamed=generation.stream,
                fold=Fold() if request.idempotency_key else None,
            ),
            attempts=Attempts(self._fleet, profile, _demand_of(opened, generation)),
            slice_end_tokens=order.bound.output_tokens if stated is None else None,
            is_streamed=generation.stream,
        )

    async def _next(self, run: Run) -> Batches:
        """The next attempt's answer. Fails over until content has left, and never after."""
        answer, attempts = run.answer, run.attempts
        if answer.has_delivered:
            return await self._go_on(run)
        target = await attempts.next()
        if target is None:
            raise attempts.error(delivered=False)
        return self._attempt(run, target, answer.begin(target.name), run.request.generation)

    async def _go_on(self, run: Run) -> Batches:
        """An attempt that goes on with what has left. Raises if nobody can do that with certainty."""
        answer, profile, generation = run.answer, run.opened.profile, run.request.generation
        if run.is_prefilled and run.attempts.was_rejected:  # the prefill is at fault, as far as anybody can tell
            run.refuse_prefill.add(answer.upstream)
            run.attempts.allow_another_try()

        def plan(target: UpstreamTarget) -> Continuation | None:
            # A cold answer can be made anew: whoever may refuse the prefill as well is not asked.
            refused = run.refuse_prefill
            may_prefill = target.name not in refused and not (refused and generation.temperature == 0)
            return continuation(generation, answer.said, profile, target, may_prefill=may_prefill)

        target = await run.attempts.next(lambda target: plan(target) is not None)
        chosen = None if target is None else plan(target)
        if target is None or chosen is None:
            raise run.attempts.error(delivered=True)
        run.is_prefilled = chosen.is_prefilled
        return self._attempt(run, target, answer.go_on(target.name, chosen.overlap), chosen.generation)

    def _attempt(self, run: Run, target: UpstreamTarget, number: int, generation: pb.Generation) -> Batches:
        attempt = UpstreamRequest(
            call_id=run.opened.order.call_id,
            attempt=number,
            generation=generation,
            dialect=run.request.dialect,
            profile=run.opened.profile,
            target=target,
        )
        batches = cast("Batches", self._upstreams[target.dialect].generate(attempt))
        limit_s = target.options.get("first_token_timeout_s")
        if run.is_streamed and isinstance(limit_s, int | float):
            return first_content_within(batches, limit_s)
        return batches

    def _take(self, run: Run, batch: Sequence[GenerationEvent]) -> Sequence[GenerationEvent]:
        had_delivered = run.answer.has_delivered
        events = run.answer.take(batch)
        if events and not had_delivered:
            now_s = asyncio.get_running_loop().time()
            metrics.first_content_s(run.opened.profile.slug).observe(now_s - run.call.started)
        return events

    async def _covers(self, run: Run, slice_end_tokens: int) -> bool:
        """Whether the hold covers what comes next; asks for another slice shortly before one is used up."""
        if run.answer.finished is not None or run.answer.bound_tokens + _EXTEND_BEFORE_TOKENS < slice_end_tokens:
            return True
        end_tokens = max(slice_end_tokens, run.answer.bound_tokens) + bounding.SLICE_TOKENS
        if await self._admissions.extend(run.opened, run.opened.order.bound.amount_for(end_tokens)):
            run.slice_end_tokens = end_tokens
            return True
        run.answer.is_balance_cut = True
        return False

    # ---- the end of a call ----

    def _settle(self, run: Run) -> Recorded:
        """The answer is whole, or was ended by the balance."""
        answer = run.answer
        if answer.is_balance_cut:
            ending = BALANCE_CUT
        else:
            assert answer.finished is not None
            if answer.is_rescued:
                ending = RESCUED
            else:
                ending = REFUSED if answer.finished.reason == pb.FINISH_REASON_REFUSAL else COMPLETE
        whole = answer.whole()
        return self._end(run, ending, None if whole is None else kept_form(whole))

    async def _broke(self, run: Run, error: BaseException) -> None:
        """Ends a call that did not come to its end."""
        if isinstance(error, GatewayError):
            await self._failed(run, error)
        elif run.is_settled:
            return
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self._left(run)
        else:  # a defect of ours
            self._end(run, ending_of_failure(delivered=run.answer.has_delivered))

    async def _failed(self, run: Run, error: GatewayError) -> None:
        """Adds to the error what its reader needs to know about money. Recorded before it leaves."""
        outcome = None
        if not run.is_settled:
            if run.attempts.made:
                outcome = await self._end(run, ending_of_failure(delivered=run.answer.has_delivered))
            else:
                self.void(run)
        failure = pb.GenerationFailure(delivered=run.answer.has_delivered, attempts=run.attempts.made)
        if run.answer.has_delivered:
            failure.usage.CopyFrom(run.answer.delivered())
        if (charged := charged_of(outcome)) is not None:
            failure.charged_nano_usd = charged
        error.details = (*error.details, run.opened.limits, failure)

    def _left(self, run: Run) -> None:
        """The caller is gone. Nothing here waits: it may not be waited for any more."""
        ending = ending_of_cancellation(run.call.cancel_reason, delivered=run.answer.has_delivered)
        if ending is None or not run.attempts.made:
            self.void(run)
        else:
            self._end(run, ending)

    def void(self, run: Run) -> None:
        """The call need not run."""
        run.is_settled = True
        self._settlement.void(run.opened)

    def _end(self, run: Run, ending: "metering_pb.Ending.ValueType", kept: tuple[str, bytes] | None = None) -> Recorded:
        run.is_settled = True
        answer = run.answer
        ended = Ended(
            ending=ending,
            delivered=answer.delivered(),
            reported=answer.reported(),
            upstream=answer.upstream,
            attempt=answer.attempt,
            upstream_accepted=answer.was_accepted or run.attempts.was_accepted,
            kept=kept,
        )
        usage = ended.reported or ended.delivered
        run.call.note(upstream=answer.upstream, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
        return self._settlement.settle(run.opened, ended)


def _demand_of(opened: OpenCall, generation: pb.Generation) -> Demand:
    head = head_of(generation) if opened.profile.affinity else None
    return Demand(opened.hold.account_id, opened.order.bound.rate_tokens, head)


def profile_for(catalogue: Catalogue, model: str, kind: Kind) -> Profile:
    """The profile that serves a model name. Raises UnimplementedError if the catalogue has none of this kind."""
    profile = catalogue.resolve(model, kind)
    if profile is None:
        raise UnimplementedError(f"the catalogue has no profile for {kind.value}")
    return profile


def adapt(generation: pb.Generation, prompt: Prompt, profile: Profile) -> None:
    """Makes a generation what the profile can do. Raises ContextTooLongError."""
    estimated = prompt.estimated_tokens
    if estimated > profile.context_tokens:
        raise context_too_long(profile, estimated)
    if generation.HasField("max_output_tokens"):
        generation.max_output_tokens = bounding.output_limit(profile, generation.max_output_tokens, estimated)
    if prompt.dropped_images:
        drop_images(generation)


def _write_admitted(run: Run, admitted: pb.Admitted) -> None:
    opened, prompt = run.opened, run.prompt
    admitted.call_id = opened.order.call_id
    admitted.account_id = opened.hold.account_id
    admitted.limits.CopyFrom(opened.limits)
    admitted.profile = opened.profile.slug
    admitted.estimated_input_tokens = prompt.estimated_tokens
    admitted.dropped_images = prompt.dropped_images
    admitted.held_nano_usd = opened.hold.amount_nano_usd
