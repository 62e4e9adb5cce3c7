"""`mws export`: an account's costs into a file, with progress, and going on where an interrupted one stopped.

Owns the file and the note beside it that says how far it is; the content is the service's.
"""

import contextlib
import enum
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from mws.metering.v1 import usage_service_pb2 as pb
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.admin import AccountOption, Admin, admin_command, stream
from services.cli.instants import SinceOption, UntilOption, instant_from_text
from services.runtime.errors import GatewayError

app = typer.Typer()


class Format(enum.StrEnum):
    """The form of the file."""

    CSV = "csv"
    JSONL = "jsonl"


@dataclass
class _Note:
    """How far a file is: everything up to `size` is whole lines, and `cursor` goes on behind it."""

    request: str  # what was asked for, in hex: another request must not go on with this file
    cursor: str = ""
    size: int = 0
    rows: int = 0
    records: int = 0
    total_records: int = 0


@admin_command(app, "export")
def export(
    admin: Admin,
    account: AccountOption,
    output: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)],
    since: SinceOption = "",
    until: UntilOption = "",
    form: Annotated[Format, typer.Option("--format", help="csv or jsonl, both with FOCUS columns.")] = Format.CSV,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted export stopped.")] = False,
) -> None:
    """Export an account's costs (the last 30 days, if nothing else is said) as CSV or JSON Lines."""
    wanted = pb.ExportUsageRequest(
        account_id=admin.account_id(account),
        since=instant_from_text(since),
        until=instant_from_text(until),
        format=pb.ExportFormat.Value(f"EXPORT_FORMAT_{form.name}"),
    )
    note_path = output.with_name(output.name + ".progress")
    note = _begun(output, note_path, wanted, resume=resume)
    with _opened(output, note.size) as file, _shown(silent=admin.report.is_json) as progress:
        task = progress.add_task("exporting", total=note.total_records or None, completed=note.records)
        wanted.cursor = note.cursor
        try:
            for piece in stream(admin.usage.ExportUsage, wanted):
                _append(file, note_path, note, piece)
                progress.update(task, total=note.total_records or None, completed=note.records)
        except GatewayError:
            admin.report.note(f"{note.records} records are in {output}; repeat the command with --resume to go on")
            raise
    note_path.unlink(missing_ok=True)
    facts = {"file": str(output), "rows": note.rows, "records": note.records, "bytes": note.size}
    admin.report.record("Exported", facts)


def _begun(output: Path, note_path: Path, wanted: pb.ExportUsageRequest, *, resume: bool) -> _Note:
    """Where to start. Raises ValueError rather than to overwrite a file or to mix two exports."""
    asked_for = wanted.SerializeToString(deterministic=True).hex()
    if not resume:
        if output.exists():
            raise ValueError(f"{output} exists; give another file, or --resume to finish an interrupted export")
        return _Note(asked_for)
    try:
        note = _Note(**json.loads(note_path.read_text()))
        is_whole = output.stat().st_size >= note.size
    except (OSError, ValueError, TypeError):
        raise ValueError(f"{output} has no interrupted export to go on with") from None
    if not is_whole:
        raise ValueError(f"{output} is shorter than it was; start again with another file")
    if note.request != asked_for:
        raise ValueError(f"{output} was begun with other options; repeat them, with days instead of ages")
    return note


@contextlib.contextmanager
def _opened(output: Path, size: int) -> Iterator[BinaryIO]:
    """The file, cut to what is known to be whole. Its owner alone may read it."""
    handle = os.open(output, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b") as file:
        file.truncate(size)
        file.seek(size)
        yield file


def _append(file: BinaryIO, note_path: Path, note: _Note, piece: pb.ExportUsageResponse) -> None:
    """The piece first, then the note about it: a crash between the two repeats the piece."""
    file.write(piece.data)
    file.flush()
    note.cursor = piece.cursor
    note.size += len(piece.data)
    note.rows += piece.rows
    if piece.HasField("total_records"):
        note.total_records = piece.total_records  # of the whole span, also when it goes on
    note.records += piece.records
    draft = note_path.with_name(note_path.name + ".new")
    draft.write_text(json.dumps(asdict(note)))
    draft.replace(note_path)


@contextlib.contextmanager
def _shown(*, silent: bool) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=silent or not console.is_terminal) as progress:
        yield progress
