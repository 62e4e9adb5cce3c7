"""Who is at the door: the credential of a request, and what strangers may try before anyone is asked about them.

Owns the per-address limit of unauthenticated traffic and the memory of bad keys; refuses to decide whose a key is.
"""

import hashlib
import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from mws.common.v1 import limits_pb2

from edge.exchange import Exchange
from services.runtime.errors import InvalidCredentialError, MissingCredentialError, RateLimitedError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_UNKNOWN_ADDRESS = "unknown"


@dataclass(frozen=True, slots=True)
class GateRules:
    """`strangers_per_minute`: failed or missing credentials per address. Addresses of IPv6 count by their /64."""

    strangers_per_minute: int
    bad_key_s: float  # how long a refused key is refused again without asking
    good_key_s: float  # how long an accepted key is let through although its address is exhausted
    trusted_proxies: Sequence[Network]  # hops whose X-Forwarded-For is believed
    remembered_max: int = 20_000  # entries per memory
    stand_ins: Mapping[bytes, bytes] = field(default_factory=dict)  # digest of a test key -> of the key that it means


class Gate:
    """In memory, per process: it shields auth-and-limits, which alone decides."""

    def __init__(self, rules: GateRules, now: Callable[[], float]) -> None:
        self._rules = rules
        self._now = now  # seconds, monotonic
        self._bad: OrderedDict[bytes, float] = OrderedDict()  # digest -> until
        self._good: OrderedDict[bytes, float] = OrderedDict()
        self._strangers: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> (tries left, at)

    def admit(self, exchange: Exchange, door: bytes = b"") -> bytes:
        """The SHA-256 of the request's key. Raises what a stranger is told, without asking anyone.

        What is bad at one door may be good at another, so a door other than the first one has a name.
        """
        key = key_of(exchange)
        if key is None:
            self._take_try(self._address(exchange))
            raise MissingCredentialError("no API key was sent")
        digest = hashlib.sha256(door + key).digest()
        if self._rules.stand_ins:
            digest = self._rules.stand_ins.get(digest, digest)
        until = self._bad.get(digest)
        if until is not None:
            if until > self._now():
                self._take_try(self._address(exchange))
                raise InvalidCredentialError("the API key is not valid")
            del self._bad[digest]
        if self._strangers and self._good.get(digest, 0.0) <= self._now():
            self._check_tries(self._address(exchange))
        return digest

    def welcome(self, digest: bytes) -> None:
        """The key was accepted just now."""
        self._remember(self._good, digest, self._now() + self._rules.good_key_s)

    def refuse(self, digest: bytes, exchange: Exchange) -> None:
        """The key was refused just now. Raises RateLimitedError if its address has had too many tries."""
        self._remember(self._bad, digest, self._now() + self._rules.bad_key_s)
        self._good.pop(digest, None)
        self._take_try(self._address(exchange))

    def _remember(self, memory: OrderedDict[bytes, float], digest: bytes, until: float) -> None:
        memory[digest] = until
        memory.move_to_end(digest)
        if len(memory) > self._rules.remembered_max:
            memory.popitem(last=False)

    def _tries_left(self, address: str) -> float:
        most = float(self._rules.strangers_per_minute)
        left, at = self._strangers.get(address, (most, self._now()))
        return min(most, left + (self._now() - at) * most / 60)

    def _check_tries(self, address: str) -> None:
        left = self._tries_left(address)
        if left < 1:
            raise self._too_many(left)

    def _take_try(self, address: str) -> None:
        self._check_tries(address)
        self._strangers[address] = (self._tries_left(address) - 1, self._now())
        self._strangers.move_to_end(address)
        if len(self._strangers) > self._rules.remembered_max:
            self._strangers.popitem(last=False)

    def _too_many(self, left: float) -> RateLimitedError:
        most = self._rules.strangers_per_minute
        limits = limits_pb2.LimitsSnapshot()
        limits.requests.limit = most
        limits.requests.remaining = max(0, math.floor(left))
        limits.requests.reset.CopyFrom(_duration((most - left) * 60 / most))
        limits.tokens.SetInParent()
        wait = timedelta(seconds=(1 - left) * 60 / most)
        return RateLimitedError(
            "too many unauthenticated requests", retry_in=wait, metadata={"limit": "ip_requests"}, details=[limits]
        )

    def _address(self, exchange: Exchange) -> str:
        peer = exchange.scope.get("client")
        hops = [peer[0]] if peer else []
        if self._rules.trusted_proxies:
            forwarded = b",".join(value for name, value in exchange.request_headers if name == b"x-forwarded-for")
            hops = [*(hop.strip() for hop in forwarded.decode("latin-1").split(",") if hop.strip()), *hops]
        return self._outermost_trusted(hops)

    def _outermost_trusted(self, hops: list[str]) -> str:
        """The first hop, from our side, that is not one of our proxies."""
        address = _UNKNOWN_ADDRESS
        for hop in reversed(hops):
            try:
                parsed = ipaddress.ip_address(hop)
            except ValueError:
                return address
            address = str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else hop
            if not any(parsed in network for network in self._rules.trusted_proxies):
                return address
        return address


def stand_ins(test_keys: Mapping[str, str]) -> dict[bytes, bytes]:
    """Test keys and the API keys that they mean, as digests."""
    return {_digest(text): _digest(key) for text, key in test_keys.items()}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def key_of(exchange: Exchange) -> bytes | None:
    """The presented key: `x-api-key` first, else `Authorization: Bearer`; an empty one counts as missing."""
    bearer = None
    for name, value in exchange.request_headers:
        if name == b"x-api-key":
            if value.strip():
                return value.strip()
        elif name == b"authorization" and bearer is None and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip()
    return bearer or None


def _duration(seconds: float) -> Duration:
    span = Duration()
    span.FromMicroseconds(math.ceil(seconds * 1_000_000))
    return span
