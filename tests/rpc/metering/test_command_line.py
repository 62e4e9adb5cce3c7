"""The billing commands of `mws` against a metering on a real port: what people and scripts get.

Owns options, output and complaints; what the service decides has suites of its own.
"""

import asyncio
import csv
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mws.metering.v1 import usage_service_pb2 as pb
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.metering import translate
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, an_event
from tests.rpc.metering.serving import Running, listening, running_metering

COST = 26_400
USD = 1_000_000_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Mws:
    """Runs commands as an administrator does, beside the loop that serves them."""

    def __init__(self, running: Running, port: int, data_dir: Path) -> None:
        self.running = running
        self._where = ["--grpc-base-port", str(port - 2), "--data-dir", str(data_dir)]

    async def __call__(self, *arguments: str) -> Result:
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, [*arguments, *self._where]))

    async def json(self, *arguments: str) -> Any:
        """What a script reads."""
        done = await self(*arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    async def spend(self, calls: int = 1, **changes: Any) -> list[str]:
        """Calls of 26,400 nano-USD each; returns their ids."""
        events = [an_event(**changes) for _ in range(calls)]
        await self.running.record(*map(translate.event_to_pb, events))
        return [event.call_id for event in events]


@pytest.fixture
async def mws(tmp_path: Path) -> AsyncIterator[Mws]:
    port = free_port()
    async with (
        running_metering(tmp_path, low_balance=(USD,)) as running,
        listening(running, tmp_path / "secrets", port),
    ):
        yield Mws(running, port, tmp_path)


async def test_credits_are_granted_listed_refunded_and_corrected(mws: Mws) -> None:
    of = ("--account", ACCOUNT, "--idempotency-key")
    bought = await mws.json("credit", "grant", *of, "a", "--usd", "3")
    await mws.json("credit", "grant", *of, "b", "--usd", "1", "--kind", "promotion", "--expires", "2099-12-31")
    back = await mws.json("credit", "refund", *of, "c", "--usd", "2.5")
    await mws.json("credit", "correct", *of, "d", "--entry", bought["entry_id"], "--usd", "0.25")
    listed = await mws.json("credit", "list", "--account", ACCOUNT)
    events = await mws.json("credit", "events", "--account", ACCOUNT)
    balance = await mws.json("balance", "--account", ACCOUNT)

    assert (back["rule"], back["amount_nano_usd"], back["balance_nano_usd"]) == (
        "refund.purchase",
        -2.5 * USD,
        1.5 * USD,
    )
    assert [(row["kind"], row["corrected_nano_usd"], row["remaining_nano_usd"]) for row in listed["credits"]] == [
        ("promotion", 0, USD),
        ("purchase", 0.25 * USD, None),
    ]
    assert (listed["refundable_nano_usd"], events["events"]) == (0.25 * USD, [])
    assert (balance["balance_nano_usd"], balance["lifetime_paid_nano_usd"]) == (1.25 * USD, 0.25 * USD)


async def test_usage_is_summed_by_two_groups_and_filtered(mws: Mws) -> None:
    await mws.spend(2, key_id="a", application="crm")
    await mws.spend(1, key_id="b")

    by = await mws.json("usage", "--account", ACCOUNT, "--by", "key", "--by", "application")
    one = await mws.json("usage", "--key", "a", "--by", "hour", "--since", "1d")
    shown = await mws("usage", "--account", ACCOUNT)

    assert [(row["group"], row["then_group"], row["calls"]) for row in by["groups"]] == [("a", "crm", 2), ("b", "", 1)]
    assert by["total"]["charged_nano_usd"] == 3 * COST
    assert [row["calls"] for row in one["groups"]] == [2]
    assert "total" in shown.stdout


async def test_a_call_is_shown_with_what_makes_its_cost(mws: Mws) -> None:
    (call_id,) = await mws.spend()

    found = await mws.json("call", "show", call_id)
    listed = await mws.json("call", "list", "--account", ACCOUNT)
    shown = await mws("call", "show", call_id)

    assert [(line["token_class"], line["cost_nano_usd"]) for line in found["lines"]] == [
        ("input", 10 * 480),
        ("output", 20 * 1080),
    ]
    assert (found["net_nano_usd"], [entry["rule"] for entry in found["entries"]]) == (COST, ["complete"])
    assert [row["call_id"] for row in listed["calls"]] == [call_id]
    assert call_id in shown.stdout
    assert "output" in shown.stdout


async def test_a_statement_adds_up(mws: Mws) -> None:
    await mws.json("credit", "grant", "--account", ACCOUNT, "--idempotency-key", "k", "--usd", "1")
    await mws.spend(3)

    found = await mws.json("statement", "--account", ACCOUNT)
    shown = await mws("statement", "--account", ACCOUNT)

    amounts = [line["amount_nano_usd"] for line in (*found["credits"], *found["charges"])]
    assert (found["opening_nano_usd"], amounts, found["closing_nano_usd"]) == (0, [USD, -3 * COST], USD - 3 * COST)
    assert found["is_final"] is False
    assert "closing balance" in shown.stdout


async def test_an_export_is_a_file_that_its_owner_alone_reads(mws: Mws, tmp_path: Path) -> None:
    await mws.spend(250)
    file = tmp_path / "costs.csv"

    done = await mws.json("export", "--account", ACCOUNT, "--output", str(file))

    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert (done["rows"], done["records"], done["bytes"]) == (500, 250, file.stat().st_size)
    assert sum(int(row["x_BilledNanoUsd"]) for row in rows) == 250 * COST
    assert file.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.progress*"))


async def test_an_interrupted_export_goes_on(mws: Mws, tmp_path: Path) -> None:
    await mws.spend(250)
    whole, file = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    options = ("--account", ACCOUNT, "--format", "jsonl", "--since", "2026-01-01", "--until", "2026-12-31")
    await mws.json("export", *options, "--output", str(whole))
    request = pb.ExportUsageRequest(account_id=ACCOUNT, format=pb.EXPORT_FORMAT_JSONL)
    request.since.FromJsonString("2026-01-01T00:00:00Z")
    request.until.FromJsonString("2026-12-31T00:00:00Z")
    first = await anext(aiter(mws.running.admin.usage.ExportUsage(request, timeout=20.0)))
    note = {"request": request.SerializeToString(deterministic=True).hex(), "cursor": first.cursor}
    note |= {"size": len(first.data), "rows": first.rows, "records": first.records}
    file.write_bytes(first.data + b'{"half a li')
    (tmp_path / "cut.jsonl.progress").write_text(json.dumps(note))

    done = await mws.json("export", *options, "--output", str(file), "--resume")

    assert (done["rows"], done["records"]) == (500, 250)
    assert file.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "reason", "text"),
    [
        pytest.param(("call", "show", new_id()), "NOT_FOUND", "no such call", id="an unknown call"),
        pytest.param(("call", "show", "x"), "REQUEST_INVALID", "call_id", id="no call id"),
        pytest.param(
            ("statement", "--account", ACCOUNT, "--month", "11/2026"), "REQUEST_INVALID", "month", id="no month"
        ),
        pytest.param(("usage", "--since", "yesterday"), "USAGE", "yesterday", id="no instant"),
        pytest.param(("usage", "--by", "day", "--by", "key", "--by", "hour"), "USAGE", "twice", id="too many groups"),
        pytest.param(
            ("credit", "refund", "--account", ACCOUNT, "--idempotency-key", "k", "--usd", "1"),
            "REQUEST_INVALID",
            "purchased and unspent",
            id="nothing to refund",
        ),
        pytest.param(
            ("export", "--account", ACCOUNT, "--output", "nowhere.csv", "--resume"), "USAGE", "nowhere", id="no export"
        ),
    ],
)
async def test_a_complaint_says_what_is_wrong(mws: Mws, arguments: tuple[str, ...], reason: str, text: str) -> None:
    for_scripts = await mws(*arguments, "--json")
    for_people = await mws(*arguments)

    error = json.loads(for_scripts.stderr)["error"]
    assert (for_scripts.exit_code, for_people.exit_code, error["reason"]) == (1, 1, reason)
    assert text in json.dumps(error)
    assert text in for_people.stderr
    assert "Traceback" not in for_people.stderr


async def test_an_export_never_overwrites_a_file(mws: Mws, tmp_path: Path) -> None:
    file = tmp_path / "there.csv"
    file.write_text("mine")

    done = await mws("export", "--account", ACCOUNT, "--output", str(file))

    assert (done.exit_code, file.read_text()) == (1, "mine")
