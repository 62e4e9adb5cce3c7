"""`python -m services.metering`: starts alone, serves, refuses an unknown ledger, ends when it is asked to.

Owns the process's life; refuses to test what it serves.
"""

import asyncio
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mws.metering.v1 import ledger_service_pb2 as ledger_pb
from mws.metering.v1.ledger_service_pb2_grpc import LedgerServiceStub

from services.runtime.callers import mint_secrets, read_token
from services.runtime.calls import CallerClass
from services.runtime.channel import connect
from services.runtime.errors import CallerNotAllowedError, GatewayError
from tests.contract.metering.building import ACCOUNT
from tests.postgres_server import PostgresServer

ROOT = Path(__file__).parents[3]
START_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(data_dir: Path, port: int, **settings: str) -> subprocess.Popen[bytes]:
    mint_secrets(data_dir / "secrets")
    own = {
        "NAME": "metering-0",
        "PORT": str(port),
        "LINK_PORT": "0",
        "METRICS_PORT": "0",
        "DATA_DIR": str(data_dir),
        "AUTH_ENDPOINTS": f"127.0.0.1:{free_port()}",
        **settings,
    }
    environment = {**os.environ, **{f"MWS_METERING_{name}": value for name, value in own.items()}}  # noqa: TID251
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'proto'}"
    command = [sys.executable, "-m", "services.metering"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)


async def until_serving(stub: Any) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            await stub.GetBalance(ledger_pb.GetBalanceRequest(account_id=ACCOUNT), timeout=1.0)
        except GatewayError:
            assert time.monotonic() < deadline
        else:
            return


async def test_it_starts_without_auth_serves_and_ends(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, port)
    try:
        secrets, endpoints = tmp_path / "secrets", [f"127.0.0.1:{port}"]
        admin, inference = (
            connect(endpoints, transport="grpc", token=read_token(secrets, caller_class), name="metering")
            for caller_class in (CallerClass.ADMIN, CallerClass.INFERENCE)
        )
        stub: Any = LedgerServiceStub(admin)
        await until_serving(stub)
        grant = ledger_pb.GrantCreditsRequest(
            account_id=ACCOUNT, idempotency_key="k", amount_nano_usd=5, kind=ledger_pb.CREDIT_KIND_PURCHASE
        )
        granted = await stub.GrantCredits(grant, timeout=20.0)
        foreign_stub: Any = LedgerServiceStub(inference)
        with pytest.raises(CallerNotAllowedError):
            await foreign_stub.GrantCredits(grant, timeout=20.0)
        await admin.close(None)
        await inference.close(None)
    finally:
        process.terminate()
        process.communicate(timeout=30)

    assert (granted.tier_pending, process.returncode) == (True, 0)


def test_it_does_not_serve_a_ledger_that_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "metering").mkdir()
    connection = sqlite3.connect(tmp_path / "metering" / "ledger.sqlite3")
    connection.execute("PRAGMA user_version = 7")
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()

    process = start(tmp_path, free_port())
    _, log = process.communicate(timeout=30)

    assert process.returncode == 1
    assert b"schema version 7" in log


async def test_it_waits_for_a_database_that_is_away_and_replicas_share_it(
    tmp_path: Path, postgres: PostgresServer, postgres_url: str
) -> None:
    postgres.stop()
    ports = [free_port(), free_port()]
    folders = [tmp_path / "0", tmp_path / "1"]
    processes = [
        start(folder, port, POSTGRES_URL=postgres_url, STORE_TIMEOUT_S="10")
        for folder, port in zip(folders, ports, strict=True)
    ]
    channels = [
        connect(
            [f"127.0.0.1:{port}"], transport="grpc", token=read_token(folder / "secrets", CallerClass.ADMIN), name="m"
        )
        for folder, port in zip(folders, ports, strict=True)
    ]
    stubs: list[Any] = [LedgerServiceStub(channel) for channel in channels]
    first, second = stubs
    assert processes[0].stderr is not None
    assert any(b"ledger.awaited" in line for line in iter(processes[0].stderr.readline, b""))
    try:
        await asyncio.to_thread(postgres.start)
        await until_serving(first)
        await until_serving(second)
        grant = ledger_pb.GrantCreditsRequest(
            account_id=ACCOUNT, idempotency_key="k", amount_nano_usd=5, kind=ledger_pb.CREDIT_KIND_PURCHASE
        )
        granted = [await stub.GrantCredits(grant, timeout=20.0) for stub in (first, second)]
        balance = await second.GetBalance(ledger_pb.GetBalanceRequest(account_id=ACCOUNT), timeout=20.0)
    finally:
        for channel in channels:
            await channel.close(None)
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=30)

    assert len({each.entry.entry_id for each in granted}) == 1
    assert (balance.balance_nano_usd, [process.returncode for process in processes]) == (5, [0, 0])


def test_it_ends_in_order_while_it_waits_for_its_database(tmp_path: Path) -> None:
    process = start(tmp_path, free_port(), POSTGRES_URL=f"postgresql://nobody:secret@127.0.0.1:{free_port()}/none")
    assert process.stderr is not None
    seen = [process.stderr.readline()]
    while b"ledger.awaited" not in seen[-1]:
        seen.append(process.stderr.readline())

    process.terminate()
    _, rest = process.communicate(timeout=30)

    assert process.returncode == 0
    assert b"secret" not in b"".join([*seen, rest])
