"""One figure of one system: a load put on it, its CPU and memory read before and after.

Owns the order of readings and the median over rounds; refuses to choose what is measured."""

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from tests.bench.load_generator import Load
from tests.bench.processes import read_cpu, read_memory

SETTLE_SECONDS = 0.25
"""Work that a system puts off (batched records, freed holds) still belongs to the requests that caused it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. Latencies are None when nothing was answered."""

    requests: int
    errors: int
    upstream_calls: int
    error_samples: tuple[str, ...]
    elapsed_seconds: float
    cpu_us_per_request: float | None
    p50_ms: float | None
    p99_ms: float | None
    first_byte_p50_ms: float | None
    rss_mb: float
    pss_mb: float

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.elapsed_seconds


class LoadGenerator:
    """The load generator's process, seen from the run that steers it."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        command = [sys.executable, "-m", "tests.bench.load_generator"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()

    def measure(self, load: Load, pids: Callable[[], Iterable[int]]) -> Sample:
        self._say(load.to_line())
        self._hear()
        served_before = calls_served(self._upstream_port)
        before = read_cpu(pids())
        self._say("go")
        heard: dict[str, Any] = json.loads(self._hear())
        time.sleep(SETTLE_SECONDS)
        after = list(pids())
        used_ns = read_cpu(after).since(before)
        heard["upstream_calls"] = calls_served(self._upstream_port) - served_before
        memory = read_memory(after)
        heard["error_samples"] = tuple(heard["error_samples"])
        cpu = used_ns / 1000 / heard["requests"] if heard["requests"] else None
        return Sample(cpu_us_per_request=cpu, rss_mb=memory.rss_bytes / 2**20, pss_mb=memory.pss_bytes / 2**20, **heard)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended")
        return line


def calls_served(upstream_port: int) -> int:
    """What the upstream counted: a system that answered from a cache, or asked twice, is seen here."""
    with urllib.request.urlopen(f"http://127.0.0.1:{upstream_port}/served", timeout=30) as response:
        counts: dict[str, int] = json.load(response)
    return sum(counts.values())


@dataclass(frozen=True, slots=True)
class Figure:
    """The medians of one system's samples in one case, and how far the CPU readings lie apart."""

    rounds: int
    requests: int
    errors: int
    upstream_calls: int
    error_samples: tuple[str, ...]
    requests_per_second: float
    cpu_us_per_request: float | None
    cpu_us_lowest: float | None
    cpu_us_highest: float | None
    p50_ms: float | None
    p99_ms: float | None
    first_byte_p50_ms: float | None
    rss_mb: float
    pss_mb: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def summarise(samples: list[Sample]) -> Figure:
    cpu = [sample.cpu_us_per_request for sample in samples if sample.cpu_us_per_request is not None]
    texts = dict.fromkeys(text for sample in samples for text in sample.error_samples)
    return Figure(
        rounds=len(samples),
        requests=sum(sample.requests for sample in samples),
        errors=sum(sample.errors for sample in samples),
        upstream_calls=sum(sample.upstream_calls for sample in samples),
        error_samples=tuple(texts)[:3],
        requests_per_second=statistics.median(sample.requests_per_second for sample in samples),
        cpu_us_per_request=_median(cpu),
        cpu_us_lowest=min(cpu, default=None),
        cpu_us_highest=max(cpu, default=None),
        p50_ms=_median(sample.p50_ms for sample in samples),
        p99_ms=_median(sample.p99_ms for sample in samples),
        first_byte_p50_ms=_median(sample.first_byte_p50_ms for sample in samples),
        rss_mb=statistics.median(sample.rss_mb for sample in samples),
        pss_mb=statistics.median(sample.pss_mb for sample in samples),
    )
