"""A broken stream is a typed error in both dialects: a status before content, an event after it.

Nothing of the upstream's own text reaches the caller.
"""

import json
from collections.abc import Sequence

import anthropic
import openai
import pytest

from tests.fakes import anthropic_frame, openai_chunk, openai_frame
from tests.wire.through import SHAPES, TYPED, check_stream, folded, hear, request_from
from tests.wire.upstreams.frames import DONE, ROLE, STOPPED, piece, pieces_of, say, started, text, use

KEY = "sk-secret-key-of-ours"
MIDDLE = {"type": "overloaded_error", "message": "at https://inner.example/v1 for org-abcdef123"}
VALID = openai_frame({"choices": [{"index": 0, "delta": {"content": "x"}}], "error": {"code": 502, "message": "gone"}})

BROKEN = [
    pytest.param("anthropic", [started(), *say(0, "Hi")], id="a stream that ends without saying so"),
    pytest.param("anthropic", [started(), *say(0, "Hi")[:2]], id="a stream cut inside a block"),
    pytest.param(
        "anthropic",
        [started(), *say(0, "Hi"), anthropic_frame({"type": "error", "error": MIDDLE})],
        id="an error event",
    ),
    pytest.param(
        "anthropic",
        [started(), *say(0, "Hi"), b'data: {"type":"error","error":{"message":"x"}}\n\n'],
        id="an error without event line",
    ),
    pytest.param(
        "anthropic",
        [started(), *say(0, "Hi"), b"event: content_block_delta\ndata: {oops\n\n"],
        id="a frame that is no JSON",
    ),
    pytest.param(
        "anthropic", [started(), *say(0, "Hi"), *use(1, "a", "f", '{"x"')[:2], STOPPED], id="message_stop inside a call"
    ),
    pytest.param("openai", [ROLE, text("Hi")], id="a stream of chunks that just ends"),
    pytest.param("openai", [ROLE, text("Hi"), VALID], id="an error object in a chunk with choices"),
    pytest.param("openai", [ROLE, text("Hi"), b'data: {"error":"out of memory"}\n\n'], id="an error that is a text"),
    pytest.param(
        "openai",
        [ROLE, text("Hi"), b'data: {"object":"error","message":"x","code":400}\n\n', DONE],
        id="an unwrapped error",
    ),
    pytest.param(
        "openai",
        [ROLE, text("Hi"), b'event: error\ndata: {"code":1234}\n\n', DONE],
        id="an error known by its event line only",
    ),
    pytest.param("openai", [ROLE, text("Hi"), b'data: {"detail":"Internal"}\n\n', DONE], id="an error of a framework"),
    pytest.param("openai", [ROLE, text("Hi"), openai_chunk({}, "error"), DONE], id="finish_reason error"),
    pytest.param(
        "openai",
        [ROLE, text("Hi"), openai_chunk({}, "insufficient_system_resource"), DONE],
        id="a finish_reason that means no more resources",
    ),
    pytest.param("openai", [ROLE, text("Hi"), b"data: <html>502</html>\n\n"], id="HTML in the middle"),
    pytest.param(
        "openai", [ROLE, text("Hi"), pieces_of(piece('{"x"', "f", index=0, id="a")), DONE], id="DONE inside a call"
    ),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("upstream", "frames"), BROKEN)
def test_a_broken_stream_ends_in_a_typed_error(upstream: str, frames: Sequence[bytes], shape: str) -> None:
    heard = hear(frames, request_from(shape, upstream, stream=True), shape)
    check_stream(heard)
    last = heard.body.split(b"\n\n")[-2]
    assert last.startswith(b"event: error\ndata: " if shape == "anthropic" else b'data: {"error":')
    assert b"inner.example" not in heard.body
    assert b"org-abcdef" not in heard.body
    with pytest.raises(TYPED):
        folded(heard)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("upstream", "frames"), BROKEN)
def test_a_failure_before_content_is_a_status(upstream: str, frames: Sequence[bytes], shape: str) -> None:
    """The same streams without what they said first."""
    spoken = {
        *say(0, "Hi"),
        text("Hi"),
        ROLE,
        pieces_of(piece('{"x"', "f", index=0, id="a")),
        *use(1, "a", "f", '{"x"')[:2],
    }
    rest = [frame for frame in frames if frame not in spoken]
    if VALID in rest:
        rest = [openai_frame({"error": json.loads(VALID[6:])["error"]})]
    heard = hear(rest, request_from(shape, upstream, stream=True), shape)
    assert not heard.is_stream
    assert heard.status in (502, 503, 504, 529) or (heard.status == 400 and b'"code":400' in rest[0])
    with pytest.raises((anthropic.APIStatusError, openai.APIStatusError)):
        folded(heard)


SECRETS = ("sk-proj-aBcD1234efgh5678", "https://inner.example/v1?k=1", "org-AbCdEf123456", "upstream.test", KEY)
REFUSING = [400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 415, 422, 425, 429, 451, 500, 501, 502, 503, 504, 529]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("upstream", ["openai", "anthropic"])
@pytest.mark.parametrize("status", REFUSING)
def test_what_is_ours_to_repair_is_never_the_caller_s_status(status: int, upstream: str, shape: str) -> None:
    """Whatever the body says: no key, address or organisation of the upstream is in what the caller hears."""
    for kind in ("authentication_error", "rate_limit_error", "invalid_request_error", "not_found_error"):
        error = {"type": kind, "code": kind, "message": f"Invalid field 'x': {' '.join(SECRETS)}"}
        for body in ({"type": "error", "error": error}, {"error": error}, {"detail": error["message"]}, error):
            request = request_from(shape, upstream, stream=True)
            heard = hear([json.dumps(body).encode()], request, shape, status=status, is_whole=True)
            assert heard.status not in (401, 402, 403, 404, 429)
            assert (heard.status == 400) <= (status in (400, 413, 422))
            assert not [secret for secret in SECRETS if secret.encode() in heard.body]
    with pytest.raises(TYPED):
        folded(heard)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("upstream", ["openai", "anthropic"])
def test_an_overloaded_upstream_is_worth_another_try(upstream: str, shape: str) -> None:
    heard = hear([b""], request_from(shape, upstream, stream=True), shape, status=429, is_whole=True)
    assert heard.status == (529 if shape == "anthropic" else 503)
    assert int(heard.headers["retry-after"]) >= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prompt_that_is_too_long_is_worded_as_clients_expect(shape: str) -> None:
    body = {
        "error": {"message": "This model's maximum context length is 8192 tokens.", "type": "invalid_request_error"}
    }
    heard = hear([json.dumps(body).encode()], request_from(shape, "openai", stream=True), shape, status=400)
    assert heard.status == 400
    wanted = b'"prompt is too long' if shape == "anthropic" else b'"code":"context_length_exceeded"'
    assert wanted in heard.body
