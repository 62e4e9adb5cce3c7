"""Staff of a company: access tokens of the realms that the company proxy trusts, and the account that pays for them.

Owns who among the staff may call; refuses to make anybody a team: a staff token stands for one call of the proxy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.auth_and_limits.directory import Directory
from services.auth_and_limits.identity import Claims, SignedTokens, invalid_token, is_for
from services.auth_and_limits.oidc_keys import FetchKeys, IssuerKeys
from services.auth_and_limits.ports import AccountStore
from services.auth_and_limits.records import Payer
from services.runtime.errors import CallerNotAllowedError, StoreUnavailableError
from services.runtime.ids import unix_ms_of

_ALGORITHMS = ("RS256",)
_ACCESS = "bearer"  # Keycloak says in `typ` what a token is; ID tokens are signed with the same key

_log = structlog.get_logger()


class StaffFileError(Exception):
    """The catalogue file cannot be read, or its issuers break a rule."""


@dataclass(frozen=True, slots=True)
class StaffIssuer:
    """A realm: whom its tokens must be meant for, which client roles may call, and who pays."""

    issuer: str
    audience: str
    jwks_url: str
    roles: tuple[str, ...]
    account: str  # an account's name, or its id
    client: str = ""  # whose roles count under `resource_access`; empty: the audience's


class StaffPayers:
    """Says who pays for the bearer of a staff token."""

    def __init__(
        self, issuers: Iterable[StaffIssuer], tokens: SignedTokens, store: AccountStore, directory: Directory
    ) -> None:
        self._issuers: dict[str, list[StaffIssuer]] = {}
        for issuer in issuers:
            self._issuers.setdefault(issuer.issuer, []).append(issuer)
        self.tokens = tokens
        self._store = store
        self._directory = directory
        self._account_ids: dict[str, str] = {}

    async def payer(self, token: str) -> Payer:
        """The account that pays. Raises InvalidCredentialError; CallerNotAllowedError: the bearer has no role."""
        claims = await self.tokens.claims(token)
        kind = claims.get("typ", _ACCESS)
        meant = [realm for realm in self._issuers[claims["iss"]] if is_for(claims, realm.audience)]
        if not meant or not isinstance(kind, str) or kind.lower() != _ACCESS:
            raise invalid_token()
        for realm in meant:
            if roles_of(claims, realm.client or realm.audience) & set(realm.roles):
                return await self._directory.payer_by_account(await self._account_id(realm.account))
        raise CallerNotAllowedError("the token has none of the roles that may call")

    async def _account_id(self, account: str) -> str:
        known = self._account_ids.get(account)
        if known is not None:
            return known
        if _is_id(account):
            return account
        named = await self._store.accounts(account, "", 1)
        if not named:
            _log.error("staff.account_missing", account=account)
            raise StoreUnavailableError("the account that pays for this realm does not exist")
        return self._account_ids.setdefault(account, named[0].account_id)


def roles_of(claims: Claims, client: str) -> set[str]:
    """The client roles of a token; none if it is not as Keycloak writes it."""
    access = claims.get("resource_access")
    entry = access.get(client) if isinstance(access, Mapping) else None
    roles = entry.get("roles") if isinstance(entry, Mapping) else None
    return {role for role in roles if isinstance(role, str)} if isinstance(roles, list) else set()


def _is_id(text: str) -> bool:
    try:
        unix_ms_of(text)
    except ValueError:
        return False
    return True


def staff_tokens(
    issuers: Sequence[StaffIssuer],
    fetch_keys: Callable[[str], FetchKeys],
    now_s: Callable[[], float],
    unix_s: Callable[[], int],
) -> SignedTokens:
    """The tokens of the realms; `fetch_keys` makes the reader of a JWKS address."""
    keys = {realm.issuer: IssuerKeys(realm.issuer, fetch_keys(realm.jwks_url), now_s) for realm in issuers}
    return SignedTokens(keys, _ALGORITHMS, unix_s)


class _Issuer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks_url: str = Field(pattern=r"^https?://")
    roles: list[str] = Field(min_length=1)
    account: str = Field(min_length=1)
    client: str = ""


class _Section(BaseModel):
    issuers: list[_Issuer] = []


class _Catalogue(BaseModel):
    """The part of the catalogue file that is about identity; routing-and-inference checks the whole of it."""

    company_proxy: _Section = _Section()


def read_staff_issuers(file: Path | None) -> tuple[StaffIssuer, ...]:
    """The realms of a catalogue file; none without a file. Raises StaffFileError."""
    if file is None:
        return ()
    try:
        document: Any = yaml.safe_load(file.read_text("utf-8"))
        section = _Catalogue.model_validate(document).company_proxy
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StaffFileError(f"{file}: cannot be read: {type(error).__name__}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise StaffFileError(f"{file}: {place}: {first['msg']}") from error
    return tuple(
        StaffIssuer(**{**realm.model_dump(exclude={"roles"}), "roles": tuple(realm.roles)}) for realm in section.issuers
    )
