"""The upstream that needs no provider: answers, embeds and ranks by itself, at the pace of the profile.

Owns pace and sending; what is said comes from `simulated_answer`, vectors from `simulated_features`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.ports import (
    EmbeddingRequest,
    EmbeddingResult,
    RankedDocument,
    RerankRequest,
    RerankResult,
    UpstreamRequest,
)
from services.routing_and_inference.upstreams import simulated_features
from services.routing_and_inference.upstreams.exchange import started
from services.routing_and_inference.upstreams.simulated_answer import MadeAnswer, MadeCall, answer, estimate

_TICK_S = 0.02  # between two batches of a paced stream
_CHARACTERS_PER_TOKEN = 4
_PIECE = 24  # characters of a delta
_DOCUMENTS_PER_UNIT = 100


class SimulatedChat:
    """Implements `Upstream`. `instant`: streams do not wait between their pieces."""

    def __init__(self, *, instant: bool = False) -> None:
        self._instant = instant

    async def generate(self, request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        made = answer(request.generation, thinks=request.profile.capabilities.thinking)
        speed = 0.0 if self._instant or not request.generation.stream else _speed(request)
        if speed <= 0:
            yield [started(request), *_events(made, request), _finished(made)]
            return
        batch = [started(request)]
        due = asyncio.get_running_loop().time()
        pending = 0
        for event in _events(made, request):
            batch.append(event)
            pending += _length(event)
            if pending >= speed * _CHARACTERS_PER_TOKEN * _TICK_S:
                yield batch
                due += pending / (speed * _CHARACTERS_PER_TOKEN)
                batch, pending = [], 0
                await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0))
        yield [*batch, _finished(made)]


class SimulatedEmbedder:
    """Implements `EmbeddingUpstream`."""

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        dimensions = request.dimensions or request.profile.dimensions or simulated_features.DEFAULT_DIMENSIONS
        weights = [simulated_features.features(text) for text in request.texts]
        weights += [simulated_features.features_of_ids(ids) for ids in request.token_ids]
        vectors = []
        for weight in weights:
            vectors.append(simulated_features.vector(weight, dimensions))
            await asyncio.sleep(0)  # a long batch must not hold up the process's other calls
        tokens = sum(estimate(len(text)) for text in request.texts) + sum(len(ids) for ids in request.token_ids)
        return EmbeddingResult(vectors, max(tokens, 1))


class SimulatedRanker:
    """Implements `RerankUpstream`."""

    async def rerank(self, request: RerankRequest) -> RerankResult:
        query = simulated_features.features(request.query)
        scores = []
        for document in request.documents:
            scores.append(simulated_features.similarity(query, simulated_features.features(document)))
            await asyncio.sleep(0)
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        tokens = estimate(len(request.query) * len(request.documents) + sum(map(len, request.documents)))
        return RerankResult(
            ranking=[RankedDocument(index, scores[index]) for index in order[: request.top_n]],
            input_tokens=max(tokens, 1),
            search_units=-(-len(request.documents) // _DOCUMENTS_PER_UNIT),
        )


def _speed(request: UpstreamRequest) -> float:
    stated = request.target.options.get("tokens_per_second", request.profile.tokens_per_second)
    return float(stated) if isinstance(stated, int | float) else 0.0


def _events(made: MadeAnswer, request: UpstreamRequest) -> Iterator[GenerationEvent]:
    for piece in _pieces(made.thinking):
        event = GenerationEvent()
        event.thinking_delta.text = piece
        yield event
    for piece in _pieces(made.text):
        event = GenerationEvent()
        event.text_delta.text = piece
        yield event
    for position, call in enumerate(made.calls):
        yield from _call_events(call, f"call_{request.call_id.replace('-', '')[-20:]}_{position}")


def _call_events(call: MadeCall, call_id: str) -> Iterator[GenerationEvent]:
    event = GenerationEvent()
    event.tool_call_started.id = call_id
    event.tool_call_started.name = call.name
    yield event
    for piece in _pieces(call.arguments_json):
        event = GenerationEvent()
        event.tool_call_delta.arguments_json = piece
        yield event


def _pieces(text: str) -> Iterator[str]:
    return (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))


def _length(event: GenerationEvent) -> int:
    return len(event.text_delta.text) + len(event.thinking_delta.text) + len(event.tool_call_delta.arguments_json)


def _finished(made: MadeAnswer) -> GenerationEvent:
    event = GenerationEvent()
    event.finished.reason = made.reason
    event.finished.stop_sequence = made.stop_sequence
    event.finished.usage.input_tokens = made.input_tokens
    event.finished.usage.output_tokens = made.output_tokens
    if made.thinking:
        event.finished.usage.reasoning_tokens = made.reasoning_tokens
    return event
