"""The catalogue, token counts and the upstreams of a replica, as seen over RPC."""

from pathlib import Path

import pytest
from mws.inference.v1 import catalog_service_pb2 as catalog_pb
from mws.inference.v1 import inference_service_pb2 as pb
from mws.inference.v1 import routing_service_pb2 as routing_pb

from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.runtime import errors
from tests.rpc.routing_and_inference.world import a_request, a_world, answers, raises, text

pytestmark = pytest.mark.anyio

DOWN = UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True, status=500)


async def test_profiles_come_in_pages_in_catalogue_order(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        slugs, token = [], ""
        for _ in range(3):
            page = await world.catalog.ListProfiles(
                catalog_pb.ListProfilesRequest(page_size=2, page_token=token), timeout=5.0
            )
            slugs += [profile.slug for profile in page.profiles]
            token = page.next_page_token

        assert (slugs, token) == (["plain", "single", "seer", "vectors", "ranks"], "")
        assert page.price_book_version in world.metering.books


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(catalog_pb.ListProfilesRequest(page_token="x"), id="a token of nobody's"),
        pytest.param(catalog_pb.ListProfilesRequest(page_size=1_001), id="too large a page"),
        pytest.param(catalog_pb.ListProfilesRequest(page_size=-1), id="less than nothing"),
    ],
)
async def test_a_page_that_cannot_be_is_refused(tmp_path: Path, request_: catalog_pb.ListProfilesRequest) -> None:
    async with a_world(tmp_path) as world:
        with pytest.raises(errors.InvalidRequestError):
            await world.catalog.ListProfiles(request_, timeout=5.0)


async def test_a_token_belongs_to_its_filter(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        page = await world.routing.ListUpstreams(routing_pb.ListUpstreamsRequest(page_size=1), timeout=5.0)
        with pytest.raises(errors.InvalidRequestError):
            await world.routing.ListUpstreams(
                routing_pb.ListUpstreamsRequest(page_token=page.next_page_token, profile="plain"), timeout=5.0
            )


async def test_a_profile_is_found_by_slug_and_alias_and_not_by_default(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        for name in ("plain", "claude-anything"):
            found = await world.catalog.GetProfile(catalog_pb.GetProfileRequest(model=name), timeout=5.0)
            assert (found.profile.slug, found.profile.is_default) == ("plain", True)
        seer = (await world.catalog.GetProfile(catalog_pb.GetProfileRequest(model="seer"), timeout=5.0)).profile
        assert (seer.capabilities.vision, seer.price.input_nano_usd, seer.context_tokens) == (True, 10, 20_000)
        with pytest.raises(errors.NotFoundError):
            await world.catalog.GetProfile(catalog_pb.GetProfileRequest(model="gpt-4o"), timeout=5.0)


async def test_tokens_are_counted_without_asking_anyone(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        generation = a_request().generation
        generation.max_output_tokens = 0  # not what is counted
        generation.messages[0].content.add().image.url = "https://example.test/cat.png"
        counts = [
            (
                await world.inference.CountTokens(
                    pb.CountTokensRequest(model=model, generation=generation), timeout=5.0
                )
            ).input_tokens
            for model in ("plain", "seer", "")
        ]

        assert counts == [3, 1_603, 3]
        assert (world.admission.asked, world.upstream.requests) == ([], [])


async def test_upstreams_tell_how_they_are_doing(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(DOWN), answers([text("Hi")])) as world:
        await world.generate(a_request())
        listed = await world.routing.ListUpstreams(routing_pb.ListUpstreamsRequest(profile="plain"), timeout=5.0)

        first, second = listed.upstreams
        assert (first.name, first.calls, first.failures, first.last_failure) == ("first", 1, 1, "http_500")
        assert first.HasField("last_failure_at")
        assert (second.name, second.calls, second.failures, second.in_flight) == ("second", 1, 0, 0)
        assert second.health == routing_pb.UPSTREAM_HEALTH_HEALTHY


async def test_a_drained_upstream_is_not_chosen_until_it_is_put_back(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        for drained, expected in ((True, "second"), (False, "first")):
            changed = await world.routing.SetUpstreamDrained(
                routing_pb.SetUpstreamDrainedRequest(profile="plain", upstream="first", drained=drained), timeout=5.0
            )
            await world.generate(a_request())
            assert (changed.upstream.health == routing_pb.UPSTREAM_HEALTH_DRAINED) is drained
            assert world.upstream.requests[-1].target.name == expected
        with pytest.raises(errors.NotFoundError):
            await world.routing.SetUpstreamDrained(
                routing_pb.SetUpstreamDrainedRequest(profile="plain", upstream="nobody"), timeout=5.0
            )


async def test_an_upstream_that_keeps_failing_is_left_alone(tmp_path: Path) -> None:
    async with a_world(tmp_path, raises(DOWN)) as world:
        for _ in range(5):
            with pytest.raises(errors.UpstreamUnavailableError):
                await world.generate(a_request())
        listed = await world.routing.ListUpstreams(routing_pb.ListUpstreamsRequest(profile="plain"), timeout=5.0)
        assert {upstream.health for upstream in listed.upstreams} == {routing_pb.UPSTREAM_HEALTH_BROKEN}

        asked = len(world.upstream.requests)
        with pytest.raises(errors.UpstreamUnavailableError) as caught:
            await world.generate(a_request())
        assert len(world.upstream.requests) == asked
        assert caught.value.retry_in is not None
