"""The checks that decide whether a measured answer counts.

Owns truncated, wrong and split answers; refuses to test a gateway."""

import pytest

from tests.bench.answers import CHECKS, Response, dechunk
from tests.bench.canned_upstream import PIECES, REPLY, STREAM_CHUNKS

STREAM = b"".join(PIECES)


def received(data: bytes, piece_bytes: int) -> tuple[Response, bool]:
    response = Response()
    complete = False
    for start in range(0, len(data), piece_bytes):
        complete = response.add(data[start : start + piece_bytes])
    return response, complete


@pytest.mark.parametrize("piece_bytes", [pytest.param(1, id="byte by byte"), pytest.param(1 << 20, id="at once")])
@pytest.mark.parametrize(
    ("data", "check"),
    [pytest.param(REPLY, "chat reply", id="a reply"), pytest.param(STREAM, "chat stream", id="a stream")],
)
def test_a_whole_answer_counts(data: bytes, check: str, piece_bytes: int) -> None:
    response, complete = received(data, piece_bytes)
    assert complete
    assert response.problem(CHECKS[check]) is None


@pytest.mark.parametrize(
    ("data", "check", "problem"),
    [
        pytest.param(
            b"HTTP/1.1 429 No\r\ncontent-length: 4\r\n\r\nslow", "chat reply", "status 429: slow", id="a refusal"
        ),
        pytest.param(REPLY.replace(b"~end", b"~eno"), "chat reply", "not a whole answer", id="another text"),
        pytest.param(STREAM.replace(b"~07", b"x07"), "chat stream", "not a whole answer", id="a missing chunk"),
        pytest.param(STREAM.replace(b"[DONE]", b"[NONE]"), "chat stream", "not a whole answer", id="no last event"),
        pytest.param(STREAM, "messages stream", "not a whole answer", id="the other dialect"),
    ],
)
def test_what_is_not_a_whole_answer_is_an_error(data: bytes, check: str, problem: str) -> None:
    response, complete = received(data, 1 << 20)
    assert complete
    assert (response.problem(CHECKS[check]) or "").startswith(problem)


def test_a_cut_stream_is_never_complete() -> None:
    assert not any(received(STREAM[:end], 1 << 20)[1] for end in range(len(STREAM)))


def test_a_stream_of_the_canned_upstream_has_the_chunks_that_the_cases_are_named_for() -> None:
    body = dechunk(STREAM[STREAM.index(b"\r\n\r\n") + 4 :])
    assert body.count(b"~") == STREAM_CHUNKS
