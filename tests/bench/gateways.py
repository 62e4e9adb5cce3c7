"""Section: our system beside its peers and its floors, each case at each number in flight.

Owns starting them, the interleaved rounds, and what the bars compare; refuses to draw (see `gateway_tables`)."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console

from tests.bench import gateway_tables
from tests.bench.cases import FULL, Case, chosen
from tests.bench.load_generator import Load
from tests.bench.measuring import Figure, LoadGenerator, Sample, summarise
from tests.bench.options import Options
from tests.bench.processes import AbsentError, free_port, read_cpu, read_memory
from tests.bench.systems import all_systems
from tests.bench.systems.ours import Ours
from tests.bench.systems.system import Route, System
from tests.bench.verdict import Verdict

TITLE: Final = "gateways"
MEASURED_SECONDS: Final = 0.8
"""Requests are sent for this long; what is in flight by then is waited for and counted."""
SLOW_SECONDS: Final = 5.0
"""A figure that took this long to take once is not taken again."""
MAX_REQUESTS: Final = 20_000
OURS: Final = "ours, chat"
_BY_NAME: Final = {case.name: case for case in FULL}
PREWARMING: Final = ((_BY_NAME["small"], 32, 6.0, 4_000), (_BY_NAME["stream"], 8, 2.0, 500))
"""Case, in flight, seconds and requests at most. Node compiles Portkey's hot path over thousands of requests: before
that it costs twice as much, which would flatter us."""
BARS: Final = (
    ("small", 32, "LiteLLM", 10.0),
    ("small", 32, "Portkey", 3.0),
    ("stream", 32, "LiteLLM", 20.0),
    ("paced", 32, "LiteLLM", 20.0),
)
"""Case, in flight, peer, and how many times our CPU per request the peer's has to be."""


@dataclass(slots=True)
class _Field:
    """Who takes part in this run, and who does not and why."""

    present: list[System] = field(default_factory=list)
    routes: list[tuple[System, Route]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)


def run(options: Options) -> dict[str, Any]:
    console = Console(stderr=True)
    upstream_port = free_port()
    with _started(options, upstream_port, console) as entrants, LoadGenerator(upstream_port) as generator:
        _prewarm(entrants, generator, console)
        idle = _idle(entrants.present)
        samples = _rounds(entrants, generator, options, console)
        versions = {system.name: system.version() for system in entrants.present}
        ledger_check = next((system.check_ledger() for system in entrants.present if isinstance(system, Ours)), None)
    figures = {key: summarise(taken) for key, taken in samples.items()}
    cells = [
        {"case": case, "in_flight": in_flight, "subject": subject, **figure.as_dict()}
        for (case, in_flight, subject), figure in figures.items()
    ]
    bars = [
        {
            "case": case,
            "in_flight": in_flight,
            "peer": peer,
            "at_least": bar,
            "measured": _times(figures, case, in_flight, peer),
        }
        for case, in_flight, peer, bar in BARS
        if (_BY_NAME[case], in_flight) in chosen(options)
    ]
    return {
        "versions": versions,
        "absent": entrants.absent,
        "idle": idle,
        "cells": cells,
        "bars": bars,
        "ledger_check": ledger_check,
    }


def show(result: dict[str, Any], console: Console) -> None:
    gateway_tables.show(result, console)


def verdicts(result: dict[str, Any]) -> list[Verdict]:
    return [
        Verdict(
            f"{_BY_NAME[bar['case']].title}, {bar['in_flight']} in flight: CPU per request of {bar['peer']} / ours",
            bar["measured"],
            bar["at_least"],
        )
        for bar in result["bars"]
    ]


def _times(figures: dict[tuple[str, int, str], Figure], case: str, in_flight: int, peer: str) -> float | None:
    ours, theirs = figures.get((case, in_flight, OURS)), figures.get((case, in_flight, peer))
    if ours is None or theirs is None or not (_is_sound(ours) and _is_sound(theirs)):
        return None
    assert ours.cpu_us_per_request
    assert theirs.cpu_us_per_request
    return theirs.cpu_us_per_request / ours.cpu_us_per_request


