"""A gateway for fault suites: its own, since they break it.

Owns starting it once per suite and transport; whatever a test breaks is whole again before the next one.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway import Account, Gateway
from tests.paced import Paced
from tests.provider import Provider


@pytest.fixture(scope="session", params=["link", pytest.param("grpc", marks=pytest.mark.long)])
def faulty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paced]:
    """The four processes in front of the logging provider; the ledger must hold when the suite is over."""
    data_dir: Path = tmp_path_factory.mktemp(f"faults-{request.param}")
    environment = {"MWS_TRANSPORT": request.param}
    with Provider() as provider, Gateway(data_dir, *provider.options, environment=environment) as gateway:
        yield Paced(gateway, provider)
        assert gateway.mws("ledger", "check")["violations"] == []
        assert gateway.stop() == 0


@pytest.fixture(scope="session")
def hit_accounts(faulty: Paced) -> list[Account]:
    """The accounts of this gateway whose calls were hit, in the order of the suites."""
    del faulty
    return []
