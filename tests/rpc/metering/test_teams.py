"""Who a team is: metering asks auth-and-limits, with a digest of a key or with the access token itself.

Owns the look-up; refuses to test what a team may read (see test_reports.py).
"""

from pathlib import Path

import pytest

from services.runtime.calls import Caller, CallerClass
from services.runtime.errors import InvalidCredentialError
from tests.contract.metering.building import ACCOUNT
from tests.rpc.metering.auth_server import ACCESS_TOKEN, API_KEY, auth_server, real_listener
from tests.rpc.metering.serving import ScriptedAuth


@pytest.mark.parametrize(
    ("token", "name"),
    [
        pytest.param(API_KEY, "key-1", id="an API key, named by its id"),
        pytest.param(ACCESS_TOKEN, ACCOUNT, id="an access token, named by its account"),
    ],
)
async def test_a_team_is_known_by_its_credential(tmp_path: Path, token: str, name: str) -> None:
    async with auth_server(ScriptedAuth(), tmp_path) as port:
        listener, channel = real_listener(tmp_path, port)
        found = await listener.team_of(token)
        await channel.close()

    assert found == Caller(CallerClass.TEAM, name, ACCOUNT)


async def test_an_unknown_credential_is_nobody(tmp_path: Path) -> None:
    async with auth_server(ScriptedAuth(), tmp_path) as port:
        listener, channel = real_listener(tmp_path, port)
        with pytest.raises(InvalidCredentialError):
            await listener.team_of("mws_live_unknown")
        await channel.close()
