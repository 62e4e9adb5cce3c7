"""The attempts of one call: which upstream next and when, what became of each, and which error they add up to.

Owns failover, repeats and their waits; refuses to call upstreams and to look at what they say.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType

from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference import metrics
from services.routing_and_inference.catalog import Profile, UpstreamTarget
from services.routing_and_inference.fleet import Demand, Fleet, UpstreamState, Visit, outcome_of
from services.routing_and_inference.health import FIRST_BREAK_S
from services.routing_and_inference.ports import FailureKind, UpstreamFailure
from services.runtime.errors import (
    ContextTooLongError,
    GatewayError,
    UpstreamBrokenError,
    UpstreamOverloadedError,
    UpstreamRejectedError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)

_RETRY_IN = timedelta(seconds=1)
_ROUNDS = 3  # how often one upstream may be tried for one call
_MOST_ATTEMPTS = 4  # after so many in all, nobody gets a second chance
_FIRST_WAIT_S = 0.2  # the longest wait before the second round; doubled before the third
_LONGEST_WAIT_S = 5.0  # an upstream that asks for more patience than this is not waited for
_HICCUPS = (0, 500, 502, 503, 504)  # statuses that may be gone at the next try; 0: no answer at all

Fits = Callable[[UpstreamTarget], bool]
"""Whether a target can take the call on."""


class Attempts:
    """Get the next upstream with `next` and make the attempt inside `with attempts:`, which takes note of how it ends.

    An UpstreamFailure goes no further; whatever else is raised does. Every candidate is tried once, one after the other
    without a wait. Then those whose failure may have been a hiccup are tried again, after a wait with full jitter
    (or as long as they asked for), as far as their budget for repeats goes.
    """

    def __init__(self, fleet: Fleet, profile: Profile, demand: Demand) -> None:
        self._fleet = fleet
        self._profile = profile
        self._demand = demand
        self._order: Iterator[UpstreamState] = fleet.order(profile, demand)
        self._queue = fleet.queue(profile)
        self._round = 1
        self._visit: Visit | None = None
        self._upstream = ""  # of the last attempt
        self._last: UpstreamFailure | None = None
        self._failures: list[UpstreamFailure] = []
        self._waits_s: dict[str, float] = {}  # upstreams worth another try -> how long they want to be left alone
        self._too_small: set[str] = set()  # models for which the prompt is too long
        self._is_crowded = False  # everybody was at the limit for too long
        self.made: list[pb.Attempt] = []
        self.has_served = False  # an attempt came to its end
        self.was_accepted = False  # a failed attempt had been answered with a 2xx head

    async def next(self, fits: Fits | None = None) -> UpstreamTarget | None:
        """The upstream to try now; None when none is left, or when trying another makes no sense."""
        if self._last is not None and self._is_final(self._last, fits):
            return None
        visit = self._take(fits) if self.made or not len(self._queue) else None
        if visit is None and not self.made:
            visit = await self._take_in_turn(fits)
        if visit is None and (wait_s := self._wait_s()) is not None:
            upstreams, self._waits_s = frozenset(self._waits_s), {}
            self._round += 1
            visit = await self._take_again(upstreams, wait_s, fits)
        elif visit is None and not self.made and self._fleet.wait_s(self._profile) <= FIRST_BREAK_S:
            everyone = frozenset(target.name for target in self._profile.upstreams)
            visit = await self._take_again(everyone, 0.0, fits)
        self._visit = visit
        if visit is None:
            return None
        self._upstream = visit.state.target.name
        return visit.state.target

    @property
    def was_rejected(self) -> bool:
        """The last attempt was refused for what was asked."""
        return self._last is not None and self._last.kind is FailureKind.REJECTED

    def allow_another_try(self) -> None:
        """The upstream of the last attempt may do what will be asked next."""
        self._waits_s[self._upstream] = 0.0

    def __enter__(self) -> None:
        """The attempt begins."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self.has_served = True
            self._end("ok").succeeded()
        elif isinstance(error, UpstreamFailure):
            self._last = error
            self._failures.append(error)
            self._learn(error)
            self.was_accepted = self.was_accepted or error.accepted
            self._end(outcome_of(error), error.kind.value).failed(error)
            return True
        else:
            self._end("abandoned").abandoned()
        return False

    def error(self, *, delivered: bool) -> GatewayError:
        """What to tell the caller."""
        if delivered:
            return UpstreamBrokenError("the upstream broke off in the middle of its answer")
        if self._is_crowded:
            return UpstreamOverloadedError("every upstream is at its limit", retry_in=_RETRY_IN)
        if self._last is None:
            wait = timedelta(seconds=self._fleet.wait_s(self._profile))
            return UpstreamUnavailableError("no upstream can take the call now", retry_in=max(wait, _RETRY_IN))
        if self._last.kind is FailureKind.CONTEXT_TOO_LONG:
            return context_too_long(self._profile)
        if self._last.kind is FailureKind.REJECTED:
            return UpstreamRejectedError(self._last.message or "the upstream refused the request")
        return self._unserved()

    def _unserved(self) -> GatewayError:
        kinds = {failure.kind for failure in self._failures}
        if kinds == {FailureKind.OVERLOADED}:
            waits = [failure.retry_in for failure in self._failures if failure.retry_in is not None]
            return UpstreamOverloadedError("every upstream is overloaded", retry_in=min(waits, default=_RETRY_IN))
        if kinds == {FailureKind.TIMEOUT}:
            return UpstreamTimeoutError("the upstream did not answer in time")
        return UpstreamUnavailableError("no upstream could serve the call", retry_in=_RETRY_IN)

    def _take(self, fits: Fits | None) -> Visit | None:
        for state in self._order:
            target = state.target
            if target.model not in self._too_small and (fits is None or fits(target)):
                return self._fleet.visit(state, self._demand, is_repeat=self._round > 1)
        return None

    async def _take_in_turn(self, fits: Fits | None) -> Visit | None:
        """Waits while all that could take the call are at their limits. None: for nothing, or for too long."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._profile.queue_timeout_s
        has_waited = False
        while True:
            room_in_s = self._fleet.room_in_s(self._profile, self._demand.tokens)
            if room_in_s is None and (has_waited or not len(self._queue)):
                self._order = self._fleet.order(self._profile, self._demand)
                return self._take(fits)
            left_s = deadline_s - loop.time()
            if left_s <= 0 or self._queue.is_full or (room_in_s is not None and left_s < room_in_s < math.inf):
                self._is_crowded = True
                return None
            await self._queue.wait(self._demand.account_id, min(left_s, room_in_s or left_s))
            has_waited = True

    async def _take_again(self, upstreams: frozenset[str], wait_s: float, fits: Fits | None) -> Visit | None:
        """A later try at some upstreams. Calls that broke a circuit together wait for its probe together."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _LONGEST_WAIT_S
        while True:
            await asyncio.sleep(wait_s)
            self._order = self._fleet.repeats(self._profile, upstreams, self._demand)
            visit = self._take(fits)
            closed_for_s = self._fleet.closed_for_s(self._profile, upstreams)
            if visit is not None or closed_for_s is None or loop.time() + closed_for_s > deadline_s:
                return visit
            wait_s = closed_for_s + self._fleet.random() * _FIRST_WAIT_S

    def _is_final(self, last: UpstreamFailure, fits: Fits | None) -> bool:
        """Whether every other upstream would fail as well. A way to go on that one refuses another may have."""
        if last.retryable or last.kind is FailureKind.CONTEXT_TOO_LONG:
            return False
        return fits is None or last.kind is FailureKind.CONTRADICTION

    def _learn(self, failure: UpstreamFailure) -> None:
        visit = self._visit
        assert visit is not None
        target = visit.state.target
        if failure.kind is FailureKind.CONTEXT_TOO_LONG:
            self._too_small.add(target.model)
        elif (wait_s := _patience_s(failure)) is not None:
            self._waits_s[target.name] = wait_s

    def _wait_s(self) -> float | None:
        """How long to wait before a further round; None: there is none."""
        if self._round >= _ROUNDS or len(self.made) >= _MOST_ATTEMPTS or not self._waits_s:
            return None
        wait_s = min(self._waits_s.values())
        if wait_s > _LONGEST_WAIT_S:
            return None
        jitter_s: float = self._fleet.random() * _FIRST_WAIT_S * 2 ** (self._round - 1)
        return max(wait_s, jitter_s)

    def _end(self, outcome: str, kind: str = "") -> Visit:
        visit, self._visit = self._visit, None
        assert visit is not None
        upstream = visit.state.target.name
        self.made.append(pb.Attempt(upstream=upstream, outcome=outcome))
        metrics.ATTEMPTS.by[self._profile.slug, upstream, kind or outcome] += 1
        return visit


def _patience_s(failure: UpstreamFailure) -> float | None:
    """How long to leave an upstream alone before it gets another try; None: another try makes no sense."""
    if not failure.retryable:
        return None
    if failure.kind is FailureKind.OVERLOADED:
        return 0.0 if failure.retry_in is None else failure.retry_in.total_seconds()
    is_hiccup = failure.kind in (FailureKind.CUT, FailureKind.MALFORMED) or (
        failure.kind is FailureKind.UNAVAILABLE and failure.status in _HICCUPS
    )
    return 0.0 if is_hiccup else None


def context_too_long(profile: Profile, tokens: int | None = None) -> ContextTooLongError:
    """The prompt does not fit; the message begins as clients that compact their context expect it."""
    counted = (
        f"{tokens} tokens > {profile.context_tokens} maximum" if tokens else f"over {profile.context_tokens} tokens"
    )
    return ContextTooLongError(
        f"prompt is too long: {counted}", metadata={"context_tokens": str(profile.context_tokens)}
    )
