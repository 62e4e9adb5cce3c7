"""The use case `Forward`: measure, bound, admit, route, pass through, record, finish; the life of a generation.

Owns the life of one forwarded call; refuses to read the answer's words and to go on with one that broke off.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
from mws.admission.v1.admission_service_pb2 import OPERATION_GENERATE
from mws.inference.v1 import forward_service_pb2 as service_pb
from mws.inference.v1 import generation_pb2 as pb
from mws.metering.v1 import metering_service_pb2 as metering_pb

from services.routing_and_inference import metrics
from services.routing_and_inference.adapters.recorder import Recorded
from services.routing_and_inference.admission import Admissions, OpenCall, Order
from services.routing_and_inference.attempts import Attempts, context_too_long
from services.routing_and_inference.catalog import Profile
from services.routing_and_inference.current import CurrentCatalogue
from services.routing_and_inference.fleet import Demand, Fleet
from services.routing_and_inference.native import (
    NativeAnswer,
    NativeAttempt,
    NativeBatches,
    NativePiece,
    NativeUpstream,
)
from services.routing_and_inference.native_prompt import NativePrompt, read_native, with_members
from services.routing_and_inference.replaying import kept_form
from services.routing_and_inference.settlement import (
    COMPLETE,
    REFUSED,
    Ended,
    Settlement,
    charged_of,
    ending_of_cancellation,
    ending_of_failure,
)
from services.runtime.calls import Call
from services.runtime.errors import FieldViolation, GatewayError, InvalidRequestError, NotFoundError


class ForwardedRun(msgspec.Struct, eq=False):
    """One call that was admitted, from then to its end."""

    call: Call
    opened: OpenCall
    request: service_pb.ForwardRequest
    prompt: NativePrompt
    answer: NativeAnswer
    attempts: Attempts
    is_settled: bool = False


class Forwarder:
    """Runs forwarded calls. `upstreams` are the dialects that the company proxy's models name."""

    def __init__(
        self,
        current: CurrentCatalogue,
        upstreams: Mapping[str, NativeUpstream],
        fleet: Fleet,
        admissions: Admissions,
        settlement: Settlement,
    ) -> None:
        self._current = current
        self._upstreams = upstreams
        self._fleet = fleet
        self._admissions = admissions
        self._settlement = settlement

    async def forward(
        self, request: service_pb.ForwardRequest, call: Call
    ) -> AsyncIterator[service_pb.ForwardResponse]:
        """The answer's events, in the order of the contract."""
        async for response in self.run(await self.open(request, call)):
            yield response

    async def run(self, run: ForwardedRun) -> AsyncIterator[service_pb.ForwardResponse]:
        """The answer of a call that was admitted."""
        try:
            response = service_pb.ForwardResponse()
            _write_admitted(run, response.events.add().admitted)
            if run.request.stream:
                yield response
                response = service_pb.ForwardResponse()
            while not run.attempts.has_served:
                batches = await self._next(run)
                with run.attempts:
                    try:
                        async for batch in batches:
                            if events := _take(run, batch):
                                yield service_pb.ForwardResponse(events=events)
                    finally:
                        await batches.aclose()
                    run.answer.require_end()
            response.events.extend(run.answer.remainder())
            charged = charged_of(await self._settle(run))
            run.answer.finish(response.events.add().finished, charged)
            yield response
        except BaseException as error:
            await self._broke(run, error)
            raise

    async def open(self, request: service_pb.ForwardRequest, call: Call) -> ForwardedRun:
        """Admits a call. Raises AnsweredEarlierError, and what the contract lists for a call that may not run."""
        try:
            profile = self.profile(request.model)
            prompt = read_native(request.body_json)
            _check(request, prompt, profile)
        except GatewayError as error:
            raise await self._admissions.at_fault(error, request.credential, call) from error
        self._settlement.require_room()
        order = Order(
            call_id=request.call_id,
            credential=request.credential,
            operation=OPERATION_GENERATE,
            profile=profile,
            bound=prompt.bound(profile, request.max_output_tokens),
            requested_model=request.model,
            application=request.application,
            idempotency_key=request.idempotency_key,
            body_sha256=request.body_sha256,
            max_output_tokens=profile.max_output_tokens,
        )
        opened = await self._admissions.open(order, call)
        answer = NativeAnswer(prompt.estimated_tokens, is_kept=bool(request.idempotency_key))
        attempts = Attempts(self._fleet, profile, Demand(opened.hold.account_id, opened.order.bound.rate_tokens))
        return ForwardedRun(call, opened, request, prompt, answer, attempts)

    def profile(self, model: str) -> Profile:
        """The entry of the company proxy that serves a model. Raises NotFoundError."""
        profile = self._current.catalogue.company_proxy.find(model)
        if profile is None:
            raise NotFoundError(f"model: {model} is not available here", metadata={"resource": "model"})
        return profile

    async def _next(self, run: ForwardedRun) -> NativeBatches:
        """The next attempt's answer. Fails over until content has left, and never after."""
        target = None if run.answer.has_delivered else await run.attempts.next()
        if target is None:
            raise run.attempts.error(delivered=run.answer.has_delivered)
        request = run.request
        # The model keeps the name that the caller gave it, unless the catalogue states what the upstream calls it.
        model = request.model if target.model == run.opened.profile.slug else target.model
        body = with_members(request.body_json, model=model, max_tokens=request.max_output_tokens, stream=request.stream)
        attempt = NativeAttempt(
            call_id=run.opened.order.call_id,
            attempt=run.answer.begin(target.name),
            target=target,
            body=body,
            is_stream=request.stream,
            version=request.anthropic_version,
            betas=request.anthropic_beta,
        )
        return self._upstreams[target.dialect].forward(attempt)

    # ---- the end of a call ----

    def _settle(self, run: ForwardedRun) -> Recorded:
        """The answer is whole."""
        ending = REFUSED if run.answer.was_refused else COMPLETE
        if not run.request.idempotency_key:
            return self._end(run, ending)
        whole = service_pb.ForwardResponse(events=run.answer.kept)
        run.answer.finish(whole.events.add().finished, None)
        return self._end(run, ending, kept_form(whole))

    async def _broke(self, run: ForwardedRun, error: BaseException) -> None:
        """Ends a call that did not come to its end."""
        if isinstance(error, GatewayError):
            await self._failed(run, error)
        elif run.is_settled:
            return
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self._left(run)
        else:  # a defect of ours
            self._end(run, ending_of_failure(delivered=run.answer.has_delivered))

    async def _failed(self, run: ForwardedRun, error: GatewayError) -> None:
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

    def _left(self, run: ForwardedRun) -> None:
        """The caller is gone. Nothing here waits: it may not be waited for any more."""
        ending = ending_of_cancellation(run.call.cancel_reason, delivered=run.answer.has_delivered)
        if ending is None or not run.attempts.made:
            self.void(run)
        else:
            self._end(run, ending)

    def void(self, run: ForwardedRun) -> None:
        """The call came to nothing."""
        run.is_settled = True
        self._settlement.void(run.opened)

    def _end(
        self, run: ForwardedRun, ending: "metering_pb.Ending.ValueType", kept: tuple[str, bytes] | None = None
    ) -> Recorded:
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


