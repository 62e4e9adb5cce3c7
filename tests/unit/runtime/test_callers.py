"""Service tokens, bearer callers, the account check of teams, and the secrets of one machine.

Owns identity without sockets; refuses the table itself (tests/rpc/runtime/test_who_may_call.py).
"""

import json
import stat
from pathlib import Path

import pytest

from services.runtime.callers import BearerCallers, ServiceTokens, account_for, mint_secrets, read_token
from services.runtime.calls import Call, Caller, CallerClass
from services.runtime.errors import ForeignAccountError, GatewayError, InvalidCredentialError, MissingCredentialError

TEAM = Caller(CallerClass.TEAM, "team-7", account_id="account-7")


class CountingResolver:
    """Knows keys that begin with `good`, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, token: str) -> Caller:
        self.asked.append(token)
        if not token.startswith("good"):
            raise InvalidCredentialError("the credential is not valid")
        return Caller(CallerClass.TEAM, token, account_id="account-7")


@pytest.fixture
def tokens(tmp_path: Path) -> ServiceTokens:
    mint_secrets(tmp_path)
    return ServiceTokens.read(tmp_path)


async def test_a_service_token_names_its_class(tmp_path: Path, tokens: ServiceTokens) -> None:
    bearer = BearerCallers(tokens)
    for caller_class in set(CallerClass) - {CallerClass.TEAM}:
        token = read_token(tmp_path, caller_class)
        assert (await bearer.identify(f"Bearer {token}")).caller_class is caller_class
        assert tokens.identify(token).caller_class is caller_class


@pytest.mark.parametrize(
    ("authorization", "error"),
    [
        pytest.param(None, MissingCredentialError, id="no header"),
        pytest.param("", MissingCredentialError, id="empty header"),
        pytest.param("Bearer ", MissingCredentialError, id="no token"),
        pytest.param("Basic abc", InvalidCredentialError, id="another scheme"),
        pytest.param("Bearer bad", InvalidCredentialError, id="unknown token"),
    ],
)
async def test_a_bad_header_is_refused(
    tokens: ServiceTokens, authorization: str | None, error: type[GatewayError]
) -> None:
    with pytest.raises(error):
        await BearerCallers(tokens, CountingResolver()).identify(authorization)


async def test_an_unknown_bearer_is_invalid_where_teams_are_not_served(tokens: ServiceTokens) -> None:
    with pytest.raises(InvalidCredentialError):
        await BearerCallers(tokens).identify("Bearer good")


async def test_a_team_is_resolved_again_after_ten_seconds(tokens: ServiceTokens) -> None:
    resolver, clock = CountingResolver(), [100.0]
    bearer = BearerCallers(tokens, resolver, now=lambda: clock[0])
    for moment in (100.0, 109.9, 110.0, 119.9):
        clock[0] = moment
        assert (await bearer.identify("Bearer good")).account_id == "account-7"
    assert resolver.asked == ["good", "good"]


async def test_a_team_is_resolved_every_time_where_nothing_is_kept(tokens: ServiceTokens) -> None:
    resolver = CountingResolver()
    bearer = BearerCallers(tokens, resolver, keep_s=0.0, now=lambda: 100.0)
    for _ in range(2):
        await bearer.identify("Bearer good")
    assert resolver.asked == ["good", "good"]


async def test_a_service_token_is_shown_as_a_bearer_token_or_not_at_all(tmp_path: Path, tokens: ServiceTokens) -> None:
    token = read_token(tmp_path, CallerClass.ADMIN)
    with pytest.raises(InvalidCredentialError):
        await BearerCallers(tokens).identify(f"Basic {token}")


async def test_a_refusal_is_not_remembered(tokens: ServiceTokens) -> None:
    resolver = CountingResolver()
    bearer = BearerCallers(tokens, resolver)
    for _ in range(2):
        with pytest.raises(InvalidCredentialError):
            await bearer.identify("Bearer bad")
    assert len(resolver.asked) == 2


async def test_the_cache_of_teams_is_bounded_and_forgets_the_oldest(tokens: ServiceTokens) -> None:
    resolver = CountingResolver()
    bearer = BearerCallers(tokens, resolver, capacity=2)
    for name in ("good1", "good2", "good3", "good3", "good2", "good1"):
        await bearer.identify(f"Bearer {name}")
    assert resolver.asked == ["good1", "good2", "good3", "good1"]


def test_a_link_is_opened_with_a_service_token_only(tokens: ServiceTokens) -> None:
    with pytest.raises(MissingCredentialError):
        tokens.identify("")
    with pytest.raises(InvalidCredentialError):
        tokens.identify("good")


@pytest.mark.parametrize(
    ("caller", "requested", "account"),
    [
        pytest.param(TEAM, "", "account-7", id="a team that names none acts for its own"),
        pytest.param(TEAM, "account-7", "account-7", id="a team may name its own"),
        pytest.param(Caller(CallerClass.ADMIN, "admin"), "account-9", "account-9", id="an admin names any"),
        pytest.param(Caller(CallerClass.EDGE, "edge"), "", "", id="an absent account stays absent"),
    ],
)
def test_the_account_of_a_call(caller: Caller, requested: str, account: str) -> None:
    assert account_for(Call("/a/B", caller, (), 0.0, None), requested) == account


def test_a_team_may_not_name_another_account() -> None:
    with pytest.raises(ForeignAccountError):
        account_for(Call("/a/B", TEAM, (), 0.0, None), "account-8")


def test_minted_secrets_are_private_and_kept(tmp_path: Path) -> None:
    secrets = tmp_path / "deep" / "secrets"
    mint_secrets(secrets)
    first = {path.name: path.read_text() for path in secrets.iterdir()}
    names = {"admin.token", "auth.token", "edge.token", "inference.token", "metering.token"}
    assert set(first) == names | {"callers.json", "key_pepper"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()} == {0o600}
    mint_secrets(secrets)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == first


def test_callers_added_by_hand_are_kept_and_no_token_is_listed_in_clear(tmp_path: Path) -> None:
    mint_secrets(tmp_path)
    listed = tmp_path / "callers.json"
    rows = json.loads(listed.read_text()) | {"0" * 64: {"class": "edge", "name": "edge-of-another-machine"}}
    listed.write_text(json.dumps(rows))
    (tmp_path / "edge.token").unlink()
    mint_secrets(tmp_path)
    again = json.loads(listed.read_text())
    assert set(rows) < set(again)
    assert all(path.read_text().strip() not in listed.read_text() for path in tmp_path.glob("*.token"))
