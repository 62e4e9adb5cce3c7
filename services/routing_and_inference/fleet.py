"""The upstreams of this replica: who may be called now, who is being called, how the last calls ended.

Owns the mutable state around the pure circuits and ranking; refuses to call anyone. A restart forgets all of it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from services.routing_and_inference import health, routing
from services.routing_and_inference.catalog import Profile, UpstreamTarget
from services.routing_and_inference.health import Circuit
from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.routing_and_inference.room import Budget, FairQueue

# The upstream did its work; the request was at fault.
_NOT_ITS_FAULT = (FailureKind.REJECTED, FailureKind.CONTEXT_TOO_LONG, FailureKind.CONTRADICTION)

# A share of the calls and not a count: what fails for all callers is not made worse by their repeats.
_REPEATS_PER_CALL = 0.1
_MOST_REPEATS = 20.0
_LONGEST_QUEUE = 1_000  # calls of a profile that wait for room

_OUTCOMES = {
    FailureKind.TIMEOUT: "timeout",
    FailureKind.CUT: "cut",
    FailureKind.MALFORMED: "malformed",
    FailureKind.CONTRADICTION: "contradiction",
}


def outcome_of(failure: UpstreamFailure) -> str:
    """How an attempt ended, as in `Attempt.outcome`."""
    known = _OUTCOMES.get(failure.kind)
    if known is not None:
        return known
    return f"http_{failure.status}" if failure.status else "connect"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call wants of an upstream. `head`: of its conversation, where that matters; `tokens`: at most, about."""

    account_id: str = ""
    tokens: int = 0
    head: bytes | None = None


@dataclass(slots=True, eq=False)
class UpstreamState:
    """One upstream of one profile."""

    profile: Profile
    target: UpstreamTarget
    requests: Budget = field(init=False)
    tokens: Budget = field(init=False)
    circuit: Circuit = health.CLOSED
    is_drained: bool = False
    in_flight: int = 0
    calls: int = 0
    failures: int = 0
    repeats: float = 10.0  # how many further tries it may be given now
    last_failure: str = ""
    last_failure_at_us: int | None = None

    def __post_init__(self) -> None:
        limits = self.target.limits
        self.requests, self.tokens = Budget(limits.requests_per_minute), Budget(limits.tokens_per_minute)

    def room_in_s(self, tokens: int, now_s: float) -> float:
        """How long until it can take a call, by its limits; 0: now; infinite: when a running call ends."""
        limits = self.target.limits
        if not limits.is_limited:
            return 0.0
        if limits.concurrency and self.in_flight >= limits.concurrency:
            return math.inf
        return max(self.requests.wait_s(1, now_s), self.tokens.wait_s(tokens, now_s))


class Visit:
    """One call at one upstream. Ends exactly once, in one of three ways."""

    __slots__ = ("_fleet", "_was_probe", "state")

    def __init__(self, fleet: "Fleet", state: UpstreamState) -> None:
        self._fleet = fleet
        self.state = state
        self._was_probe = False
        if state.circuit is not health.CLOSED:
            self._was_probe = state.circuit.is_broken
            state.circuit = health.called(state.circuit)
        state.in_flight += 1
        state.calls += 1

    def succeeded(self) -> None:
        """It answered."""
        self._leave()
        self.state.circuit = health.succeeded()

    def failed(self, failure: UpstreamFailure) -> None:
        """It failed."""
        if failure.kind in _NOT_ITS_FAULT:
            self.succeeded()
            return
        self._leave()
        state = self.state
        state.failures += 1
        state.last_failure = outcome_of(failure)
        state.last_failure_at_us = self._fleet.wall_us()
        state.circuit = health.failed(state.circuit, self._fleet.now_s(), was_probe=self._was_probe)

    def abandoned(self) -> None:
        """The call ended for a reason of ours; nothing was learned."""
        self._leave()
        if self._was_probe:
            self.state.circuit = health.probe_abandoned(self.state.circuit)

    def _leave(self) -> None:
        self.state.in_flight -= 1
        if self.state.target.limits.concurrency:
            self._fleet.queue(self.state.profile).wake()