def _take(run: ForwardedRun, batch: Sequence[NativePiece]) -> list[pb.GenerationEvent]:
    had_delivered = run.answer.has_delivered
    events = run.answer.take(batch)
    if events and not had_delivered:
        now_s = asyncio.get_running_loop().time()
        metrics.first_content_s(run.opened.profile.slug).observe(now_s - run.call.started)
    return events


def _check(request: service_pb.ForwardRequest, prompt: NativePrompt, profile: Profile) -> None:
    """Raises what keeps a request from being forwarded: the rest is the upstream's to judge."""
    most = profile.max_output_tokens
    if not 1 <= request.max_output_tokens <= most:
        raise _invalid(
            "max_tokens", f"{request.max_output_tokens} is not within 1..{most}, which {profile.slug} allows"
        )
    if prompt.estimated_tokens > profile.context_tokens:
        raise context_too_long(profile, prompt.estimated_tokens)
    if prompt.searches and not profile.price.search_unit_nano_usd:
        raise _invalid("tools", f"web search has no price for {profile.slug}")


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {description}", violations=[FieldViolation(field, description)])


def _write_admitted(run: ForwardedRun, admitted: pb.Admitted) -> None:
    opened = run.opened
    admitted.call_id = opened.order.call_id
    admitted.account_id = opened.hold.account_id
    admitted.limits.CopyFrom(opened.limits)
    admitted.profile = opened.profile.slug
    admitted.estimated_input_tokens = run.prompt.estimated_tokens
    admitted.held_nano_usd = opened.hold.amount_nano_usd
