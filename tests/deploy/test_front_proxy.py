"""The front proxy: its committed configuration is fresh, and the real Envoy accepts it.

Owns the static checks; traffic through it is a test of the whole system.
"""

import json
import subprocess
import sys
from pathlib import Path

from deploy.k8s.front_proxy.bootstrap import KUBERNETES, bootstrap

COMMITTED = Path("deploy/k8s/base/envoy.yaml")
ENVOY = Path(sys.executable).with_name("envoy")


def test_the_committed_configuration_is_fresh() -> None:
    assert json.loads(COMMITTED.read_text()) == bootstrap(KUBERNETES), "run `make manifests`"


def test_the_real_envoy_accepts_the_configuration() -> None:
    done = subprocess.run(
        [ENVOY, "--mode", "validate", "-c", str(COMMITTED), "-l", "error"], capture_output=True, text=True, check=False
    )

    assert (0, f"configuration '{COMMITTED}' OK") == (done.returncode, done.stdout.strip())
