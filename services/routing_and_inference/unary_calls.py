"""The use cases `Embed` and `Rerank`: the same life as a generation's, with an answer in one piece.

Owns their rules and their bookkeeping; refuses to speak any upstream's dialect.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mws.admission.v1.admission_service_pb2 import OPERATION_EMBED, OPERATION_RERANK
from mws.common.v1.limits_pb2 import LimitsSnapshot
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import generation_pb2
from mws.inference.v1 import inference_service_pb2 as pb

from services.routing_and_inference import bounding
from services.routing_and_inference.admission import Admissions, AnsweredEarlierError, OpenCall, Order
from services.routing_and_inference.attempts import Attempts, context_too_long
from services.routing_and_inference.bounding import PromptSize, TextMeter
from services.routing_and_inference.catalog import Kind, Profile, UpstreamTarget
from services.routing_and_inference.current import CurrentCatalogue
from services.routing_and_inference.fleet import Demand, Fleet
from services.routing_and_inference.generation import profile_for
from services.routing_and_inference.ports import (
    Dialects,
    EmbeddingRequest,
    Kept,
    RerankRequest,
)
from services.routing_and_inference.replaying import KeptAnswers, kept_form, read_kept
from services.routing_and_inference.settlement import (
    COMPLETE,
    Ended,
    Settlement,
    charged_of,
    ending_of_cancellation,
    ending_of_failure,
)
from services.runtime.calls import Call
from services.runtime.errors import FieldViolation, GatewayError, IdempotencyKeyReusedError, InvalidRequestError

MAX_INPUTS = 2_048
MAX_DOCUMENTS = 1_000
MAX_DIMENSIONS = 65_536
MAX_NUMBERS = 8 * 1024 * 1024  # in all vectors of an answer: 32 MiB, below what a message may have

_Response = TypeVar("_Response", bound=pb.EmbedResponse | pb.RerankResponse)
_Attempt = Callable[[UpstreamTarget, int], Awaitable[_Response]]


@dataclass(frozen=True, slots=True)
class _Served:
    """Who answered, as the usage event names it."""

    upstream: str
    attempt: int


class UnaryCalls:
    """Runs embedding and rerank calls."""

    def __init__(
        self,
        current: CurrentCatalogue,
        dialects: Dialects,
        fleet: Fleet,
        admissions: Admissions,
        settlement: Settlement,
        answers: KeptAnswers,
    ) -> None:
        self._current = current
        self._dialects = dialects
        self._fleet = fleet
        self._admissions = admissions
        self._settlement = settlement
        self._answers = answers
        self._running: set[asyncio.Task[Any]] = set()

    async def finish(self) -> None:
        """Waits for the calls under idempotency keys that go on without their callers."""
        while self._running:
            await asyncio.wait(self._running)

    async def embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        """Vectors in input order."""
        try:
            profile = profile_for(self._current.catalogue, request.model, Kind.EMBEDDING)
            inputs = _read_inputs(request, profile)
        except GatewayError as error:
            raise await self._admissions.at_fault(error, request.credential, call) from error
        token_ids = sum(map(len, inputs.token_ids))
        bound = bounding.bound_embedding(profile.price, inputs.size, token_ids)
        opened = await self._open(request, call, (OPERATION_EMBED, profile, bound), pb.EmbedResponse())
        if isinstance(opened, pb.EmbedResponse):
            return opened

        async def attempt(target: UpstreamTarget, number: int) -> tuple[pb.EmbedResponse, TokenUsage | None]:
            result = await self._dialects.embedding[target.dialect].embed(
                EmbeddingRequest(
                    call_id=request.call_id,
                    attempt=number,
                    texts=inputs.texts,
                    token_ids=inputs.token_ids,
                    dimensions=request.dimensions if request.HasField("dimensions") else None,
                    profile=profile,
                    target=target,
                )
            )
            response = pb.EmbedResponse(embeddings=[pb.Embedding(vector_f32le=vector) for vector in result.vectors])
            reported = None if result.input_tokens is None else TokenUsage(input_tokens=result.input_tokens)
            return response, reported

        estimated = TokenUsage(input_tokens=bound.rate_tokens, output_tokens=0)
        return await self._run(opened, call, attempt, estimated)

    async def rerank(self, request: pb.RerankRequest, call: Call) -> pb.RerankResponse:
        """Documents, best first."""
        try:
            profile = profile_for(self._current.catalogue, request.model, Kind.RERANK)
            size = _read_documents(request)
        except GatewayError as error:
            raise await self._admissions.at_fault(error, request.credential, call) from error
        bound = bounding.bound_rerank(profile.price, size, len(request.documents))
        opened = await self._open(request, call, (OPERATION_RERANK, profile, bound), pb.RerankResponse())
        if isinstance(opened, pb.RerankResponse):
            return opened
        units = bounding.search_units(len(request.documents))
        most = len(request.documents)

        async def attempt(target: UpstreamTarget, number: int) -> tuple[pb.RerankResponse, TokenUsage | None]:
            result = await self._dialects.rerank[target.dialect].rerank(
                RerankRequest(
                    call_id=request.call_id,
                    attempt=number,
                    query=request.query,
                    documents=list(request.documents),
                    top_n=min(request.top_n, most) if request.HasField("top_n") else most,
                    profile=profile,
                    target=target,
                )
            )
            response = pb.RerankResponse()
            for document in result.ranking:
                response.results.add(index=document.index, relevance_score=document.relevance_score)
            # Search units are counted by our own rule, whatever the upstream calls one.
            reported = TokenUsage(search_units=units)
            if result.input_tokens is not None:
                reported.input_tokens = result.input_tokens
            return response, reported

        estimated = TokenUsage(input_tokens=bound.rate_tokens, output_tokens=0, search_units=units)
        return await self._run(opened, call, attempt, estimated)

    async def _open(
        self,
        request: pb.EmbedRequest | pb.RerankRequest,
        call: Call,
        what: tuple[int, Profile, bounding.Bound],
        response: _Response,
    ) -> OpenCall | _Response:
        """Admits the call. A response instead: what an earlier call of the same idempotency key came to."""
        operation, profile, bound = what
        self._settlement.require_room()
        order = Order(
            call_id=request.call_id,
            credential=request.credential,
            operation=operation,  # type: ignore[arg-type] # enum numbers are ints at run time
            profile=profile,
            bound=bound,
            requested_model=request.model,
            application=request.application,
            idempotency_key=request.idempotency_key,
            body_sha256=request.body_sha256,
        )
        key = request.idempotency_key, request.body_sha256
        try:
            opened = await self._admissions.open(order, call)
        except AnsweredEarlierError as earlier:
            kept = await self._answers.find(earlier.account_id, *key)
            if kept is None:
                raise IdempotencyKeyReusedError(
                    "the answer under the idempotency key is not kept any more", details=[earlier.limits]
                ) from None
            return _replayed(kept, response, earlier.limits)
        if not request.idempotency_key:
            return opened
        try:
            kept = await self._answers.find(opened.hold.account_id, *key)
        except BaseException:
            self._settlement.void(opened)
            raise
        if kept is None:
            return opened
        self._settlement.void(opened)
        return _replayed(kept, response, opened.limits)

    async def _run(
        self,
        opened: OpenCall,
        call: Call,
        attempt: Callable[[UpstreamTarget, int], Awaitable[tuple[_Response, TokenUsage | None]]],
        estimated: TokenUsage,
    ) -> _Response:
        """Runs a call; under an idempotency key to its end, even if its caller leaves."""
        running = self._run_once(opened, call, attempt, estimated)
        if not opened.order.idempotency_key:
            return await running
        task = asyncio.get_running_loop().create_task(running, name="keyed call")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _run_once(
        self,
        opened: OpenCall,
        call: Call,
        attempt: Callable[[UpstreamTarget, int], Awaitable[tuple[_Response, TokenUsage | None]]],
        estimated: TokenUsage,
    ) -> _Response:
        """Calls upstreams until one answers, and settles the call however it ends."""
        attempts = Attempts(self._fleet, opened.profile, Demand(opened.hold.account_id, opened.order.bound.rate_tokens))
        nothing = TokenUsage(input_tokens=estimated.input_tokens, output_tokens=0)
        try:
            result, reported, served = await _first_answer(attempts, attempt)
        except GatewayError as error:
            if attempts.made:
                await self._settlement.settle(opened, Ended(ending_of_failure(delivered=False), nothing))
            else:
                self._settlement.void(opened)
            failure = generation_pb2.GenerationFailure(attempts=attempts.made)
            error.details = (*error.details, opened.limits, failure)
            raise
        except asyncio.CancelledError:
            ending = ending_of_cancellation(call.cancel_reason, delivered=False)
            if ending is None or not attempts.made:
                self._settlement.void(opened)
            else:
                self._settlement.settle(opened, Ended(ending, estimated))
            raise
        except BaseException:
            self._settlement.settle(opened, Ended(ending_of_failure(delivered=False), nothing))
            raise
        result.usage.CopyFrom(estimated)
        result.usage.MergeFrom(reported or TokenUsage())
        result.profile = opened.profile.slug
        call.note(upstream=served.upstream, input_tokens=result.usage.input_tokens)
        ended = Ended(
            COMPLETE,
            estimated,
            reported,
            upstream=served.upstream,
            attempt=served.attempt,
            upstream_accepted=True,
            kept=kept_form(result) if opened.order.idempotency_key else None,
        )
        charged = charged_of(await self._settlement.settle(opened, ended))
        result.limits.CopyFrom(opened.limits)
        if charged is not None:
            result.charged_nano_usd = charged
        return result


def _replayed(kept: Kept, response: _Response, limits: LimitsSnapshot) -> _Response:
    read_kept(kept, response).limits.CopyFrom(limits)
    return response


async def _first_answer(
    attempts: Attempts, attempt: Callable[[UpstreamTarget, int], Awaitable[tuple[_Response, TokenUsage | None]]]
) -> tuple[_Response, TokenUsage | None, _Served]:
    number = 0
    while (target := await attempts.next()) is not None:
        number += 1
        with attempts:
            result, reported = await attempt(target, number)
            return result, reported, _Served(target.name, number)
    raise attempts.error(delivered=False)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What is to be embedded: texts or lists of token ids, never both."""

    texts: list[str]
    token_ids: list[list[int]]
    size: PromptSize


