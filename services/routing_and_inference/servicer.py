"""The RPCs of inference: decode, one use case, encode.

Owns the translation between contract and use cases; refuses to decide anything.
"""

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from mws.inference.v1 import catalog_service_pb2 as catalog_pb
from mws.inference.v1 import inference_service_pb2 as pb
from mws.inference.v1 import routing_service_pb2 as routing_pb
from mws.inference.v1.catalog_service_pb2_grpc import CatalogServiceServicer
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer
from mws.inference.v1.routing_service_pb2_grpc import RoutingServiceServicer

from services.routing_and_inference.catalog import Kind, Profile
from services.routing_and_inference.current import CurrentCatalogue
from services.routing_and_inference.fleet import Fleet, UpstreamState
from services.routing_and_inference.generation import Generator, profile_for
from services.routing_and_inference.keyed_calls import KeyedCalls
from services.routing_and_inference.pages import page_of
from services.routing_and_inference.prompt import read_prompt
from services.routing_and_inference.unary_calls import UnaryCalls
from services.runtime.calls import call_of
from services.runtime.errors import NotFoundError

_KINDS = {
    Kind.GENERATION: catalog_pb.PROFILE_KIND_GENERATION,
    Kind.EMBEDDING: catalog_pb.PROFILE_KIND_EMBEDDING,
    Kind.RERANK: catalog_pb.PROFILE_KIND_RERANK,
}


class InferenceServicer(InferenceServiceServicer):
    """Runs calls."""

    def __init__(
        self, current: CurrentCatalogue, generator: Generator, keyed_calls: KeyedCalls, unary_calls: UnaryCalls
    ) -> None:
        self._current = current
        self._generator = generator
        self._keyed_calls = keyed_calls
        self._unary_calls = unary_calls

    def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        runner = self._keyed_calls if request.idempotency_key else self._generator
        return runner.generate(request, call_of(context))

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        return await self._unary_calls.embed(request, call_of(context))

    async def Rerank(self, request: pb.RerankRequest, context: Any) -> pb.RerankResponse:
        return await self._unary_calls.rerank(request, call_of(context))

    async def CountTokens(self, request: pb.CountTokensRequest, context: Any) -> pb.CountTokensResponse:
        profile = profile_for(self._current.catalogue, request.model, Kind.GENERATION)
        request.generation.ClearField("max_output_tokens")  # nothing is generated: a 0, which Generate refuses, is fine
        prompt = read_prompt(request.generation, has_vision=profile.capabilities.vision)
        return pb.CountTokensResponse(input_tokens=prompt.estimated_tokens)


class CatalogServicer(CatalogServiceServicer):
    """Shows the catalogue."""

    def __init__(self, current: CurrentCatalogue) -> None:
        self._current = current

    async def ListProfiles(
        self, request: catalog_pb.ListProfilesRequest, context: Any
    ) -> catalog_pb.ListProfilesResponse:
        version = self._current.book.version
        profiles, next_page_token = page_of(
            self._current.catalogue.profiles, request.page_size, request.page_token, version
        )
        return catalog_pb.ListProfilesResponse(
            profiles=[self._profile_to_pb(profile) for profile in profiles],
            next_page_token=next_page_token,
            price_book_version=version,
        )

    async def GetProfile(self, request: catalog_pb.GetProfileRequest, context: Any) -> catalog_pb.GetProfileResponse:
        profile = self._current.catalogue.find(request.model)
        if profile is None:
            raise NotFoundError("no profile has this name or alias", metadata={"resource": "profile"})
        return catalog_pb.GetProfileResponse(profile=self._profile_to_pb(profile))

    def _profile_to_pb(self, profile: Profile) -> catalog_pb.Profile:
        price, can = profile.price, profile.capabilities
        return catalog_pb.Profile(
            slug=profile.slug,
            display_name=profile.display_name,
            kind=_KINDS[profile.kind],
            context_tokens=profile.context_tokens,
            max_output_tokens=profile.max_output_tokens,
            price=catalog_pb.Price(
                input_nano_usd=price.input_nano_usd,
                output_nano_usd=price.output_nano_usd,
                cache_read_nano_usd=price.cache_read_nano_usd,
                cache_write_5m_nano_usd=price.cache_write_5m_nano_usd,
                cache_write_1h_nano_usd=price.cache_write_1h_nano_usd,
                search_unit_nano_usd=price.search_unit_nano_usd,
            ),
            capabilities=catalog_pb.Capabilities(
                vision=can.vision, tools=can.tools, thinking=can.thinking, prefill=can.prefill
            )
            if profile.kind is Kind.GENERATION
            else None,
            tokens_per_second=profile.tokens_per_second,
            is_default=self._current.catalogue.is_default(profile),
        )


class RoutingServicer(RoutingServiceServicer):
    """Shows the upstreams of this replica, and drains them by hand."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def ListUpstreams(
        self, request: routing_pb.ListUpstreamsRequest, context: Any
    ) -> routing_pb.ListUpstreamsResponse:
        states, next_page_token = page_of(
            self._fleet.states(request.profile), request.page_size, request.page_token, request.profile
        )
        return routing_pb.ListUpstreamsResponse(
            upstreams=[_upstream_to_pb(state) for state in states], next_page_token=next_page_token
        )

    async def SetUpstreamDrained(
        self, request: routing_pb.SetUpstreamDrainedRequest, context: Any
    ) -> routing_pb.SetUpstreamDrainedResponse:
        state = self._fleet.find(request.profile, request.upstream)
        if state is None:
            raise NotFoundError("no such upstream", metadata={"resource": "upstream"})
        state.is_drained = request.drained
        return routing_pb.SetUpstreamDrainedResponse(upstream=_upstream_to_pb(state))


def _health_of(state: UpstreamState) -> "routing_pb.UpstreamHealth.ValueType":
    if state.is_drained:
        return routing_pb.UPSTREAM_HEALTH_DRAINED
    if state.circuit.is_broken:
        return routing_pb.UPSTREAM_HEALTH_BROKEN
    return routing_pb.UPSTREAM_HEALTH_HEALTHY if state.calls else routing_pb.UPSTREAM_HEALTH_UNSPECIFIED


def _upstream_to_pb(state: UpstreamState) -> routing_pb.Upstream:
    failed_at_us = state.last_failure_at_us
    return routing_pb.Upstream(
        profile=state.profile.slug,
        name=state.target.name,
        dialect=state.target.dialect,
        priority=state.target.priority,
        weight=state.target.weight,
        health=_health_of(state),
        in_flight=state.in_flight,
        calls=state.calls,
        failures=state.failures,
        last_failure_at=None
        if failed_at_us is None
        else Timestamp(seconds=failed_at_us // 1_000_000, nanos=failed_at_us % 1_000_000 * 1_000),
        last_failure=state.last_failure,
    )
