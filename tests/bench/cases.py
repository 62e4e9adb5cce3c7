"""The cases: what is asked, how many at once, and the request's bytes for each dialect.

Owns the list of cases; refuses to know who is asked."""

import json
from dataclasses import dataclass
from typing import Final

from tests.bench.canned_upstream import PACED_MARK
from tests.bench.options import Options
from tests.bench.systems.system import Route

_SMALL_PROMPT: Final = (
    "Explain in one sentence why a proxy should add as little as it can to what passes through it, please."
)
_LARGE_PROMPT_BYTES: Final = 100 * 1024


def _large_prompt() -> str:
    line = 'He said: "the quick brown fox jumps over the lazy dog", and 3.14 < 22/7.\n'
    return (line * (_LARGE_PROMPT_BYTES // len(line) + 1))[:_LARGE_PROMPT_BYTES]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request, measured at each number in flight."""

    name: str
    title: str
    prompt: str
    stream: bool
    in_flight: tuple[int, ...]

    def request(self, route: Route) -> bytes:
        body = {
            "model": route.model,
            "max_tokens": 256,
            "stream": self.stream,
            "messages": [{"role": "user", "content": self.prompt}],
        }
        if self.stream and route.dialect == "chat":
            body["stream_options"] = {"include_usage": True}
        content = json.dumps(body, separators=(",", ":")).encode()
        lines = [f"POST {route.path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", "accept: */*"]
        lines += [f"{name}: {value}" for name, value in route.headers]
        lines += [f"content-length: {len(content)}", "", ""]
        return "\r\n".join(lines).encode() + content

    def check(self, route: Route) -> str:
        return f"{route.dialect} {'stream' if self.stream else 'reply'}"


_PACED_PROMPT: Final = f"{_SMALL_PROMPT} {PACED_MARK.decode()}"
FULL: Final = (
    Case("small", "small reply", _SMALL_PROMPT, False, (1, 32, 256)),
    Case("stream", "64-chunk stream, as fast as it goes", _SMALL_PROMPT, True, (1, 32, 256)),
    Case("paced", "64-chunk stream, a chunk every 5 ms", _PACED_PROMPT, True, (32,)),
    Case("large", "100 KB prompt", _large_prompt(), False, (1, 32, 256)),
)
_QUICK_IN_FLIGHT: Final = {"small": (1, 32), "stream": (32,), "large": (32,)}


def chosen(options: Options) -> tuple[tuple[Case, int], ...]:
    """Every (case, in flight) of this run, in the order of the tables."""
    return tuple(
        (case, in_flight)
        for case in FULL
        if not options.cases or case.name in options.cases
        for in_flight in case.in_flight
        if not options.quick or in_flight in _QUICK_IN_FLIGHT.get(case.name, ())
    )
