"""Days and instants as people type them.

Owns the forms that are understood; everything is UTC.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

_AGO = re.compile(r"(\d{1,4})([hd])").fullmatch
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}

SinceOption = Annotated[str, typer.Option(help="First day or instant (UTC), or an age: 2026-11-01, 24h, 7d.")]
UntilOption = Annotated[str, typer.Option(help="First day or instant that counts no more. Default: now.")]


def instant_from_text(text: str) -> Timestamp | None:
    """`2026-11-01`, `2026-11-01T12:00:00Z` or `7d` (ago). Empty: None. Raises ValueError for anything else."""
    if not text:
        return None
    ago = _AGO(text)
    if ago is not None:
        instant = datetime.now(UTC) - int(ago[1]) * _UNITS[ago[2]]
    else:
        try:
            instant = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{text!r} is no day or instant; write 2026-11-01, 2026-11-01T12:00:00Z or 7d") from None
        instant = instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant
    message = Timestamp()
    message.FromDatetime(instant.astimezone(UTC))
    return message


def text_of(instant: Timestamp) -> str:
    """For people: to the second."""
    return instant.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S")


def this_month() -> str:
    """`2026-11`."""
    return datetime.now(UTC).strftime("%Y-%m")
