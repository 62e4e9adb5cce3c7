"""The circuit of one upstream: closed while it serves, open for a growing while after failures, then one probe.

Pure: outcomes and instants in, states out. Refuses to know what a failure was and who asks.
"""

from dataclasses import dataclass, replace

FAILURES_TO_BREAK = 5  # in a row
FIRST_BREAK_S = 0.5
LONGEST_BREAK_S = 15.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """`open_until_s` is an instant of the caller's monotonic clock; None: closed."""

    failures_in_a_row: int = 0
    break_s: float = 0.0  # how long the last break was
    open_until_s: float | None = None
    is_probing: bool = False

    @property
    def is_broken(self) -> bool:
        """It is called for probes only."""
        return self.open_until_s is not None


CLOSED = Circuit()


def may_call(circuit: Circuit, now_s: float) -> bool:
    """Whether a call may go there now: always while closed, one at a time once a break is over."""
    if circuit.open_until_s is None:
        return True
    return now_s >= circuit.open_until_s and not circuit.is_probing


def wait_s(circuit: Circuit, now_s: float) -> float:
    """How long until a call may go there, if nothing else happens; 0: now, or as soon as the probe ends."""
    return 0.0 if circuit.open_until_s is None else max(0.0, circuit.open_until_s - now_s)


def called(circuit: Circuit) -> Circuit:
    """A call went there; past a break it is the probe."""
    return replace(circuit, is_probing=True) if circuit.is_broken else circuit


def succeeded() -> Circuit:
    """A call was answered: the past is forgotten."""
    return CLOSED


def failed(circuit: Circuit, now_s: float, *, was_probe: bool) -> Circuit:
    """A call failed. A failed probe makes the next break twice as long."""
    failures = circuit.failures_in_a_row + 1
    if was_probe:
        break_s = min(circuit.break_s * 2, LONGEST_BREAK_S)
        return Circuit(failures, break_s, now_s + break_s)
    if circuit.is_broken or failures < FAILURES_TO_BREAK:  # a call from before the break says nothing new
        return replace(circuit, failures_in_a_row=failures)
    return Circuit(failures, FIRST_BREAK_S, now_s + FIRST_BREAK_S)


def probe_abandoned(circuit: Circuit) -> Circuit:
    """The probe ended without telling anything about the upstream (its caller left); the next call may probe."""
    return replace(circuit, is_probing=False)
