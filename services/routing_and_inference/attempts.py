"""The attempts of one call: which upstream next, what became of each, and which error they add up to.

Owns failover before content; refuses to call upstreams and to look at what they say.
"""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from types import TracebackType

from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference import metrics
from services.routing_and_inference.catalog import Profile, UpstreamTarget
from services.routing_and_inference.fleet import Fleet, Visit, outcome_of
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
_SECOND_TRY_AFTER_S = 0.1
_REPEATABLE_STATUSES = (0, 500, 502, 503, 504)


class Attempts:
    """Get the next upstream with `next` and make the attempt inside `with attempts:`, which takes note of how it ends.

    An UpstreamFailure goes no further; whatever else is raised does.
    """

    def __init__(self, fleet: Fleet, profile: Profile) -> None:
        self._fleet = fleet
        self._profile = profile
        self._order: Iterator[Visit] = fleet.order(profile)
        self._visit: Visit | None = None
        self._last: UpstreamFailure | None = None
        self._failures: list[UpstreamFailure] = []
        self._may_repeat = len(profile.upstreams) == 1
        self.made: list[pb.Attempt] = []
        self.has_served = False  # an attempt came to its end
        self.was_accepted = False  # a failed attempt had been answered with a 2xx head

    async def next(self) -> UpstreamTarget | None:
        """The upstream to try now; None when none is left, or when trying another makes no sense.

        An only upstream gets a second chance after a failure that may be a hiccup, while its circuit is closed.
        """
        if self._last is not None and not self._last.retryable:
            return None
        visit = next(self._order, None)
        if visit is None and self._is_hiccup():
            self._may_repeat = False
            await asyncio.sleep(_SECOND_TRY_AFTER_S)
            self._order = self._fleet.order(self._profile)
            visit = next(self._order, None)
        self._visit = visit
        return None if visit is None else visit.state.target

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

    def _is_hiccup(self) -> bool:
        last = self._last
        if last is None or not self._may_repeat:
            return False
        return last.kind is FailureKind.CUT or (
            last.kind is FailureKind.UNAVAILABLE and last.status in _REPEATABLE_STATUSES
        )

    def _end(self, outcome: str, kind: str = "") -> Visit:
        visit, self._visit = self._visit, None
        assert visit is not None
        upstream = visit.state.target.name
        self.made.append(pb.Attempt(upstream=upstream, outcome=outcome))
        metrics.ATTEMPTS.by[self._profile.slug, upstream, kind or outcome] += 1
        return visit


def context_too_long(profile: Profile, tokens: int | None = None) -> ContextTooLongError:
    """The prompt does not fit; the message begins as clients that compact their context expect it."""
    counted = (
        f"{tokens} tokens > {profile.context_tokens} maximum" if tokens else f"over {profile.context_tokens} tokens"
    )
    return ContextTooLongError(
        f"prompt is too long: {counted}", metadata={"context_tokens": str(profile.context_tokens)}
    )
