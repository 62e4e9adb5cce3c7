"""Any order of everything that can happen to holds, crashes included, keeps the books.

Owns the state machine; refuses single cases, which have their own tests.
"""

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from services.auth_and_limits.holds import LEASE_US, Hold, HoldState
from services.auth_and_limits.records import Admitted, Ask, Finished, Outcome, Refused
from services.runtime.errors import CallAlreadyAdmittedError, HoldNotOpenError
from tests.contract.auth_and_limits.hold_store import ACCOUNT_ID, Bench, EmbeddedBench, RedisBench, ask, with_ceilings
from tests.redis_server import RedisServer

T = TypeVar("T")
CALLS_AT_ONCE = 4
HOURS_US = 10 * 3_600_000_000


@dataclass
class Known:
    """What the machine believes of a call."""

    asked: Ask
    amount: int
    state: HoldState
    is_posted: bool = False  # metering has a posting for it
    charged: int = 0
    was_kept: bool = False  # the reaper heard of the posting, and left its charge held for another lease


class HoldStoreMachine(RuleBasedStateMachine):
    """Calls of one account, in any order."""

    calls = Bundle("calls")

    def __init__(self, bench: Bench[Any]) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._bench = bench
        self._bench.account = with_ceilings(self._bench.account, rpm=20, tpm=20_000, calls=CALLS_AT_ONCE)
        self._run(self._bench.open())
        self._balance = 0
        self._calls: list[Known] = []

    def teardown(self) -> None:
        """Whatever happened: once every call is over nothing is held, and all of the balance can be spent."""
        try:
            open_ids = [call.asked.call_id for call in self._calls if call.state is not HoldState.CLOSED]
            self._run(self._bench.fund(self._balance, *open_ids))
            assert self._run(self._bench.held()) == (0, 0)
            self._bench.clock.advance_us(HOURS_US)
            if self._balance >= 0:
                self._run(self._bench.admitted(ask(self._balance)))
        finally:
            self._run(self._bench.close())
            self._runner.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    @property
    def _held(self) -> int:
        return sum(call.amount for call in self._calls)

    @rule(more=st.integers(0, 500))
    def top_up(self, more: int) -> None:
        self._balance += more
        self._run(self._bench.fund(self._balance))

    @rule(target=calls, amount=st.integers(0, 300), tokens=st.integers(0, 5_000))
    def admit(self, amount: int, tokens: int) -> Known | None:
        asked = ask(amount, tokens)
        free = self._balance - self._held
        verdict = self._run(self._bench.admit(asked))
        running = sum(call.state is HoldState.OPEN for call in self._calls)
        if isinstance(verdict, Refused):
            assert amount > free or running >= CALLS_AT_ONCE or verdict.retry_in_us
            return None
        assert isinstance(verdict, Admitted)
        assert amount <= free
        assert running < CALLS_AT_ONCE
        known = Known(asked, amount, HoldState.OPEN)
        self._calls.append(known)
        return known

    @rule(tokens=st.integers(1, 20_000))
    def wait_as_told(self, tokens: int) -> None:
        """Waiting as long as told is enough, and a microsecond less is not; a refusal takes nothing."""
        if self._balance < self._held or sum(call.state is HoldState.OPEN for call in self._calls) >= CALLS_AT_ONCE:
            return
        asked = ask(0, tokens)
        verdict = self._run(self._bench.admit(asked))
        if isinstance(verdict, Refused):
            assert verdict.retry_in_us
            self._bench.clock.advance_us(verdict.retry_in_us - 1)
            again = self._run(self._bench.admit(asked))
            assert isinstance(again, Refused)
            assert again.retry_in_us == 1
            self._bench.clock.advance_us(1)
            verdict = self._run(self._bench.admit(asked))
        assert isinstance(verdict, Admitted)
        self._calls.append(Known(asked, 0, HoldState.OPEN))

    @rule(call=calls, same_run=st.booleans())
    def admit_again(self, call: Known | None, same_run: bool) -> None:
        if call is None:
            return
        asked = call.asked if same_run else ask(call_id=call.asked.call_id)
        try:
            verdict = self._run(self._bench.admit(asked))
        except CallAlreadyAdmittedError:
            assert not same_run or call.state is HoldState.CLOSED
        else:
            # A closed call's id may be refused for another reason first; what counts is that it is never admitted.
            assert isinstance(verdict, Admitted) is (call.state is not HoldState.CLOSED)
            assert same_run or isinstance(verdict, Refused)

    @rule(call=calls, amount=st.integers(0, 600))
    def extend(self, call: Known | None, amount: int) -> None:
        if call is None:
            return
        try:
            hold = self._run(self._bench.holds.extend(call.asked.call_id, call.asked.run_id, amount, ACCOUNT_ID))
        except HoldNotOpenError:
            assert call.state is not HoldState.OPEN
            return
        assert call.state is HoldState.OPEN
        if isinstance(hold, Hold):
            assert amount <= call.amount or amount - call.amount <= self._balance - self._held
            call.amount = max(call.amount, amount)

    @rule(call=calls)
    def renew(self, call: Known | None) -> None:
        if call is None:
            return
        record = self._record(call, HoldState.FINISHED if call.state is HoldState.FINISHED else HoldState.OPEN)
        gone = self._run(self._bench.holds.renew("runner/1", [record]))
        assert list(gone) == ([call.asked.call_id] if call.state is HoldState.CLOSED else [])

    @rule(call=calls, cost=st.none() | st.integers(0, 400), used=st.none() | st.integers(0, 9_000))
    def finish(self, call: Known | None, cost: int | None, used: int | None) -> None:
        if call is None:
            return
        self._run(self._bench.holds.finish([Finished(call.asked.call_id, call.asked.run_id, cost, used, ACCOUNT_ID)]))
        if call.state is not HoldState.CLOSED:
            call.state = HoldState.FINISHED
            call.amount = call.amount if cost is None else cost

    @rule(call=calls)
    def void(self, call: Known | None) -> None:
        if call is None:
            return
        try:
            self._run(self._bench.holds.void(call.asked.call_id, call.asked.run_id, ACCOUNT_ID))
        except HoldNotOpenError:
            assert call.state is HoldState.FINISHED or call.is_posted
        else:
            self._close(call)

    @rule(call=calls, charged=st.integers(0, 400), tells=st.booleans())
    def post(self, call: Known | None, charged: int, tells: bool) -> None:
        """Metering posts; its balance may take its time."""
        if call is None or call.is_posted:
            return
        call.is_posted, call.charged = True, charged
        self._balance -= charged
        if tells:
            self._run(self._bench.fund(self._balance, call.asked.call_id))
            self._close(call)
        else:
            self._run(self._bench.fund(self._balance))

    @rule(us=st.sampled_from([1, 1_000_000, LEASE_US // 2, LEASE_US]))
    def pass_time(self, us: int) -> None:
        self._bench.clock.advance_us(us)

    @rule()
    def reap(self) -> None:
        expired = set(self._run(self._bench.holds.expired(1_000)))
        named = [call for call in self._calls if call.asked.call_id in expired]
        assert all(call.state is not HoldState.CLOSED for call in named)
        outcomes = {call.asked.call_id: Outcome(call.is_posted, call.charged) for call in named}
        self._run(self._bench.holds.settle(outcomes))
        for call in named:
            if not call.is_posted or call.was_kept:
                self._close(call)
            else:
                call.was_kept, call.state, call.amount = True, HoldState.FINISHED, call.charged

    @rule()
    def crash(self) -> None:
        self._run(self._bench.crash())

    @invariant()
    def the_counters_equal_the_sums_over_live_holds(self) -> None:
        running = sum(call.state is HoldState.OPEN for call in self._calls)
        assert self._run(self._bench.held()) == (self._held, running)

    @staticmethod
    def _close(call: Known) -> None:
        call.state, call.amount = HoldState.CLOSED, 0

    @staticmethod
    def _record(call: Known, state: HoldState) -> Hold:
        asked = call.asked
        return Hold(
            asked.call_id, asked.run_id, "runner/1", ACCOUNT_ID, "", state, call.amount, asked.rate_tokens, "book"
        )


_SETTINGS = {
    "stateful_step_count": 30,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


# Every step waits for the disk, which may be busy with other things.
@pytest.mark.timeout(240)
def test_any_order_keeps_the_books_of_the_embedded_store(tmp_path: Path) -> None:
    numbers = itertools.count()

    def machine() -> HoldStoreMachine:
        return HoldStoreMachine(EmbeddedBench(tmp_path / str(next(numbers)) / "auth"))

    run_state_machine_as_test(machine, settings=settings(max_examples=25, **_SETTINGS))  # type: ignore[arg-type]


@pytest.mark.timeout(240)
def test_any_order_keeps_the_books_in_redis(shared_redis: RedisServer) -> None:
    def machine() -> HoldStoreMachine:
        return HoldStoreMachine(RedisBench(shared_redis))

    run_state_machine_as_test(machine, settings=settings(max_examples=20, **_SETTINGS))  # type: ignore[arg-type]
