"""What a line looks like, when it leaves, and what never stands in it.

Owns rendering and redaction; refuses to know who logs.
"""

import asyncio
import io
import json
import logging
from typing import Any

import pytest
import structlog

from services.runtime.logging import EventLog, configure_logging, describe, timestamp

SECRETS = [
    pytest.param("mws_live_0123abcd", id="an API key"),
    pytest.param("mws_service_edge_0123-abcd", id="a service token"),
    pytest.param("sk-ant-REDACTED", id="a vendor's key"),
    pytest.param("eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", id="a JWT"),
    pytest.param("Bearer abcdefgh", id="a header"),
]


@pytest.fixture
def stream() -> io.BytesIO:
    return io.BytesIO()


def lines(log: EventLog, stream: io.BytesIO) -> list[dict[str, Any]]:
    log.flush()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json(stream: io.BytesIO) -> None:
    log = configure_logging(process="auth-0", level="info", stream=stream)
    structlog.get_logger().info("holds.reaped", count=3, path=None)
    (line,) = lines(log, stream)
    assert line.pop("timestamp")[-1] == "Z"
    assert line == {"level": "info", "event": "holds.reaped", "count": 3, "path": None, "process": "auth-0"}


def test_less_than_the_level_is_not_written(stream: io.BytesIO) -> None:
    log = configure_logging(process="auth-0", level="warning", stream=stream)
    structlog.get_logger().info("holds.reaped")
    log.write({"event": "rpc.finished"})
    structlog.get_logger().warning("store.slow")
    assert [line["event"] for line in lines(log, stream)] == ["store.slow"]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(stream: io.BytesIO, secret: str) -> None:
    log = configure_logging(process="auth-0", level="info", stream=stream)
    structlog.get_logger().info("key.refused", detail=f"cannot use {secret}, sorry", nested={"a": [secret]})
    log.write({"event": "rpc.finished", "account_id": secret})
    logging.getLogger("some.library").warning("sent %s", secret)
    log.flush()
    assert secret.removeprefix("Bearer ") not in stream.getvalue().decode()
    assert lines(log, stream)[0]["detail"] == "cannot use [redacted], sorry"


@pytest.mark.parametrize("name", ["api_key", "token", "authorization", "admin_password", "prompt", "messages", "body"])
def test_a_field_whose_name_promises_a_secret_is_hidden(stream: io.BytesIO, name: str) -> None:
    log = EventLog(stream)
    log.write({"event": "a.b", name: "plain"})
    assert lines(log, stream)[0][name] == "[redacted]"


@pytest.mark.parametrize("name", ["input_tokens", "key_id", "account_id", "body_bytes"])
def test_counts_and_ids_are_not_hidden(stream: io.BytesIO, name: str) -> None:
    log = EventLog(stream)
    log.write({"event": "a.b", name: 7})
    assert lines(log, stream)[0][name] == 7


PROMPT = "write me a " + "poem"  # in two parts, since a traceback shows source lines


def fail() -> None:
    try:
        int(PROMPT)
    except ValueError as error:
        raise LookupError(PROMPT) from error


def test_an_exception_is_described_by_frames_and_types_alone() -> None:
    with pytest.raises(LookupError) as caught:
        fail()
    text = describe(caught.value)
    assert "poem" not in text
    assert "in fail" in text
    assert text.index("ValueError") < text.rindex("LookupError")


def test_the_text_of_a_harmless_exception_is_kept() -> None:
    with pytest.raises(AttributeError) as caught:
        object().nothing  # type: ignore[attr-defined]  # noqa: B018
    assert "has no attribute 'nothing'" in describe(caught.value)


def test_logging_an_exception_writes_its_description(stream: io.BytesIO) -> None:
    log = configure_logging(process="auth-0", level="info", stream=stream)
    try:
        fail()
    except LookupError:
        structlog.get_logger().exception("task.failed")
    (line,) = lines(log, stream)
    assert (line["level"], "poem" in line["exception"], "in fail" in line["exception"]) == ("error", False, True)


async def test_lines_leave_together_and_a_warning_at_once(stream: io.BytesIO) -> None:
    log = EventLog(stream)
    log.write({"event": "rpc.finished"})
    assert stream.getvalue() == b""
    log.write({"event": "store.slow"}, level=logging.WARNING)
    assert stream.getvalue().count(b"\n") == 2
    log.write({"event": "rpc.finished"})
    async with asyncio.timeout(5):
        while stream.getvalue().count(b"\n") < 3:
            await asyncio.sleep(0.01)


def test_a_log_that_nobody_reads_does_not_fail_a_call(stream: io.BytesIO) -> None:
    log = EventLog(stream)
    stream.close()
    log.write({"event": "store.slow"}, level=logging.WARNING)


def test_a_terminal_gets_a_readable_line(stream: io.BytesIO) -> None:
    log = EventLog(stream, is_pretty=True)
    log.write({"timestamp": timestamp(), "level": "info", "event": "rpc.finished", "code": "OK"})
    log.flush()
    assert "rpc.finished" in stream.getvalue().decode()
    assert not stream.getvalue().startswith(b"{")
