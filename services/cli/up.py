"""`mws up`, `mws down` and `mws demo`: the whole gateway on one machine.

Owns the options and what is printed; `manager.py` runs the processes.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from services.cli import running
from services.cli.admin import DEFAULT_DATA_DIR, DEFAULT_GRPC_BASE_PORT
from services.cli.deployment import MODULES, MOST_REPLICAS, Deployment
from services.cli.manager import START_TIMEOUT_S, STOP_TIMEOUT_S, Manager, at_free_ports
from services.cli.running import StartError
from services.runtime.callers import FOR_ITS_OWNER_ALONE, mint_secrets

app = typer.Typer()
_err = Console(stderr=True)

DEFAULT_PORT = 8080
# Their values may hold passwords, so `--detach` hands them on in the environment and not on a command line.
_POSTGRES, _REDIS = "MWS_POSTGRES_URL", "MWS_REDIS_URL"
DataDir = Annotated[Path, typer.Option(help="Where databases, secrets, logs and pids live.")]
_POLL_S = 0.05


def _existing(text: str) -> Any:
    return typer.Option(help=text, exists=True, dir_okay=False, readable=True)


@app.command()
def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Public HTTP port.", min=1, max=65_535)] = DEFAULT_PORT,
    grpc_base_port: Annotated[
        int, typer.Option(help="gRPC: auth; +1 inference; +2 metering.", min=1, max=65_333)
    ] = DEFAULT_GRPC_BASE_PORT,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    catalog: Annotated[Path | None, _existing("Catalogue file instead of the packaged one.")] = None,
    plans: Annotated[Path | None, _existing("Plans file instead of the packaged one.")] = None,
    upstream: Annotated[str | None, typer.Option(help="One upstream URL for every generation profile.")] = None,
    upstream_dialect: Annotated[str, typer.Option(help="`openai` or `anthropic`.")] = "openai",
    postgres_url: Annotated[str | None, typer.Option(help="PostgreSQL instead of SQLite.", envvar=_POSTGRES)] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="Redis or Valkey instead of process memory.", envvar=_REDIS)
    ] = None,
    replicas: Annotated[str, typer.Option(help="For example edge=1,auth=3,inference=3,metering=1.")] = "",
    no_restart: Annotated[bool, typer.Option("--no-restart", help="Leave a dead process dead.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it serves; stop it with `mws down`.")] = False,
    any_port: Annotated[
        bool, typer.Option("--any-port", help="Move to free ports if the given ones are taken.")
    ] = False,
) -> None:
    """Start all processes, print `ready http://HOST:PORT` when they answer, and run until SIGTERM."""
    os.umask(FOR_ITS_OWNER_ALONE)
    counts = _replicas(replicas, has_postgres=bool(postgres_url), has_redis=bool(redis_url))
    if upstream_dialect not in ("openai", "anthropic"):
        _fail("--upstream-dialect is `openai` or `anthropic`")
    if detach and (there := _until_ready(data_dir)):
        print(f"ready {there.base_url}", flush=True)
        return
    if there := running.find(data_dir):
        _fail(f"a gateway already runs on {data_dir} (pid {there.pid}); stop it with `mws down`")
    try:
        deployment = Deployment(
            host,
            port,
            grpc_base_port,
            data_dir.resolve(),
            catalog.resolve() if catalog else None,
            plans.resolve() if plans else None,
            upstream,
            upstream_dialect,
            postgres_url or None,
            redis_url or None,
            counts,
        )
        if any_port:
            deployment = at_free_ports(deployment)
        if detach:
            _detach(deployment, no_restart=no_restart)
            return
        manager = Manager(deployment, restart=not no_restart, announce=lambda text: _err.print(text, highlight=False))
        status = asyncio.run(manager.run(lambda: print(f"ready {deployment.base_url}", flush=True)))
    except (StartError, OSError) as error:
        _fail(str(error))
    raise typer.Exit(status)


def _replicas(text: str, *, has_postgres: bool, has_redis: bool) -> dict[str, int]:
    """How many processes of each service; refuses more than one on a store that only one can have."""
    counts: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        service, _, count = part.strip().partition("=")
        if service not in MODULES or not count.isdecimal() or not 1 <= int(count) <= MOST_REPLICAS:
            _fail(
                f"--replicas: {part!r} is not one of {', '.join(MODULES)}, `=`, and a number from 1 to {MOST_REPLICAS}"
            )
        counts[service] = int(count)
    needed = {
        "auth": (has_postgres and has_redis, "--postgres-url and --redis-url"),
        "metering": (has_postgres, "--postgres-url"),
    }
    for service, (is_there, options) in needed.items():
        if counts.get(service, 1) > 1 and not is_there:
            _fail(f"--replicas: {service}={counts[service]} needs {options}: embedded state belongs to one process")
    return counts


def _options(deployment: Deployment, *, no_restart: bool) -> list[str]:
    """The options that describe the same deployment, but for what may hold passwords."""
    options = ["--host", deployment.host, "--port", str(deployment.port)]
    options += ["--grpc-base-port", str(deployment.grpc_base_port), "--data-dir", str(deployment.data_dir)]
    if deployment.catalogue:
        options += ["--catalog", str(deployment.catalogue)]
    if deployment.plans:
        options += ["--plans", str(deployment.plans)]
    if deployment.upstream_url:
        options += ["--upstream", deployment.upstream_url, "--upstream-dialect", deployment.upstream_dialect]
    if deployment.replicas:
        options += ["--replicas", ",".join(f"{service}={count}" for service, count in deployment.replicas.items())]
    return [*options, "--no-restart"] if no_restart else options


def _detach(deployment: Deployment, *, no_restart: bool) -> None:
    log_dir = deployment.data_dir / "log"
    log_dir.mkdir(parents=True, exist_ok=True)
    log_path = log_dir / "manager.log"
    stores = {_POSTGRES: deployment.postgres_url or "", _REDIS: deployment.redis_url or ""}
    offset = log_path.stat().st_size if log_path.exists() else 0
    with log_path.open("ab") as log:
        manager = subprocess.Popen(  # noqa: S603 - our own interpreter and our own options
            [sys.executable, "-m", "services.cli.main", "up", *_options(deployment, no_restart=no_restart)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **stores},  # noqa: TID251 - the child needs PATH
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S + 5
    while time.monotonic() < deadline:
        if (there := running.find(deployment.data_dir)) and there.is_ready:
            print(f"ready {there.base_url}", flush=True)
            return
        if manager.poll() is not None:
            said = log_path.read_bytes()[offset:].decode(errors="replace").strip().removeprefix("error ")
            _fail(said or f"the gateway did not start; see {log_path}")
        time.sleep(_POLL_S)
    manager.terminate()
    _fail(f"the gateway did not become ready; see {log_path}")


def _until_ready(data_dir: Path) -> running.Running | None:
    """The gateway that runs here once it is ready; None if none runs."""
    deadline = time.monotonic() + START_TIMEOUT_S + 5
    while there := running.find(data_dir):
        if there.is_ready:
            return there
        if time.monotonic() > deadline:
            _fail(f"a gateway starts on {data_dir} (pid {there.pid}), and does not become ready")
        time.sleep(_POLL_S)
    return None


@app.command()
def down(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Drain and stop the gateway of a data directory."""
    there = running.find(data_dir)
    if there is None:
        print("not running")
        return
    os.kill(there.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S * len(MODULES)
    while running.find(data_dir):
        if time.monotonic() > deadline:
            _fail(f"process {there.pid} still drains")
        time.sleep(_POLL_S)
    print("stopped")


@app.command()
def secrets(
    directory: Annotated[Path, typer.Option("--dir", help="Where to write them; existing ones are kept.")],
) -> None:
    """Mint service tokens for a deployment that `mws up` does not run."""
    mint_secrets(directory)
    print(directory)


def _fail(text: str) -> NoReturn:
    _err.print(f"[red]error[/red] {escape(text)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)
