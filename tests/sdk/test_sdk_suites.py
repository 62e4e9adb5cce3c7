"""The vendors' own tests of their SDKs' API calls, as they published them, against a running gateway.

Owns fetching the suites (below build/, never committed) and the choice of tests that speak of what is served here.
"""

import json
import shutil
import subprocess
import tarfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from services.routing_and_inference import catalog_file
from tests.gateway import Gateway

BUILD = Path("build/sdk-suites").resolve()
# What the suites import beside their SDK, in the versions that they were locked with.
TOOLS = (
    "dirty-equals==0.11",
    "http-snapshot==0.1.9",
    "httpx==0.28.1",
    "inline-snapshot==0.32.5",
    "pytest==9.0.3",
    "pytest-asyncio==1.3.0",
    "pytest-xdist==3.8.0",
    "respx==0.22.0",
    "rich==14.3.3",
    "time-machine==3.2.0",
)
# The keys that the suites send, and the model names that they look up.
TEST_KEYS = ("My API Key", "my-anthropic-api-key")
NAMES = ("gpt-6-astra", "model_id")

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@dataclass(frozen=True, slots=True)
class Suite:
    """A published suite: `chosen` is pytest's `-k`."""

    package: str
    version: str
    base_path: str
    chosen: dict[str, str]

    @property
    def source(self) -> Path:
        return BUILD / f"{self.package}-{self.version}"


ANTHROPIC = Suite("anthropic", "2.12.0", "", {"test_messages.py": "", "test_models.py": ""})
# Stored completions and deleting models are endpoints of the vendor's platform, not of a gateway.
OPENAI = Suite(
    "openai",
    "3.54.0",
    "/v1",
    {"chat/test_completions.py": "create", "test_embeddings.py": "", "test_models.py": "not delete"},
)


@pytest.fixture(scope="module")
def suite_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that takes the suites' fixed keys for an account's, and knows the names that they look up."""
    data_dir = tmp_path_factory.mktemp("gateway-suites")
    catalogue = data_dir / "catalogue.yaml"
    content = yaml.safe_load(catalog_file.PACKAGED.read_text())
    content["aliases"] |= dict.fromkeys(NAMES, "dragon")
    catalogue.write_text(yaml.safe_dump(content))
    with Gateway(data_dir) as first:
        key = first.account("sdk-suites").api_key
    environment = {
        "MWS_EDGE_TEST_KEYS": json.dumps(dict.fromkeys(TEST_KEYS, key)),
        "MWS_EDGE_BASE64_EMBEDDINGS": "false",  # the suite's strict clients ask for base64, then refuse it
        "MWS_INFERENCE_SIMULATED_PACE": "instant",
    }
    with Gateway(data_dir, "--catalog", str(catalogue), environment=environment) as gateway:
        yield gateway


def _run(*command: str | Path, directory: Path | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=800, check=False, cwd=directory
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    return done.stdout


def _python_for(suite: Suite) -> Path:
    home = BUILD / f"environment-{suite.package}-{suite.version}"
    python = home / "bin" / "python"
    if not (home / ".complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        wanted = f"{suite.package}[aiohttp]=={suite.version}"
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted, *TOOLS)
        (home / ".complete").touch()
    return python


def _fetch(suite: Suite, python: Path) -> None:
    """The suites are in the source distributions only."""
    if (suite.source / ".complete").exists():
        return
    shutil.rmtree(suite.source, ignore_errors=True)
    archive = BUILD / "archives" / f"{suite.package}-{suite.version}.tar.gz"
    if not archive.exists():
        wanted = f"{suite.package}=={suite.version}"
        fetch = ("download", "--quiet", "--disable-pip-version-check", "--no-binary", ":all:", "--no-deps")
        _run(python, "-m", "pip", *fetch, wanted, "--dest", archive.parent)
    with tarfile.open(archive) as packed:
        packed.extractall(BUILD, filter="data")
    (suite.source / ".complete").touch()


@pytest.mark.parametrize("suite", [pytest.param(s, id=f"{s.package} {s.version}") for s in (ANTHROPIC, OPENAI)])
def test_the_sdk_s_own_tests_pass(suite_gateway: Gateway, suite: Suite) -> None:
    python = _python_for(suite)
    _fetch(suite, python)
    for file, chosen in suite.chosen.items():
        address = f"TEST_API_BASE_URL={suite_gateway.base_url}{suite.base_path}"
        tests = ("-m", "pytest", f"tests/api_resources/{file}", "-k", chosen, "-n", "0", "-q", "--no-header")
        said = _run("env", address, python, *tests, directory=suite.source)
        print(f"{suite.package} {suite.version} {file}: {said.strip().splitlines()[-1]}")
        assert " passed" in said
