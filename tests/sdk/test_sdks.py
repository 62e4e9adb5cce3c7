"""Every supported SDK, old and new, Python and Node, unchanged but for base URL and key.

Owns the environments that the older SDKs live in (cached under build/); the scenarios are programs of their own.
"""

import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checking_proxy import CheckingProxy
from tests.gateway import Gateway

HERE = Path(__file__).parent
ENVIRONMENTS = Path("build/sdk-environments").resolve()

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class Keys:
    """API keys of three accounts."""

    good: str
    without_credit: str
    one_request_per_minute: str


@pytest.fixture(scope="module")
def keys(gateway: Gateway) -> Keys:
    return Keys(
        gateway.account("sdk").api_key,
        gateway.account("sdk-broke", credit_usd=None).api_key,
        gateway.account("sdk-slow", rpm=1).api_key,
    )


def _python_with(package: str) -> Path:
    home = ENVIRONMENTS / package.replace("==", "-")
    python = home / "bin" / "python"
    if not (home / ".complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package)
        (home / ".complete").touch()
    return python


def _node_with(package: str) -> Path:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js is not installed")
    home = ENVIRONMENTS / package.replace("/", "_").replace("@", "_")
    if not (home / ".complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        _run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home), package)
        (home / ".complete").touch()
    return home


def _run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def checked(gateway: Gateway) -> Iterator[CheckingProxy]:
    """The gateway behind a proxy that holds every answer to the rules."""
    with CheckingProxy(gateway.base_url) as proxy:
        yield proxy
        assert proxy.answers > 0
        assert proxy.streams > 0


def _arguments(checked: CheckingProxy, keys: Keys, suffix: str) -> list[str]:
    return [checked.base_url + suffix, keys.good, keys.without_credit, keys.one_request_per_minute]


def _slow_account_is_fresh(gateway: Gateway, keys: Keys) -> Keys:
    # The scenario spends the one request of the slow account, so each run needs an account of its own.
    return Keys(keys.good, keys.without_credit, gateway.account("sdk-slow", rpm=1).api_key)


@pytest.mark.parametrize("suffix", [pytest.param("", id="plain base URL"), pytest.param("/v1", id="base URL with v1")])
@pytest.mark.parametrize("package", ["anthropic==2.12.0", "anthropic==0.79.0"])
def test_anthropic_for_python(gateway: Gateway, checked: CheckingProxy, keys: Keys, package: str, suffix: str) -> None:
    python = Path(sys.executable) if package == "anthropic==2.12.0" else _python_with(package)
    arguments = _arguments(checked, _slow_account_is_fresh(gateway, keys), suffix)

    said = _run(python, HERE / "anthropic_python.py", *arguments)

    assert json.loads(said)["ok"]


@pytest.mark.parametrize("package", ["openai==3.54.0", "openai==1.109.1"])
def test_openai_for_python(gateway: Gateway, checked: CheckingProxy, keys: Keys, package: str) -> None:
    python = Path(sys.executable) if package == "openai==3.54.0" else _python_with(package)
    arguments = _arguments(checked, _slow_account_is_fresh(gateway, keys), "/v1")

    said = _run(python, HERE / "openai_python.py", *arguments)

    assert json.loads(said)["ok"]


@pytest.mark.parametrize("suffix", [pytest.param("", id="plain base URL"), pytest.param("/v1", id="base URL with v1")])
def test_anthropic_for_node(gateway: Gateway, checked: CheckingProxy, keys: Keys, suffix: str) -> None:
    home = _node_with("@anthropic-ai/sdk@1.12.0")
    script = shutil.copy(HERE / "anthropic_node.mjs", home)

    said = _run("node", script, *_arguments(checked, _slow_account_is_fresh(gateway, keys), suffix))

    assert json.loads(said)["ok"]


def test_openai_for_node(gateway: Gateway, checked: CheckingProxy, keys: Keys) -> None:
    home = _node_with("openai@6.49.0")
    script = shutil.copy(HERE / "openai_node.mjs", home)

    said = _run("node", script, *_arguments(checked, _slow_account_is_fresh(gateway, keys), "/v1"))

    assert json.loads(said)["ok"]
