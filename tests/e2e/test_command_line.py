"""The `mws` command as people and scripts use it: every command, its JSON, its exit status, its complaints.

Owns the command line against a running gateway; what the services decide has suites of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import ROOT, Gateway, free_port_block
from tests.load import Caller, eventually, messages

MWS = Path(sys.executable).with_name("mws")
pytestmark = pytest.mark.parametrize("gateway", ["link"], indirect=True)


def _mws(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MWS, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def account_id(gateway: Gateway) -> str:
    return gateway.account("cli").account_id


def test_an_account_is_created_with_key_plan_credits_and_ceilings(gateway: Gateway) -> None:
    options = ["--credit-usd", "12.5", "--promo-usd", "0.000000001", "--rpm", "7", "--tpm", "900", "--concurrency", "3"]

    made = gateway.mws("account", "create", "--name", "all options", *options)

    assert made.keys() >= {"account_id", "api_key"}
    assert made["api_key"].startswith("mws_live_")
    shown = gateway.mws("account", "show", "--account", made["account_id"])
    assert (shown["requests_per_minute"], shown["tokens_per_minute"], shown["concurrent_calls"]) == (7, 900, 3)
    balance = gateway.mws("balance", "--account", made["account_id"])
    assert balance["balance_nano_usd"] == 12_500_000_001
    assert balance["promotional_nano_usd"] == 1
    assert balance["lifetime_paid_nano_usd"] == 12_500_000_000


def test_accounts_are_listed_and_found_by_their_name(gateway: Gateway) -> None:
    made = gateway.account("only one has this name")

    listed = gateway.mws("account", "list")["accounts"]

    assert made.account_id in [row["account_id"] for row in listed]
    assert gateway.mws("balance", "--account", "only one has this name")["account_id"] == made.account_id


async def test_keys_are_made_listed_throttled_and_revoked(gateway: Gateway, account_id: str) -> None:
    made = gateway.mws("key", "create", "--account", account_id, "--name", "second", "--rpm", "9")
    throttled = gateway.mws("key", "throttle", "--key", made["key_id"], "--rpm", "1")
    caller = Caller(gateway.base_url, made["api_key"])
    statuses = [(await caller.send(messages("hi"))).status for _ in range(2)]
    free = gateway.mws("key", "throttle", "--key", made["key_id"])
    after = (await caller.send(messages("hi"))).status
    revoked = gateway.mws("key", "revoke", "--key", made["key_id"])

    assert (throttled["throttle_rpm"], free["throttle_rpm"]) == (1, None)
    assert [*statuses, after] == [200, 429, 200]
    assert revoked["state"] == "revoked"
    states = {row["key_id"]: row["state"] for row in gateway.mws("key", "list", "--account", account_id)["keys"]}
    assert states[made["key_id"]] == "revoked"
    assert sorted(states.values()) == ["active", "revoked"]


def test_a_grant_is_made_once_per_idempotency_key(gateway: Gateway, account_id: str) -> None:
    grant = ["credit", "grant", "--account", account_id, "--idempotency-key", "k1", "--usd"]
    first, again = gateway.mws(*grant, "3.25"), gateway.mws(*grant, "3.25")

    assert first["entry_id"] == again["entry_id"]
    assert gateway.mws("balance", "--account", account_id)["balance_nano_usd"] == 103_250_000_000
    other = gateway.run(*grant, "4", "--json")
    assert other.exit_code == 1
    assert json.loads(other.stderr)["error"]["reason"] == "ALREADY_EXISTS"


def test_a_team_is_created_once(gateway: Gateway, account_id: str) -> None:
    create = ["team", "create", "--account", account_id, "--issuer", "https://issuer.test", "--subject", account_id]
    first, again = gateway.mws(*create), gateway.mws(*create)

    assert first["team_id"] == again["team_id"]
    assert [row["subject"] for row in gateway.mws("team", "list", "--account", account_id)["teams"]] == [account_id]


async def test_usage_and_ledger_tell_the_same(gateway: Gateway) -> None:
    account = gateway.account("told twice")
    answer = await Caller(gateway.base_url, account.api_key).send(messages("hello", max_tokens=7))

    (entry,) = [e for e in gateway.mws("ledger", "entries", "--account", account.account_id)["entries"] if e["call_id"]]
    usage = gateway.mws("usage", "--account", account.account_id)
    checked = gateway.mws("ledger", "check")

    assert entry["call_id"] == answer.call_id
    assert usage["total"]["charged_nano_usd"] == -entry["amount_nano_usd"]
    assert [group["group"] for group in usage["groups"]] == ["dragon"]
    assert checked["ok"] is True
    assert checked["checked_transfers"] > 0


def test_upstreams_are_listed_drained_and_put_back(gateway: Gateway) -> None:
    listed = gateway.mws("upstream", "list")["upstreams"]
    one = ["upstream", "drain", "--profile", "dragon-coder", "--upstream", "simulated"]

    drained, back = gateway.mws(*one), gateway.mws(*one, "--undo")

    assert {"dragon", "dragon-coder"} <= {row["profile"] for row in listed}
    assert "drained" in drained["health"]
    assert "drained" not in back["health"]


def _where(gateway: Gateway) -> list[str]:
    return ["--grpc-base-port", str(gateway.grpc_base_port), "--data-dir", str(gateway.data_dir)]


REFUSED = [
    pytest.param(["balance", "--account", "nobody has this name"], "NOT_FOUND", id="no such name"),
    pytest.param(
        ["account", "show", "--account", "01900000-0000-7000-8000-000000000000"], "NOT_FOUND", id="no such id"
    ),
    pytest.param(["account", "create", "--name", ""], "REQUEST_INVALID", id="no name"),
    pytest.param(["account", "create", "--name", "x", "--plan", "nope"], "REQUEST_INVALID", id="no such plan"),
    pytest.param(["account", "create", "--name", "x", "--credit-usd", "a lot"], "USAGE", id="not a number"),
    pytest.param(["account", "create", "--name", "x", "--credit-usd", "-1"], "USAGE", id="less than zero"),
    pytest.param(["account", "create", "--name", "x", "--credit-usd", "0.0000000001"], "USAGE", id="too fine"),
    pytest.param(["key", "revoke", "--key", "01900000-0000-7000-8000-000000000000"], "NOT_FOUND", id="no such key"),
    pytest.param(["upstream", "drain", "--profile", "dragon", "--upstream", "x"], "NOT_FOUND", id="no such upstream"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED)
def test_a_refusal_is_one_json_object_on_stderr_and_exit_1(gateway: Gateway, arguments: list[str], reason: str) -> None:
    done = gateway.run(*arguments, "--json")

    assert (done.exit_code, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["reason"] == reason


def test_people_read_words_instead(gateway: Gateway) -> None:
    done = _mws("balance", "--account", "nobody", *_where(gateway))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error ")
    assert "Traceback" not in done.stderr


def test_a_wrong_admin_token_is_refused(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MWS_ADMIN_TOKEN", gateway.token("edge"))
    wrong = gateway.mws("account", "list", check=False)
    monkeypatch.setenv("MWS_ADMIN_TOKEN", gateway.token("admin"))

    assert wrong is None
    assert gateway.mws("account", "list")["accounts"]


def test_without_a_gateway_the_error_says_so(gateway: Gateway) -> None:
    done = _mws("ledger", "check", "--json", "--grpc-base-port", "1", "--data-dir", str(gateway.data_dir))

    assert done.returncode == 1
    assert "is the gateway running" in json.loads(done.stderr)["error"]["message"]


def test_taken_ports_are_named(gateway: Gateway, tmp_path: Path) -> None:
    _, base = free_port_block()
    ports = ["--port", str(gateway.port), "--grpc-base-port", str(base)]

    done = _mws("up", *ports, "--data-dir", str(tmp_path))

    assert (done.returncode, done.stdout) == (2, "")
    assert f"port {gateway.port} on 127.0.0.1 is in use" in done.stderr


def test_a_data_directory_belongs_to_one_gateway(gateway: Gateway) -> None:
    port, base = free_port_block()

    done = _mws("up", "--port", str(port), "--grpc-base-port", str(base), "--data-dir", str(gateway.data_dir))

    assert done.returncode == 2
    assert "already runs" in done.stderr


UNSUPPORTED = [
    pytest.param(["--replicas", "edge=1,auth=3"], "--redis-url", id="replicas on embedded holds"),
    pytest.param(["--redis-url", "redis://x", "--replicas", "auth=2"], "--postgres-url", id="on embedded accounts"),
    pytest.param(["--replicas", "metering=2"], "--postgres-url", id="replicas on an embedded ledger"),
    pytest.param(["--replicas", "nose=1"], "nose=1", id="no such service"),
    pytest.param(["--upstream", "http://x", "--upstream-dialect", "latin"], "--upstream-dialect", id="dialect"),
    pytest.param(["--catalog", "/nowhere.yaml"], "does not exist", id="no catalogue file"),
    pytest.param(["--port", "65536"], "--port", id="no such port"),
    pytest.param(["--grpc-base-port", "65500"], "--grpc-base-port", id="no room for the links' ports"),
]


@pytest.mark.parametrize(("options", "said"), UNSUPPORTED)
def test_what_up_cannot_do_it_says(gateway: Gateway, tmp_path: Path, options: list[str], said: str) -> None:
    del gateway
    done = _mws("up", "--data-dir", str(tmp_path), *options)

    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_start_that_must_fail_says_why_in_a_line(gateway: Gateway, tmp_path: Path) -> None:
    port, base = free_port_block()
    up = ["up", "--port", str(port), "--grpc-base-port", str(base), "--data-dir"]
    (tmp_path / "file").write_text("")
    (tmp_path / "bad" / "secrets").mkdir(parents=True)
    (tmp_path / "bad" / "secrets" / "callers.json").write_text("{")
    (tmp_path / "torn" / "metering").mkdir(parents=True)
    (tmp_path / "torn" / "metering" / "ledger.sqlite3").write_bytes(b"no database " * 1000)
    starts = {
        "cannot listen on 192.0.2.1": [str(tmp_path / "a"), "--host", "192.0.2.1"],
        "Not a directory": [str(tmp_path / "file")],
        "callers.json is damaged": [str(tmp_path / "bad")],
        "ledger.sqlite3 cannot be used as a ledger": [str(tmp_path / "torn")],
        "setting upstream_url": [str(tmp_path / "b"), "--upstream", "nowhere"],
    }
    for said, options in starts.items():
        done = _mws(*up, *options)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


def test_a_broken_catalogue_ends_the_start_with_its_rule(gateway: Gateway, tmp_path: Path) -> None:
    del gateway
    port, base = free_port_block()
    broken = tmp_path / "broken.yaml"
    broken.write_text("default_profile: nobody\nprofiles: {}\n")

    ports = ["--port", str(port), "--grpc-base-port", str(base)]
    done = _mws("up", *ports, "--data-dir", str(tmp_path / "data"), "--catalog", str(broken))

    assert done.returncode == 2
    assert "broken.yaml" in done.stderr
    assert "ready" not in done.stdout


@pytest.fixture
def detached(gateway: Gateway, tmp_path: Path) -> Iterator[tuple[Path, list[str], int]]:
    """A data directory whose path has a space, and a gateway on it that `--detach` started."""
    del gateway
    data_dir = tmp_path / "a path with spaces"
    port, base = free_port_block()
    options = ["--port", str(port), "--grpc-base-port", str(base), "--data-dir", str(data_dir)]
    done = _mws("up", "--detach", *options)
    try:
        assert (done.returncode, done.stdout) == (0, f"ready http://127.0.0.1:{port}\n"), done.stderr
        yield data_dir, options, port
    finally:
        _mws("down", "--data-dir", str(data_dir))


async def test_detach_returns_when_it_serves_and_down_stops_it(detached: tuple[Path, list[str], int]) -> None:
    data_dir, options, port = detached
    where = ["--data-dir", str(data_dir)]

    again = _mws("up", "--detach", *options)
    demo, demo_again = (_demo(_mws("demo", "--json", *where)) for _ in range(2))
    answer = await Caller(f"http://127.0.0.1:{port}", demo["api_key"]).send(messages("hi"))
    down, down_again = _mws("down", *where), _mws("down", *where)

    assert (again.returncode, again.stdout) == (0, f"ready http://127.0.0.1:{port}\n")
    assert demo == demo_again
    assert demo["base_url"] == f"http://127.0.0.1:{port}/v1"
    assert answer.ok
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    assert (down_again.returncode, down_again.stdout) == (0, "not running\n")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


async def test_children_of_a_killed_manager_end_and_the_next_start_works(
    detached: tuple[Path, list[str], int],
) -> None:
    data_dir, options, _ = detached
    pids = [int(path.read_text()) for path in (data_dir / "run").glob("*.pid")]
    manager = json.loads((data_dir / "run" / "manager.json").read_text())["pid"]

    os.kill(manager, signal.SIGKILL)

    assert len(pids) == 4
    await eventually(lambda: not any(_runs(pid) for pid in pids), within_s=20, why="the children's end")
    assert _mws("down", "--data-dir", str(data_dir)).stdout == "not running\n"
    assert _mws("up", "--detach", *options).returncode == 0


async def test_without_restart_a_dead_process_stays_dead(gateway: Gateway, tmp_path: Path) -> None:
    del gateway
    with Gateway(tmp_path, "--no-restart") as own:
        os.kill(own.pid("auth"), signal.SIGKILL)
        await eventually(lambda: any("not restarted" in line for line in own.output), why="the remark")

        assert not (tmp_path / "run" / "auth-0.pid").exists()
        assert own.stop() == 0


def _demo(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
