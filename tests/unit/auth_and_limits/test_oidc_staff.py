"""Staff: whose tokens may call, and which account pays for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from services.auth_and_limits.directory import Directory
from services.auth_and_limits.identity import Claims, SignedTokens
from services.auth_and_limits.oidc_staff import StaffFileError, StaffIssuer, StaffPayers, read_staff_issuers
from services.auth_and_limits.ports import AccountStore
from services.auth_and_limits.records import Account, Payer
from services.runtime.errors import CallerNotAllowedError, InvalidCredentialError, StoreUnavailableError
from services.runtime.ids import new_id

ISSUER = "https://idp.example/realms/company"
ROLES = {"api": {"roles": ["user"]}}
GOOD: dict[str, Any] = {"iss": ISSUER, "aud": "api", "resource_access": ROLES}


class Verified:
    """Tokens whose claims are known to be true."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims

    async def claims(self, token: str) -> Claims:
        return self._claims


class Accounts:
    """A store and a directory of a few accounts."""

    def __init__(self, *accounts: Account) -> None:
        self.known = list(accounts)
        self.asked = 0

    async def accounts(self, name: str, after_id: str, at_most: int) -> Sequence[Account]:
        self.asked += 1
        return [account for account in self.known if account.name == name][:at_most]

    async def payer_by_account(self, account_id: str) -> Payer:
        return Payer(next(account for account in self.known if account.account_id == account_id))


COMPANY, OTHER = Account(new_id(), "company", "free"), Account(new_id(), "other", "free")
REALM = StaffIssuer(ISSUER, "api", "https://idp.example/certs", ("user", "admin"), "company")


def payers(claims: Claims, *realms: StaffIssuer, accounts: Accounts | None = None) -> StaffPayers:
    store = accounts or Accounts(COMPANY, OTHER)
    return StaffPayers(
        realms or (REALM,),
        cast("SignedTokens", Verified(claims)),
        cast("AccountStore", store),
        cast("Directory", store),
    )


async def test_the_configured_account_pays_and_is_looked_up_once() -> None:
    accounts = Accounts(COMPANY, OTHER)
    staff = payers(GOOD, accounts=accounts)

    assert [(await staff.payer("t")).account for _ in range(3)] == [COMPANY] * 3
    assert accounts.asked == 1


async def test_an_account_may_be_named_by_its_id() -> None:
    realm = StaffIssuer(ISSUER, "api", "https://idp.example/certs", ("user",), OTHER.account_id)

    assert (await payers(GOOD, realm).payer("t")).account == OTHER


async def test_an_account_that_is_made_later_pays_from_then_on() -> None:
    accounts = Accounts()
    staff = payers(GOOD, accounts=accounts)
    with pytest.raises(StoreUnavailableError):
        await staff.payer("t")
    accounts.known.append(COMPANY)

    assert (await staff.payer("t")).account == COMPANY


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param({"aud": "another"}, InvalidCredentialError, id="another audience"),
        pytest.param({"aud": None}, InvalidCredentialError, id="no audience"),
        pytest.param({"aud": {"api": 1}}, InvalidCredentialError, id="an audience in another form"),
        pytest.param({"typ": "ID"}, InvalidCredentialError, id="an ID token"),
        pytest.param({"typ": "Refresh"}, InvalidCredentialError, id="a refresh token"),
        pytest.param({"typ": "DPoP"}, InvalidCredentialError, id="a token that needs a proof"),
        pytest.param({"typ": 7}, InvalidCredentialError, id="a kind in another form"),
        pytest.param({"resource_access": None}, CallerNotAllowedError, id="no roles"),
        pytest.param({"resource_access": {"api": {"roles": []}}}, CallerNotAllowedError, id="an empty list"),
        pytest.param(
            {"resource_access": {"api": {"roles": "user"}}}, CallerNotAllowedError, id="roles that are a text"
        ),
        pytest.param({"resource_access": {"api": ["user"]}}, CallerNotAllowedError, id="a client that is a list"),
        pytest.param({"resource_access": {"api": {"roles": [["user"]]}}}, CallerNotAllowedError, id="roles in lists"),
        pytest.param({"resource_access": {"app": {"roles": ["user"]}}}, CallerNotAllowedError, id="another client's"),
        pytest.param(
            {"resource_access": {}, "realm_access": {"roles": ["user"]}},
            CallerNotAllowedError,
            id="the realm's own roles",
        ),
    ],
)
async def test_everybody_else_is_kept_out(change: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await payers({**GOOD, **change}).payer("t")


@pytest.mark.parametrize("typ", ["Bearer", "bearer"])
async def test_an_access_token_may_say_so(typ: str) -> None:
    assert await payers({**GOOD, "typ": typ}).payer("t")


async def test_one_issuer_may_serve_several_accounts_by_audience_and_role() -> None:
    realms = (
        StaffIssuer(ISSUER, "api", "https://idp.example/certs", ("admin",), "company"),
        StaffIssuer(ISSUER, "api", "https://idp.example/certs", ("user",), "other"),
    )

    assert (await payers(GOOD, *realms).payer("t")).account == OTHER


async def test_the_client_whose_roles_count_may_be_another_than_the_audience() -> None:
    realm = StaffIssuer(ISSUER, "api", "https://idp.example/certs", ("user",), "company", client="frontend")

    assert await payers({**GOOD, "resource_access": {"frontend": {"roles": ["user"]}}}, realm).payer("t")
    with pytest.raises(CallerNotAllowedError):
        await payers(GOOD, realm).payer("t")


def test_realms_come_from_the_catalogue_file(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.yaml"
    file.write_text(
        f"profiles: {{}}\ncompany_proxy:\n  models: {{}}\n  issuers:\n    - {{issuer: {ISSUER!r}, audience: api, "
        "jwks_url: 'https://idp.example/certs', roles: [user, admin], account: company}\n"
    )

    assert read_staff_issuers(file) == (REALM,)
    assert read_staff_issuers(None) == ()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[", id="no YAML"),
        pytest.param("company_proxy: {issuers: [{issuer: a}]}", id="members are missing"),
        pytest.param(
            "company_proxy: {issuers: [{issuer: a, audience: b, jwks_url: 'file:///etc', roles: [r], account: c}]}",
            id="keys from elsewhere than the web",
        ),
        pytest.param("", id="nothing"),
    ],
)
def test_a_broken_file_keeps_the_process_from_starting(tmp_path: Path, text: str) -> None:
    file = tmp_path / "catalogue.yaml"
    file.write_text(text)

    with pytest.raises(StaffFileError, match=r"catalogue\.yaml"):
        read_staff_issuers(file)
