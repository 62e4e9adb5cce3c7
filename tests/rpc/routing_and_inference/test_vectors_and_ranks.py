"""`Embed` and `Rerank` as their callers see them."""

import asyncio
from pathlib import Path

import pytest
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.common.v1.token_usage_pb2 import TokenUsage
from mws.inference.v1 import inference_service_pb2 as pb
from mws.metering.v1 import metering_service_pb2 as metering_pb

from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.runtime import errors
from services.runtime.ids import new_id
from tests.rpc.routing_and_inference.world import CHARGED, KEY, LIMITS, World, a_world, until

pytestmark = pytest.mark.anyio

DOWN = UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True, status=500)


def texts(*values: str) -> list[pb.EmbedInput]:
    return [pb.EmbedInput(text=value) for value in values]


def embed(*inputs: pb.EmbedInput, **fields: object) -> pb.EmbedRequest:
    request = pb.EmbedRequest(call_id=new_id(), credential=KEY, inputs=inputs)
    request.MergeFrom(pb.EmbedRequest(**fields))  # type: ignore[arg-type]
    return request


def rerank(*documents: str, query: str = "q", **fields: object) -> pb.RerankRequest:
    request = pb.RerankRequest(call_id=new_id(), credential=KEY, query=query, documents=documents)
    request.MergeFrom(pb.RerankRequest(**fields))  # type: ignore[arg-type]
    return request


async def test_vectors_come_back_in_order_with_usage_and_limits(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = embed(*texts("one", "two"), model="text-embedding-3-small", dimensions=1)
        response = await world.inference.Embed(request, timeout=5.0)

        assert len(response.embeddings) == 2
        assert (response.usage.input_tokens, response.profile, response.limits) == (7, "vectors", LIMITS)
        assert response.charged_nano_usd == CHARGED
        event = world.event_of(request)
        assert (event.ending, event.operation, event.profile) == (metering_pb.ENDING_COMPLETE, "embed", "vectors")
        assert event.reported == TokenUsage(input_tokens=7)
        asked = world.admission.asked[0]
        assert (asked.operation, asked.amount_nano_usd) == (admission_pb.OPERATION_EMBED, 2 * 2)
        assert world.vectors.embedded[0].dimensions == 1
        await until(lambda: request.call_id in world.admission.finished)


async def test_lists_of_token_ids_are_passed_on(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = embed(pb.EmbedInput(token_ids=pb.TokenIds(ids=[1, 2, 3])))
        await world.inference.Embed(request, timeout=5.0)

        assert world.vectors.embedded[0].token_ids == [[1, 2, 3]]
        assert world.admission.asked[0].amount_nano_usd == 3 * 2


async def test_a_ranking_is_charged_by_hundreds_of_documents(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = rerank(*["d"] * 101, top_n=2)
        response = await world.inference.Rerank(request, timeout=5.0)

        assert [result.index for result in response.results] == [0, 1]
        assert (response.usage.search_units, response.usage.input_tokens) == (2, 9)
        assert world.admission.asked[0].amount_nano_usd == 2 * 1_000
        event = world.event_of(request)
        assert (event.reported.search_units, event.delivered.search_units, event.operation) == (2, 2, "rerank")


async def test_more_results_than_documents_are_all_of_them(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        response = await world.inference.Rerank(rerank("a", "b", top_n=10), timeout=5.0)

        assert len(response.results) == 2


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        pytest.param("Embed", embed(), "inputs", id="nothing to embed"),
        pytest.param("Embed", embed(*texts("")), "inputs[0].text", id="an empty text"),
        pytest.param("Embed", embed(pb.EmbedInput()), "inputs", id="an input without a kind"),
        pytest.param(
            "Embed", embed(*texts("a"), pb.EmbedInput(token_ids=pb.TokenIds(ids=[1]))), "inputs", id="two kinds"
        ),
        pytest.param(
            "Embed", embed(pb.EmbedInput(token_ids=pb.TokenIds(ids=[-1]))), "inputs[0].token_ids", id="a negative id"
        ),
        pytest.param("Embed", embed(*texts("a"), dimensions=0), "dimensions", id="no dimensions"),
        pytest.param("Embed", embed(*texts("a"), dimensions=2**31 - 1), "dimensions", id="more than memory holds"),
        pytest.param("Embed", embed(*texts(*"a" * 200), dimensions=65_536), "dimensions", id="too much in all"),
        pytest.param("Rerank", rerank(), "documents", id="nothing to rank"),
        pytest.param("Rerank", rerank("a", query=""), "query", id="no query"),
        pytest.param("Rerank", rerank("a", top_n=0), "top_n", id="no results"),
    ],
)
async def test_a_broken_rule_names_its_field(tmp_path: Path, method: str, request_: object, field: str) -> None:
    async with a_world(tmp_path) as world:
        with pytest.raises(errors.InvalidRequestError) as caught:
            await getattr(world.inference, method)(request_, timeout=5.0)

        assert [violation.field for violation in caught.value.violations] == [field]
        assert caught.value.limits == LIMITS
        assert world.admission.asked == []


async def test_a_text_over_the_context_is_refused(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        with pytest.raises(errors.ContextTooLongError):
            await world.inference.Embed(embed(*texts("x" * (512 * 4 + 1))), timeout=5.0)


async def test_an_upstream_that_fails_is_replaced(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.vectors.failures = [DOWN]
        request = embed(*texts("a"))
        await world.inference.Embed(request, timeout=5.0)

        assert [made.target.name for made in world.vectors.embedded] == ["first", "second"]
        assert (world.event_of(request).upstream, world.event_of(request).attempt) == ("second", 2)


async def test_a_failure_of_all_is_recorded_without_a_charge(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.vectors.failures = [DOWN] * 4
        request = embed(*texts("a"))
        with pytest.raises(errors.UpstreamUnavailableError) as caught:
            await world.inference.Embed(request, timeout=5.0)

        assert world.event_of(request).ending == metering_pb.ENDING_FAILED_BEFORE_CONTENT
        assert caught.value.limits == LIMITS


async def _leave(world: World, request: pb.EmbedRequest) -> None:
    call = asyncio.ensure_future(world.inference.Embed(request, timeout=5.0))
    await until(lambda: len(world.vectors.embedded) == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_caller_that_leaves_is_recorded_as_gone(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:

        async def hang(request: object) -> None:
            world.vectors.embedded.append(request)  # type: ignore[arg-type]
            await asyncio.Event().wait()

        world.vectors.embed = hang  # type: ignore[method-assign,assignment]
        request = embed(*texts("a"))
        await _leave(world, request)
        await until(lambda: request.call_id in world.metering.posted)

        assert world.event_of(request).ending == metering_pb.ENDING_CLIENT_LEFT_BEFORE_CONTENT
