"""The other processes as the edge sees them: the few calls it makes, with their timeouts.

Owns request building around those calls; refuses to retry and to interpret failures.
"""

import time
from collections.abc import AsyncIterator, Generator, Sequence
from typing import Any, Protocol, TypeVar

import grpc
from mws.admission.v1 import admission_service_pb2 as admission_pb
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub
from mws.common.v1.credential_pb2 import Credential
from mws.inference.v1 import catalog_service_pb2 as catalog_pb
from mws.inference.v1 import forward_service_pb2 as forward_pb
from mws.inference.v1 import inference_service_pb2 as inference_pb
from mws.inference.v1.catalog_service_pb2_grpc import CatalogServiceStub
from mws.inference.v1.forward_service_pb2_grpc import ForwardServiceStub
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from edge.ask import Ask
from services.runtime.calls import CancelReason
from services.runtime.errors import GatewayError, InvalidCredentialError

T_co = TypeVar("T_co", covariant=True)
_QUICK_S = 2.0
_COUNT_S = 10.0
_EMBED_S = 120.0
_PAGE_SIZE = 1000


class GenerateCall(Protocol):
    """A running Generate."""

    def __aiter__(self) -> AsyncIterator[inference_pb.GenerateResponse]: ...

    def cancel(self, reason: CancelReason = ...) -> bool: ...


class UnaryCall(Protocol[T_co]):
    """A running call with one response."""

    def __await__(self) -> Generator[Any, None, T_co]: ...

    def cancel(self, reason: CancelReason = ...) -> bool: ...


class Admission:
    """auth-and-limits, as far as the edge needs it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = AdmissionServiceStub(channel)

    async def answers(self) -> bool:
        """Whether it decides at all: about a key that nobody can have."""
        try:
            await self.get_limits(bytes(32))
        except InvalidCredentialError:
            return True
        except GatewayError:
            return False
        return True

    async def get_limits(self, key_digest: bytes) -> admission_pb.GetLimitsResponse:
        """Who pays, and the limits now; takes nothing."""
        request = admission_pb.GetLimitsRequest()
        request.credential.api_key_sha256 = key_digest
        return await self._stub.GetLimits(request, timeout=_QUICK_S)

    async def limits_of(self, credential: Credential) -> admission_pb.GetLimitsResponse:
        """The same for a credential of any kind."""
        return await self._stub.GetLimits(admission_pb.GetLimitsRequest(credential=credential), timeout=_QUICK_S)


class Inference:
    """routing-and-inference."""

    def __init__(self, channel: grpc.aio.Channel, *, generate_timeout_s: float, catalog_ttl_s: float) -> None:
        self._stub = InferenceServiceStub(channel)
        self._forwarding = ForwardServiceStub(channel)
        self._catalog = CatalogServiceStub(channel)
        self._generate_timeout_s = generate_timeout_s
        self._catalog_ttl_s = catalog_ttl_s
        self._profiles: Sequence[catalog_pb.Profile] = ()
        self._profiles_until = 0.0

    def generate(self, request: inference_pb.GenerateRequest) -> GenerateCall:
        """Starts a call; its failures are raised while it is read."""
        call: GenerateCall = self._stub.Generate(request, timeout=self._generate_timeout_s)  # type: ignore[assignment]
        return call

    def forward(self, request: forward_pb.ForwardRequest) -> GenerateCall:
        """Starts a forwarded call; its responses have the members of a Generate's."""
        call: GenerateCall = self._forwarding.Forward(request, timeout=self._generate_timeout_s)  # type: ignore[assignment]
        return call

    async def count_tokens(self, ask: Ask) -> int:
        """The prompt's estimate."""
        request = inference_pb.CountTokensRequest(model=ask.model, generation=ask.generation, dialect=ask.dialect)
        return (await self._stub.CountTokens(request, timeout=_COUNT_S)).input_tokens

    def embed(self, request: inference_pb.EmbedRequest) -> UnaryCall[inference_pb.EmbedResponse]:
        """Turns texts into vectors."""
        return self._stub.Embed(request, timeout=_EMBED_S)  # type: ignore[return-value]  # as `connect` makes them

    def rerank(self, request: inference_pb.RerankRequest) -> UnaryCall[inference_pb.RerankResponse]:
        """Ranks documents."""
        return self._stub.Rerank(request, timeout=_EMBED_S)  # type: ignore[return-value]  # as `connect` makes them

    async def profiles(self) -> Sequence[catalog_pb.Profile]:
        """The generation profiles in catalogue order; a few seconds old at most."""
        if time.monotonic() >= self._profiles_until:
            self._profiles = await self._read_profiles()
            self._profiles_until = time.monotonic() + self._catalog_ttl_s
        return self._profiles

    async def _read_profiles(self) -> list[catalog_pb.Profile]:
        found: list[catalog_pb.Profile] = []
        token = ""
        while True:
            page = await self._catalog.ListProfiles(
                catalog_pb.ListProfilesRequest(page_size=_PAGE_SIZE, page_token=token), timeout=_QUICK_S
            )
            kinds = (catalog_pb.PROFILE_KIND_GENERATION, catalog_pb.PROFILE_KIND_UNSPECIFIED)
            found.extend(profile for profile in page.profiles if profile.kind in kinds)
            token = page.next_page_token
            if not token:
                return found

    async def profile(self, model: str) -> catalog_pb.Profile:
        """The profile that a slug or an alias names. Raises NotFoundError."""
        return (await self._catalog.GetProfile(catalog_pb.GetProfileRequest(model=model), timeout=_QUICK_S)).profile