def _read_inputs(request: pb.EmbedRequest, profile: Profile) -> _Inputs:
    if not 1 <= len(request.inputs) <= MAX_INPUTS:
        raise _invalid("inputs", f"1 to {MAX_INPUTS} inputs are needed")
    if request.HasField("dimensions"):
        _check_dimensions(request)
    kinds = {item.WhichOneof("kind") for item in request.inputs}
    if len(kinds) > 1 or None in kinds:
        raise _invalid("inputs", "must all be texts, or all be lists of token ids")
    meter = TextMeter()
    texts: list[str] = []
    token_ids: list[list[int]] = []
    for index, item in enumerate(request.inputs):
        if kinds == {"text"}:
            texts.append(_read_text(index, item))
            meter.add(item.text)
            tokens = bounding.estimated_tokens(len(item.text))
        else:
            token_ids.append(_read_ids(index, item))
            tokens = len(token_ids[-1])
        if 0 < profile.context_tokens < tokens:
            raise context_too_long(profile, tokens)
    return _Inputs(texts, token_ids, PromptSize(meter.ascii_characters, meter.other_characters))


def _check_dimensions(request: pb.EmbedRequest) -> None:
    if not 1 <= request.dimensions <= MAX_DIMENSIONS:
        raise _invalid("dimensions", f"must be 1 to {MAX_DIMENSIONS}")
    if len(request.inputs) * request.dimensions > MAX_NUMBERS:
        raise _invalid("dimensions", f"times the inputs, may be at most {MAX_NUMBERS} numbers in all")


def _read_text(index: int, item: pb.EmbedInput) -> str:
    if not item.text:
        raise _invalid(f"inputs[{index}].text", "must not be empty")
    return item.text


def _read_ids(index: int, item: pb.EmbedInput) -> list[int]:
    ids = list(item.token_ids.ids)
    if not ids or min(ids) < 0:
        raise _invalid(f"inputs[{index}].token_ids", "at least one, each 0 or more")
    return ids


def _read_documents(request: pb.RerankRequest) -> PromptSize:
    if not request.query:
        raise _invalid("query", "must not be empty")
    if not 1 <= len(request.documents) <= MAX_DOCUMENTS:
        raise _invalid("documents", f"1 to {MAX_DOCUMENTS} documents are needed")
    if request.HasField("top_n") and request.top_n < 1:
        raise _invalid("top_n", "must be at least 1")
    meter = TextMeter()
    meter.add(request.query)
    for document in request.documents:
        meter.add(document)
    return PromptSize(meter.ascii_characters, meter.other_characters)


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {description}", violations=[FieldViolation(field, description)])
