"""The harness measured against itself: the canned upstream with nothing in between.

Owns that readings are plausible and calls are counted; refuses to assert a speed."""

from pathlib import Path

from tests.bench.cases import FULL
from tests.bench.load_generator import Load
from tests.bench.measuring import LoadGenerator, summarise
from tests.bench.options import Options
from tests.bench.processes import free_port
from tests.bench.systems.direct import Direct


def test_every_request_is_answered_counted_and_costs_something(tmp_path: Path) -> None:
    direct = Direct(Options(build_dir=tmp_path))
    port = free_port()
    direct.start(port)
    try:
        (route,) = direct.wait_ready()
        with LoadGenerator(port) as generator:
            for case in FULL:
                load = Load((("127.0.0.1", port),), case.request(route), case.check(route), 4, 0.05, 5.0, 20)
                sample = generator.measure(load, direct.pids)
                assert (sample.requests, sample.errors, sample.upstream_calls) == (20, 0, 20)
                assert summarise([sample]).cpu_us_per_request
    finally:
        direct.stop()
    assert not direct.pids()
