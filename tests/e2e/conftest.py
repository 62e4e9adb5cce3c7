"""The running systems that the end-to-end suite speaks to.

Owns their start and what must hold of them when all tests are over: a ledger that holds, and no secret in any file.
"""

import re
from collections.abc import Iterator

import pytest

from tests.company import Claude, Company, Realm, catalogue
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


@pytest.fixture(scope="session", params=["link", "grpc"])
def company(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    folder = tmp_path_factory.mktemp(f"company-{request.param}")
    with Realm() as realm, Claude() as claude:
        file = folder / "catalogue.yaml"
        file.write_text(catalogue(realm, claude))
        environment = {"MWS_TRANSPORT": request.param, "CLAUDE_KEY": "sk-ant-of-the-company"}
        with Gateway(folder / "data", "--catalog", str(file), environment=environment) as gateway:
            account = gateway.account("company")
            gateway.account("subsidiary", rpm=1)
            company = Company(gateway, realm, claude, account.account_id)
            with company.http:
                yield company
            assert gateway.mws("ledger", "check")["violations"] == []
            logged = gateway.logs()
        assert gateway.stop() == 0
    for text in ("Traceback", "sk-ant-of-the-company", "never retrieved", "eyJhbGciOi", "Grüße"):
        assert text not in logged, f"{text!r} in the logs"
