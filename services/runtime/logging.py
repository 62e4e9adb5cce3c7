"""Log lines: JSON to stderr (pretty on a terminal), redacted, cheap enough for one per call.

Owns how an event becomes a line and when lines leave; refuses to decide what is worth logging.
"""

import asyncio
import atexit
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator, MutableMapping
from datetime import UTC, datetime
from typing import Any, BinaryIO, NoReturn

import msgspec
import structlog

FLUSH_EVERY_S = 0.05
_FLUSH_AT_EVENTS = 1_000
_REDACTED = "[redacted]"

# By name: a field that may hold a secret or what somebody wrote. Counts (`input_tokens`) and ids (`key_id`) pass.
_SECRET_KEY = re.compile(
    r"(?:^|_)(?:secret|secrets|password|authorization|api_?key|token|bearer|cookie|pepper|prompt|credential|credentials|messages|body)$",
    re.IGNORECASE,
)
# By shape: our keys and service tokens, other vendors' keys, JWTs, bearer headers.
_SECRET_VALUE = re.compile(
    rb"mws_(?:live|test|service)_[\w-]+|\bsk-[\w-]{8,}|\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]+)?|\b[Bb]earer +[^\s\"',;\\]+"
)
_SECRET_SIGNS = (b"mws_", b"sk-", b"eyJ", b"earer ")  # a quick look before the slow one
# Exceptions whose text names code or files and never what somebody sent.
_TEXT_IS_HARMLESS = (AttributeError, NameError, ImportError, OSError, NotImplementedError, RecursionError)

Event = MutableMapping[str, Any]


_harmless_keys: set[str] = set()  # field names that were looked at; they come from code, so they are few


def redact_fields(event: Event) -> None:
    """Hides fields whose name promises a secret, in place: the belt. The braces are that nobody logs one."""
    if event.keys() <= _harmless_keys:
        return
    for key in event:
        if _SECRET_KEY.search(key):
            event[key] = _REDACTED
        else:
            _harmless_keys.add(key)


def redact_text(text: bytes) -> bytes:
    """Hides what looks like a secret by its shape, wherever it stands in rendered lines."""
    for sign in _SECRET_SIGNS:
        if sign in text:
            return _SECRET_VALUE.sub(_REDACTED.encode(), text)
    return text


def describe(error: BaseException) -> str:
    """A traceback without the exceptions' own texts, which may quote a request; causes first."""
    parts: list[str] = []
    for link in _chain(error):
        text = f": {link}" if isinstance(link, _TEXT_IS_HARMLESS) else ""
        frames = traceback.StackSummary.extract(traceback.walk_tb(link.__traceback__), limit=-30).format()
        parts.append("".join(frames) + f"{type(link).__module__}.{type(link).__qualname__}{text}")
    return "\n\n".join(reversed(parts))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    pending = [error]
    while pending and len(seen) < 10:
        link = pending.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if isinstance(link, BaseExceptionGroup):
            pending.extend(link.exceptions)
        cause = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        if cause is not None:
            pending.append(cause)


class EventLog:
    """Where lines go. They are gathered and leave together every 50 ms; a warning or worse leaves at once."""

    def __init__(
        self, stream: BinaryIO, *, process: str = "", level: int = logging.INFO, is_pretty: bool = False
    ) -> None:
        self.process, self.level = process, level
        self._stream = stream
        self._encoder = msgspec.json.Encoder(enc_hook=str)
        self._console = structlog.dev.ConsoleRenderer() if is_pretty else None
        self._events: list[dict[str, Any]] = []
        self._flushing_on: asyncio.AbstractEventLoop | None = None

    def write(self, event: dict[str, Any], *, level: int = logging.INFO) -> None:
        """Writes one event that has its `timestamp`, `level` and `event` already; the dict is the log's now."""
        if level < self.level:
            return
        event["process"] = self.process
        self._events.append(event)
        if level >= logging.WARNING or len(self._events) >= _FLUSH_AT_EVENTS:
            self.flush()
        elif self._flushing_on is None or self._flushing_on.is_closed():
            self._flush_soon()

    def _flush_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        self._flushing_on = loop
        loop.call_later(FLUSH_EVERY_S, self.flush)

    def flush(self) -> None:
        """Renders what was gathered, and hands it over."""
        self._flushing_on = None
        if not self._events:
            return
        events, self._events = self._events, []
        for event in events:
            redact_fields(event)
        text = self._encoder.encode_lines(events) if self._console is None else self._pretty(events)
        try:
            self._stream.write(redact_text(text))
            self._stream.flush()
        except (OSError, ValueError):
            return  # nobody reads the log any more: that must not end a call

    def _pretty(self, events: list[dict[str, Any]]) -> bytes:
        assert self._console is not None
        return "".join(f"{self._console(None, '', event)}\n" for event in events).encode()


class _Clock:
    """Writes the time; formats each second once, and each millisecond once."""

    second = -1
    second_text = ""
    millisecond = -1
    text = ""


def timestamp() -> str:
    """Now, UTC, in milliseconds: `2026-11-22T09:50:07.258Z`."""
    millisecond = time.time_ns() // 1_000_000
    if millisecond != _Clock.millisecond:
        second, rest = divmod(millisecond, 1_000)
        if second != _Clock.second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
            _Clock.second, _Clock.second_text = second, text
        _Clock.millisecond, _Clock.text = millisecond, f"{_Clock.second_text}{rest:03d}Z"
    return _Clock.text


def _finish_event(log: EventLog) -> Any:
    """The last structlog processor: completes the event, writes it, and leaves structlog nothing to do."""

    def finish(_logger: Any, method: str, event: Event) -> NoReturn:
        log.write(_ordered(method, event), level=_level_of(method))
        raise structlog.DropEvent

    return finish


def _ordered(method: str, event: Event) -> dict[str, Any]:
    level = "error" if method in ("exception", "critical", "fatal") else method
    line = {"timestamp": timestamp(), "level": level, "event": event.pop("event", "")}
    error = event.pop("exc_info", None)
    if method == "exception" and error is None:
        error = True
    line.update(event)
    if error := _error_of(error):
        line["exception"] = describe(error)
    return line


def _error_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return _error_of(exc_info[1])
    return sys.exc_info()[1] if exc_info else None


def _level_of(name: str) -> int:
    return logging.getLevelNamesMapping().get(name.upper(), logging.ERROR)


class _LibraryHandler(logging.Handler):
    """What libraries log through the standard module, in our form."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        event: Event = {"event": "library.logged", "logger": record.name, "text": record.getMessage()}
        event["exc_info"] = record.exc_info
        self._log.write(_ordered(record.levelname.lower(), event), level=record.levelno)


def configure_logging(*, process: str, level: str, stream: BinaryIO | None = None) -> EventLog:
    """Sets up structlog and the standard module for this process; returns the log for canonical lines.

    A library's lines are written from WARNING on, whatever our own level is.
    """
    target: BinaryIO = stream if stream is not None else open(2, "wb", closefd=False)  # noqa: SIM115 - for good
    is_pretty = stream is None and sys.stderr.isatty()
    log = EventLog(target, process=process, level=_level_of(level), is_pretty=is_pretty)
    if stream is None:
        atexit.register(log.flush)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _finish_event(log)],
        wrapper_class=structlog.make_filtering_bound_logger(log.level),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _LibraryHandler)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryHandler(log))
    root.setLevel(logging.WARNING)
    return log
