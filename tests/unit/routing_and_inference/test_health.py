"""The circuit of an upstream, and the fleet around it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing_and_inference import health
from services.routing_and_inference.catalog import Kind, Price, Profile, UpstreamTarget
from services.routing_and_inference.fleet import Demand, Fleet, UpstreamState, Visit
from services.routing_and_inference.health import CLOSED, FAILURES_TO_BREAK, FIRST_BREAK_S, LONGEST_BREAK_S, Circuit
from services.routing_and_inference.ports import FailureKind, UpstreamFailure

DOWN = UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True, status=502)


def broken(now_s: float = 0.0) -> Circuit:
    circuit = CLOSED
    for _ in range(FAILURES_TO_BREAK):
        circuit = health.failed(circuit, now_s, was_probe=False)
    return circuit


def test_a_few_failures_break_nothing() -> None:
    circuit = CLOSED
    for _ in range(FAILURES_TO_BREAK - 1):
        circuit = health.failed(circuit, 0.0, was_probe=False)

    assert (circuit.is_broken, health.may_call(circuit, 0.0)) == (False, True)
    assert health.succeeded() == CLOSED


def test_a_broken_circuit_lets_one_probe_through_when_its_break_is_over() -> None:
    circuit = broken(10.0)
    assert not health.may_call(circuit, 10.0 + FIRST_BREAK_S - 0.001)
    assert health.may_call(circuit, 10.0 + FIRST_BREAK_S)

    probing = health.called(circuit)
    assert not health.may_call(probing, 100.0)
    assert health.may_call(health.probe_abandoned(probing), 100.0)


def test_a_failed_probe_doubles_the_break_up_to_a_longest() -> None:
    circuit = broken()
    breaks = []
    for _ in range(8):
        circuit = health.failed(health.called(circuit), 0.0, was_probe=True)
        breaks.append(circuit.break_s)

    assert breaks == [min(FIRST_BREAK_S * 2**n, LONGEST_BREAK_S) for n in range(1, 9)]


def test_a_late_failure_from_before_the_break_prolongs_nothing() -> None:
    circuit = broken(0.0)

    assert health.failed(circuit, 5.0, was_probe=False).open_until_s == circuit.open_until_s


@given(st.lists(st.sampled_from(["ok", "fail", "leave", "wait"]), max_size=60))
def test_whatever_happens_an_upstream_gets_another_chance(steps: list[str]) -> None:
    circuit, now_s = CLOSED, 0.0
    for step in steps:
        if step == "wait":
            now_s += 1.0
        elif health.may_call(circuit, now_s):
            was_probe = circuit.is_broken
            circuit = health.called(circuit)
            if step == "ok":
                circuit = health.succeeded()
            elif step == "fail":
                circuit = health.failed(circuit, now_s, was_probe=was_probe)
            elif was_probe:
                circuit = health.probe_abandoned(circuit)

    assert health.may_call(circuit, now_s + LONGEST_BREAK_S)
    assert health.wait_s(circuit, now_s) <= LONGEST_BREAK_S


# ---- the fleet ----


class World:
    def __init__(self, *names: str) -> None:
        self.now_s = 0.0
        targets = tuple(UpstreamTarget(name, "simulated", priority=index) for index, name in enumerate(names))
        self.profile = Profile("p", Kind.GENERATION, Price(1, 1), targets)
        self.fleet = Fleet([self.profile], now_s=lambda: self.now_s, wall_us=lambda: 7, random=lambda: 0.5)

    def state(self, name: str) -> UpstreamState:
        state = self.fleet.find("p", name)
        assert state is not None
        return state

    def break_it(self, name: str) -> None:
        self.state(name).circuit = broken(self.now_s)

    def names(self) -> list[str]:
        return [state.target.name for state in self.fleet.order(self.profile, Demand())]

    def visit(self, name: str, *, is_repeat: bool = False) -> Visit:
        return self.fleet.visit(self.state(name), Demand(), is_repeat=is_repeat)


def test_the_healthy_come_in_order_the_broken_and_drained_do_not() -> None:
    world = World("a", "b", "c")
    assert world.names() == ["a", "b", "c"]

    world.break_it("a")
    world.state("b").is_drained = True
    assert world.names() == ["c"]

    world.now_s = FIRST_BREAK_S
    assert world.names() == ["a", "c"]


def test_an_only_upstream_has_a_circuit_too_and_says_how_long_it_is_broken() -> None:
    world = World("a")
    world.break_it("a")

    assert (world.names(), world.fleet.wait_s(world.profile)) == ([], FIRST_BREAK_S)


def test_two_calls_do_not_probe_at_once() -> None:
    world = World("a", "b")
    world.break_it("a")
    world.now_s = FIRST_BREAK_S
    first, second = world.fleet.order(world.profile, Demand()), world.fleet.order(world.profile, Demand())

    probe = world.fleet.visit(next(first), Demand(), is_repeat=False)
    assert (probe.state.target.name, next(second).target.name) == ("a", "b")
    probe.succeeded()
    assert world.state("a").circuit == CLOSED


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        pytest.param(DOWN, "http_502", id="a status"),
        pytest.param(UpstreamFailure(FailureKind.UNAVAILABLE, retryable=True), "connect", id="no connection"),
        pytest.param(UpstreamFailure(FailureKind.TIMEOUT, retryable=True), "timeout", id="no answer in time"),
        pytest.param(UpstreamFailure(FailureKind.CUT, retryable=True, status=200), "cut", id="half an answer"),
        pytest.param(UpstreamFailure(FailureKind.MALFORMED, retryable=True), "malformed", id="nonsense"),
    ],
)
def test_failures_are_counted_and_remembered(failure: UpstreamFailure, outcome: str) -> None:
    world = World("a")
    visit = world.visit("a")
    assert world.state("a").in_flight == 1
    visit.failed(failure)

    state = world.state("a")
    assert (state.in_flight, state.calls, state.failures, state.last_failure, state.last_failure_at_us) == (
        0,
        1,
        1,
        outcome,
        7,
    )


def test_a_rejected_request_is_not_the_upstreams_fault() -> None:
    world = World("a")
    world.visit("a").failed(UpstreamFailure(FailureKind.REJECTED, retryable=False, status=400))

    assert (world.state("a").failures, world.state("a").circuit) == (0, CLOSED)


def test_repeats_are_a_share_of_the_calls() -> None:
    world = World("a")
    calls, repeats = 1_000, 0
    for _ in range(calls):
        world.visit("a").abandoned()
        if list(world.fleet.repeats(world.profile, frozenset({"a"}), Demand())):
            world.visit("a", is_repeat=True).abandoned()
            repeats += 1

    assert 0.09 <= repeats / calls <= 0.12


def test_only_those_that_failed_this_call_before_are_tried_again() -> None:
    world = World("a", "b")

    assert [s.target.name for s in world.fleet.repeats(world.profile, frozenset({"b"}), Demand())] == ["b"]
