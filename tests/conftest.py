"""What every test shares: the event loop, hypothesis profiles, the running gateway, the switch for long suites.

Owns fixtures of the whole suite; a folder's own fixtures live in the folder.
"""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.gateway import Gateway
from tests.postgres_server import postgres as postgres
from tests.postgres_server import postgres_session as postgres_session
from tests.postgres_server import postgres_url as postgres_url

settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", deadline=None, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("round", deadline=None, max_examples=1_000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-long", action="store_true", help="also run the suites that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-long"):
        return
    skipped = pytest.mark.skip(reason="takes minutes; run with --run-long")
    for item in items:
        if "long" in item.keywords:
            item.add_marker(skipped)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", params=["link", "grpc"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The four processes with the simulated upstream at full speed, over each transport."""
    environment = {"MWS_TRANSPORT": request.param, "MWS_INFERENCE_SIMULATED_PACE": "instant"}
    with Gateway(tmp_path_factory.mktemp(f"gateway-{request.param}"), environment=environment) as running:
        yield running