class Fleet:
    """`now_s` is monotonic, `wall_us` is Unix time in microseconds, `random` gives numbers in [0, 1)."""

    def __init__(
        self,
        profiles: Iterable[Profile],
        *,
        now_s: Callable[[], float],
        wall_us: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        self.now_s = now_s
        self.wall_us = wall_us
        self.random = random
        self._states: dict[str, dict[str, UpstreamState]] = {}
        self.replace(profiles)
        self._queues: dict[str, FairQueue] = {}

    def replace(self, profiles: Iterable[Profile]) -> None:
        """Other profiles from now on. Upstreams that are the same keep what is known of them."""
        known = self._states
        self._states = {
            profile.slug: {
                target.name: _kept(known.get(profile.slug, {}).get(target.name), profile, target)
                for target in profile.upstreams
            }
            for profile in profiles
        }

    def order(self, profile: Profile, demand: Demand) -> Iterator[UpstreamState]:
        """Those that may be called and have room, in the order to try them."""
        # Another call may take a probe or the last room, or break a circuit, while this one goes through the order.
        for state in self._ranked(profile, demand.head):
            if self._may_call(state) and not state.room_in_s(demand.tokens, self.now_s()):
                yield state

    def repeats(self, profile: Profile, upstreams: frozenset[str], demand: Demand) -> Iterator[UpstreamState]:
        """Of some upstreams that have failed the same call before, those that their budget allows another try."""
        order = self.order(profile, demand)
        return (state for state in order if state.target.name in upstreams and state.repeats >= 1)

    def room_in_s(self, profile: Profile, tokens: int) -> float | None:
        """How long until one of those that may be called has room; None: that is not what a call has to wait for."""
        now_s = self.now_s()
        states = [s for s in self._states[profile.slug].values() if not s.is_drained and self._may_call(s)]
        room_in_s = min((state.room_in_s(tokens, now_s) for state in states), default=0.0)
        return room_in_s or None

    def queue(self, profile: Profile) -> FairQueue:
        """Where calls of a profile wait for room."""
        queue = self._queues.get(profile.slug)
        if queue is None:
            queue = self._queues[profile.slug] = FairQueue(_LONGEST_QUEUE)
        return queue

    def visit(self, state: UpstreamState, demand: Demand, *, is_repeat: bool) -> Visit:
        """Begins a call there."""
        if state.target.limits.is_limited:
            now_s = self.now_s()
            state.requests.take(1, now_s)
            state.tokens.take(demand.tokens, now_s)
        if is_repeat:
            state.repeats -= 1
        else:
            state.repeats = min(_MOST_REPEATS, state.repeats + _REPEATS_PER_CALL)
        return Visit(self, state)

    def _ranked(self, profile: Profile, head: bytes | None) -> list[UpstreamState]:
        states = [state for state in self._states[profile.slug].values() if not state.is_drained]
        if len(states) < 2:
            return states
        ready = {state.target.name: state for state in states if self._may_call(state)}
        targets = [state.target for state in ready.values()]

        def load(target: UpstreamTarget) -> int:
            return ready[target.name].in_flight

        ranked = routing.rank(targets, self.random, load) if head is None else routing.rank_by_head(targets, head, load)
        return [ready[target.name] for target in ranked]

    def _may_call(self, state: UpstreamState) -> bool:
        return state.circuit is health.CLOSED or health.may_call(state.circuit, self.now_s())

    def wait_s(self, profile: Profile) -> float:
        """How long until one of them may be called again; 0 when only people can tell (all are drained)."""
        now_s = self.now_s()
        waits = [health.wait_s(s.circuit, now_s) for s in self._states[profile.slug].values() if not s.is_drained]
        return min(waits, default=0.0)

    def closed_for_s(self, profile: Profile, upstreams: frozenset[str]) -> float | None:
        """How long until the circuit of one of them may be probed; None: no circuit is what keeps a repeat from it."""
        now_s = self.now_s()
        waits = [
            health.wait_s(state.circuit, now_s)
            for name, state in self._states[profile.slug].items()
            if name in upstreams and not state.is_drained and state.repeats >= 1 and state.circuit.is_broken
        ]
        return min(waits, default=None)

    def states(self, profile: str = "") -> list[UpstreamState]:
        """All of a profile, or all; by profile, then priority, then name."""
        chosen = [profile] if profile else sorted(self._states)
        return [
            state
            for slug in chosen
            for state in sorted(
                self._states.get(slug, {}).values(), key=lambda state: (state.target.priority, state.target.name)
            )
        ]

    def find(self, profile: str, upstream: str) -> UpstreamState | None:
        """The state of an upstream, or None."""
        return self._states.get(profile, {}).get(upstream)


def _kept(known: UpstreamState | None, profile: Profile, target: UpstreamTarget) -> UpstreamState:
    if known is None or known.target != target:
        return UpstreamState(profile, target)
    known.profile = profile
    return known
