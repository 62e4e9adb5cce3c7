"""The running systems that the end-to-end suite speaks to.

Owns their start and what must hold of them when all tests are over: a ledger that holds, and no secret in any file.
"""

import re
from collections.abc import Iterator

import pytest

from tests.gateway import Gateway
from tests.paced import Paced
from tests.provider import Provider


@pytest.fixture(scope="session", params=["link", "grpc"])
def paced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paced]:
    """The four processes in front of the logging provider, over each transport."""
    data_dir = tmp_path_factory.mktemp(f"paced-{request.param}")
    with Provider() as provider:
        with Gateway(data_dir, *provider.options, environment={"MWS_TRANSPORT": request.param}) as gateway:
            yield Paced(gateway, provider)
            checked = gateway.mws("ledger", "check")
            assert checked["violations"] == []
            logged = gateway.logs()
        assert gateway.stop() == 0
    for text in ("Traceback", "mws_service_", "never retrieved", "never awaited"):
        assert text not in logged, f"{text!r} in the logs"
    assert not re.search(r"mws_live_\w{12}", logged), "an API key in the logs"
