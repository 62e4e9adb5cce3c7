"""The LiteLLM proxy with two workers, from PyPI in a virtual environment of its own.

Owns how LiteLLM is installed and configured; refuses to give it a database or telemetry."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.bench.options import Options
from tests.bench.processes import ProcessGroup, answers_ok, free_port, process_tree, wait_until
from tests.bench.systems.system import Route, run_installer

VERSION: Final = "1.106.2"
WORKERS: Final = 2
_MASTER_KEY: Final = "sk-bench-master"
# Its documented production settings; the cost map is read from the package instead of the network.
_VARIABLES: Final = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
}


class LiteLlm:
    """Keys are checked against the master key in memory; it neither counts nor charges."""

    name = "litellm"

    def __init__(self, options: Options) -> None:
        self._venv: Path = options.peers_dir / f"litellm-{VERSION}"
        self._log = options.logs_dir / "litellm.log"
        self._group: ProcessGroup | None = None
        self._port = 0

    def install(self) -> None:
        done = self._venv / "installed"
        if done.exists():
            return
        run_installer([sys.executable, "-m", "venv", "--clear", str(self._venv)])
        run_installer([str(self._venv / "bin/pip"), "install", "--quiet", f"litellm[proxy]=={VERSION}"])
        done.touch()

    def start(self, upstream_port: int) -> None:
        parameters = {
            "model": "openai/canned",
            "api_base": f"http://127.0.0.1:{upstream_port}/v1",
            "api_key": "sk-canned",
        }
        # JSON is YAML.
        config = {
            "model_list": [{"model_name": "bench", "litellm_params": parameters}],
            "litellm_settings": {"telemetry": False, "set_verbose": False},
            "general_settings": {"master_key": _MASTER_KEY},
        }
        path = self._venv / "bench.yaml"
        path.write_text(json.dumps(config))
        self._port = free_port()
        command = [str(self._venv / "bin/litellm"), "--config", str(path), "--telemetry", "False"]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--num_workers", str(WORKERS)]
        self._group = ProcessGroup(command, self._log, _VARIABLES)

    def wait_ready(self) -> tuple[Route, ...]:
        assert self._group is not None
        wait_until(lambda: answers_ok(self._port, "/health/liveliness"), self._group, 120)
        headers = (("authorization", f"Bearer {_MASTER_KEY}"),)
        return (Route("LiteLLM", (self._port,), "bench", headers),)

    def pids(self) -> frozenset[int]:
        return process_tree([self._group.pid]) if self._group else frozenset()

    def version(self) -> str:
        python = str(self._venv / "bin/python")
        code = "from importlib.metadata import version; print(version('litellm'))"
        return f"litellm {subprocess.check_output([python, '-c', code], text=True).strip()}, {WORKERS} workers"

    def stop(self) -> None:
        if self._group:
            self._group.stop()
