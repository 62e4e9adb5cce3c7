"""The upstreams of this replica: who may be called now, who is being called, how the last calls ended.

Owns the mutable state around the pure circuits and ranking; refuses to call anyone. A restart forgets all of it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from services.routing_and_inference import health, routing
from services.routing_and_inference.catalog import Profile, UpstreamTarget
from services.routing_and_inference.health import Circuit
from services.routing_and_inference.ports import FailureKind, UpstreamFailure

# The upstream did its work; the request was at fault.
_NOT_ITS_FAULT = (FailureKind.REJECTED, FailureKind.CONTEXT_TOO_LONG)

_OUTCOMES = {
    FailureKind.TIMEOUT: "timeout",
    FailureKind.CUT: "cut",
    FailureKind.MALFORMED: "malformed",
}


def outcome_of(failure: UpstreamFailure) -> str:
    """How an attempt ended, as in `Attempt.outcome`."""
    known = _OUTCOMES.get(failure.kind)
    if known is not None:
        return known
    return f"http_{failure.status}" if failure.status else "connect"


@dataclass(slots=True, eq=False)
class UpstreamState:
    """One upstream of one profile."""

    profile: Profile
    target: UpstreamTarget
    circuit: Circuit = health.CLOSED
    is_drained: bool = False
    in_flight: int = 0
    calls: int = 0
    failures: int = 0
    last_failure: str = ""
    last_failure_at_us: int | None = None


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
        self.state.in_flight -= 1
        self.state.circuit = health.succeeded()

    def failed(self, failure: UpstreamFailure) -> None:
        """It failed."""
        if failure.kind in _NOT_ITS_FAULT:
            self.succeeded()
            return
        state = self.state
        state.in_flight -= 1
        state.failures += 1
        state.last_failure = outcome_of(failure)
        state.last_failure_at_us = self._fleet.wall_us()
        state.circuit = health.failed(state.circuit, self._fleet.now_s(), was_probe=self._was_probe)

    def abandoned(self) -> None:
        """The call ended for a reason of ours; nothing was learned."""
        self.state.in_flight -= 1
        if self._was_probe:
            self.state.circuit = health.probe_abandoned(self.state.circuit)


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
        self._random = random
        self._states = {
            profile.slug: {target.name: UpstreamState(profile, target) for target in profile.upstreams}
            for profile in profiles
        }

    def order(self, profile: Profile) -> Iterator[Visit]:
        """Visits to those that may be called, in the order to try them; each begins when it is taken."""
        states = self._states[profile.slug]
        now_s = self.now_s()
        candidates = [
            state.target
            for state in states.values()
            if not state.is_drained and (state.circuit is health.CLOSED or health.may_call(state.circuit, now_s))
        ]
        for target in routing.rank(candidates, self._random):
            state = states[target.name]
            # Another call may have taken the probe, or broken the circuit, since the order was made.
            if state.circuit is health.CLOSED or health.may_call(state.circuit, self.now_s()):
                yield Visit(self, state)

    def wait_s(self, profile: Profile) -> float:
        """How long until one of them may be called again; 0 when only people can tell (all are drained)."""
        now_s = self.now_s()
        waits = [health.wait_s(s.circuit, now_s) for s in self._states[profile.slug].values() if not s.is_drained]
        return min(waits, default=0.0)

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
