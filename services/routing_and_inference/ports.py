"""What this service needs from the world: upstreams to call, a place for usage, the hold of a call.

Owns the promises; holds no code. Events are the contract's own messages: translating them twice would cost too much.
"""

import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import msgspec
from mws.inference.v1 import generation_pb2 as generation_pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference.catalog import Profile, UpstreamTarget

if TYPE_CHECKING:
    from services.routing_and_inference.native import NativeUpstream  # its module is made of the ones below

__all__ = [
    "Dialects",
    "EmbeddingRequest",
    "EmbeddingResult",
    "EmbeddingUpstream",
    "FailureKind",
    "Kept",
    "RankedDocument",
    "RerankRequest",
    "RerankResult",
    "RerankUpstream",
    "Upstream",
    "UpstreamFailure",
    "UpstreamRequest",
    "UpstreamTarget",
]


class FailureKind(enum.StrEnum):
    """How an upstream failed."""

    REJECTED = "rejected"  # it refused the request itself (400, 413, 422): another upstream would too
    CONTEXT_TOO_LONG = "context_too_long"  # the same, since the prompt is too long
    OVERLOADED = "overloaded"  # 408, 409, 425, 429, 529: it cannot now
    UNAVAILABLE = "unavailable"  # 5xx, refused connection, 401/402/403/404 (ours to fix): it cannot
    TIMEOUT = "timeout"  # it did not answer in time
    CUT = "cut"  # its answer broke off
    MALFORMED = "malformed"  # its answer cannot be read
    CONTRADICTION = "contradiction"  # asked again, it says something else than what has left already


class UpstreamFailure(Exception):  # noqa: N818 - a fact about an upstream, not yet an error of ours
    """One attempt failed.

    `retryable`: another upstream may well serve the same request. `status`: the HTTP status, 0 when there was none.
    `accepted`: the upstream had answered with a 2xx head. `message`: for the end user of a REJECTED request, cleaned by
    the adapter (no keys, URLs or organisation ids); empty otherwise.
    """

    def __init__(
        self,
        kind: FailureKind,
        *,
        retryable: bool,
        retry_in: timedelta | None = None,
        status: int = 0,
        accepted: bool = False,
        message: str = "",
    ) -> None:
        super().__init__(kind.value)
        self.kind = kind
        self.retryable = retryable
        self.retry_in = retry_in
        self.status = status
        self.accepted = accepted
        self.message = message


class UpstreamRequest(msgspec.Struct, frozen=True, eq=False):
    """One attempt of a call.

    `generation` is already adapted to the profile: images are dropped where it has no vision, `max_output_tokens` is
    clamped. It is shared by all attempts: read it, never change it. `dialect` is the caller's (`Dialect`), which says
    whose opaque content may pass. The upstream sees `x-request-id: <call_id>.<attempt>`.
    """

    call_id: str
    attempt: int  # from 1
    generation: generation_pb.Generation
    dialect: "generation_pb.Dialect.ValueType"
    profile: Profile
    target: UpstreamTarget


class Upstream(Protocol):
    """A dialect that generates."""

    def generate(self, request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        """Calls the upstream once, as an async generator.

        Yields non-empty batches of events: `message_started` first (alone in its batch or not), then content, last
        `finished` with the usage as reported (counts may be absent). Never `admitted`. `message_started.attempt` and
        `.upstream` are those of the request. Batches are the receiver's to keep: they are not changed afterwards.

        Raises UpstreamFailure; whatever else it raises is a defect. Closing the iterator (`aclose`) or cancelling it
        cancels the HTTP call at once.
        """


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """One attempt to embed. Exactly one of `texts` and `token_ids` is non-empty."""

    call_id: str
    attempt: int
    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    dimensions: int | None  # None: the profile's own
    profile: Profile
    target: UpstreamTarget


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Vectors in input order, each little-endian float32."""

    vectors: Sequence[bytes]
    input_tokens: int | None  # None: not reported


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that stands under an idempotency key: whose it is, what `message` is, and its bytes."""

    call_id: str
    form: str
    message: bytes


class EmbeddingUpstream(Protocol):
    """A dialect that embeds."""

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Calls the upstream once per batch that it takes. Raises UpstreamFailure; cancelling cancels the HTTP call."""


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One attempt to rank."""

    call_id: str
    attempt: int
    query: str
    documents: Sequence[str]
    top_n: int  # 1..len(documents)
    profile: Profile
    target: UpstreamTarget


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One ranked document: its position in the request, from 0, and its score (higher is more relevant)."""

    index: int
    relevance_score: float


@dataclass(frozen=True, slots=True)
class RerankResult:
    """At most `top_n` documents, best first."""

    ranking: Sequence[RankedDocument]
    input_tokens: int | None  # None: not reported
    search_units: int | None  # None: not reported


class RerankUpstream(Protocol):
    """A dialect that ranks."""

    async def rerank(self, request: RerankRequest) -> RerankResult:
        """Calls the upstream once. Raises UpstreamFailure; cancelling it cancels the HTTP call."""


@dataclass(frozen=True, slots=True)
class Dialects:
    """The upstream adapters of this process, by the dialect that the catalogue names."""

    generation: Mapping[str, Upstream]
    embedding: Mapping[str, EmbeddingUpstream]
    rerank: Mapping[str, RerankUpstream]
    native: Mapping[str, "NativeUpstream"] = field(default_factory=dict)