def _is_sound(figure: Figure) -> bool:
    """A figure with failures in it compares nothing: failing is cheap, and what fails still costs."""
    return bool(figure.cpu_us_per_request) and figure.errors * 100 <= figure.requests


@contextlib.contextmanager
def _started(options: Options, upstream_port: int, console: Console) -> Iterator[_Field]:
    """Everything is started first and stays up, so that rounds can alternate between systems."""
    entrants = _Field()
    systems = all_systems(options)
    wanted = {system.name for system in systems} & options.only
    try:
        for system in systems:
            if wanted and system.name not in wanted | {"direct"}:
                continue
            with _absent_on_error(system, entrants, console):
                console.print(f"[dim]installing and starting {system.name}")
                system.install()
                system.start(upstream_port)
                entrants.present.append(system)
        for system in list(entrants.present):
            with _absent_on_error(system, entrants, console):
                entrants.routes += [(system, route) for route in system.wait_ready()]
        yield entrants
    finally:
        for system in systems:
            system.stop()


@contextlib.contextmanager
def _absent_on_error(system: System, entrants: _Field, console: Console) -> Iterator[None]:
    try:
        yield
    except AbsentError as reason:
        entrants.absent[system.name] = str(reason)
        entrants.present = [present for present in entrants.present if present is not system]
        console.print(f"[yellow]{system.name} is absent: {reason}")


def _load(route: Route, case: Case, in_flight: int, seconds: float, max_requests: int = MAX_REQUESTS) -> Load:
    targets = tuple(("127.0.0.1", port) for port in route.ports)
    return Load(targets, case.request(route), case.check(route), in_flight, 0.25, seconds, max_requests)


def _prewarm(entrants: _Field, generator: LoadGenerator, console: Console) -> None:
    """Compilers warm up, lazy imports happen, and a system that answers wrongly is found out."""
    for system, route in list(entrants.routes):
        for case, in_flight, seconds, max_requests in PREWARMING:
            sample = generator.measure(_load(route, case, in_flight, seconds, max_requests), system.pids)
            if sample.requests:
                continue
            reason = f"no usable answer ({case.title}): {sample.error_samples[:1]}"
            console.print(f"[yellow]{route.subject}: {reason}")
            if case.name == "small":
                entrants.absent[route.subject] = reason
                entrants.routes.remove((system, route))
                break


def _idle(systems: list[System], seconds: float = 2.0) -> dict[str, dict[str, float]]:
    """What each system costs while nobody calls it: its CPU, in milliseconds per second, and its memory."""
    before = {system.name: read_cpu(system.pids()) for system in systems}
    time.sleep(seconds)
    found: dict[str, dict[str, float]] = {}
    for system in systems:
        pids = system.pids()
        used_ns = read_cpu(pids).since(before[system.name])
        memory = read_memory(pids)
        found[system.name] = {
            "processes": len(pids),
            "cpu_ms_per_second": used_ns / 1e6 / seconds,
            "rss_mb": memory.rss_bytes / 2**20,
            "pss_mb": memory.pss_bytes / 2**20,
        }
    return found


def _rounds(
    entrants: _Field, generator: LoadGenerator, options: Options, console: Console
) -> dict[tuple[str, int, str], list[Sample]]:
    rounds = options.rounds or (1 if options.quick else 3)
    samples: dict[tuple[str, int, str], list[Sample]] = {}
    spent: dict[tuple[str, int, str], float] = {}
    for number in range(rounds):
        for case, in_flight in chosen(options):
            console.print(f"[dim]round {number + 1} of {rounds}: {case.title}, {in_flight} in flight")
            for system, route in entrants.routes:
                key = (case.name, in_flight, route.subject)
                if spent.get(key, 0.0) > SLOW_SECONDS:
                    continue
                began = time.monotonic()
                sample = generator.measure(_load(route, case, in_flight, MEASURED_SECONDS), system.pids)
                spent[key] = time.monotonic() - began
                samples.setdefault(key, []).append(sample)
    return samples
