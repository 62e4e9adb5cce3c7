"""Who may call what, and how a caller proves who it is.

Owns the table of methods, the service tokens and the account check of teams; refuses to know API keys and transports.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from services.runtime.calls import Call, Caller, CallerClass
from services.runtime.errors import ForeignAccountError, InvalidCredentialError, MissingCredentialError

_EDGE, _AUTH, _INFERENCE, _METERING, _ADMIN, _TEAM = CallerClass
_ADMISSION = "/mws.admission.v1."
_CATALOG = "/mws.inference.v1."
_MONEY = "/mws.metering.v1."

# The rows repeat the "Callers:" comments of proto/mws. A method without a row cannot be served.
ALLOWED: Mapping[str, frozenset[CallerClass]] = {
    path: frozenset(classes)
    for path, classes in {
        _ADMISSION + "AdmissionService/Admit": {_INFERENCE},
        _ADMISSION + "AdmissionService/Extend": {_INFERENCE},
        _ADMISSION + "AdmissionService/Renew": {_INFERENCE},
        _ADMISSION + "AdmissionService/Finish": {_INFERENCE},
        _ADMISSION + "AdmissionService/Void": {_INFERENCE},
        _ADMISSION + "AdmissionService/GetLimits": {_EDGE, _INFERENCE, _METERING, _TEAM, _ADMIN},
        _ADMISSION + "AdmissionService/BalanceChanged": {_METERING},
        _ADMISSION + "AdmissionService/AwaitOutcome": {_EDGE, _INFERENCE, _TEAM, _ADMIN},
        _ADMISSION + "AccountService/CreateAccount": {_ADMIN},
        _ADMISSION + "AccountService/GetAccount": {_ADMIN, _EDGE, _TEAM},
        _ADMISSION + "AccountService/ListAccounts": {_ADMIN},
        _ADMISSION + "AccountService/UpdateAccount": {_ADMIN},
        _ADMISSION + "AccountService/CloseAccount": {_ADMIN},
        _ADMISSION + "AccountService/CreateTeam": {_ADMIN},
        _ADMISSION + "AccountService/ListTeams": {_ADMIN, _EDGE, _TEAM},
        _ADMISSION + "AccountService/DeleteTeam": {_ADMIN},
        _ADMISSION + "KeyService/CreateKey": {_ADMIN, _EDGE, _TEAM},
        _ADMISSION + "KeyService/ListKeys": {_ADMIN, _EDGE, _TEAM},
        _ADMISSION + "KeyService/UpdateKey": {_ADMIN, _EDGE, _TEAM},
        _ADMISSION + "KeyService/RevokeKey": {_ADMIN, _EDGE, _TEAM},
        _ADMISSION + "AuditService/ListAuditEvents": {_ADMIN, _TEAM},
        _ADMISSION + "PlanService/ListPlans": {_ADMIN, _EDGE, _TEAM},
        _CATALOG + "InferenceService/Generate": {_EDGE, _TEAM, _ADMIN},
        _CATALOG + "InferenceService/Embed": {_EDGE, _TEAM, _ADMIN},
        _CATALOG + "InferenceService/Rerank": {_EDGE, _TEAM, _ADMIN},
        _CATALOG + "InferenceService/CountTokens": {_EDGE, _TEAM, _ADMIN},
        _CATALOG + "ForwardService/Forward": {_EDGE, _ADMIN},
        _CATALOG + "CatalogService/ListProfiles": {_EDGE, _TEAM, _ADMIN},
        _CATALOG + "CatalogService/GetProfile": {_EDGE, _TEAM, _ADMIN},
        _CATALOG + "RoutingService/ListUpstreams": {_ADMIN},
        _CATALOG + "RoutingService/SetUpstreamDrained": {_ADMIN},
        _MONEY + "MeteringService/RecordUsage": {_INFERENCE},
        _MONEY + "MeteringService/ResolveOutcomes": {_AUTH},
        _MONEY + "MeteringService/ReadBalances": {_AUTH},
        _MONEY + "MeteringService/RegisterPriceBook": {_INFERENCE},
        _MONEY + "MeteringService/GetKeptAnswer": {_INFERENCE, _EDGE},
        _MONEY + "LedgerService/GetBalance": {_ADMIN, _EDGE, _TEAM},
        _MONEY + "LedgerService/ListEntries": {_ADMIN, _EDGE, _TEAM},
        _MONEY + "LedgerService/GrantCredits": {_ADMIN},
        _MONEY + "LedgerService/RefundCredits": {_ADMIN},
        _MONEY + "LedgerService/CorrectEntry": {_ADMIN},
        _MONEY + "LedgerService/ListCredits": {_ADMIN, _EDGE, _TEAM},
        _MONEY + "LedgerService/ListBalanceEvents": {_ADMIN, _EDGE, _TEAM},
        _MONEY + "LedgerService/GetStatement": {_ADMIN, _EDGE, _TEAM},
        _MONEY + "LedgerService/CheckLedger": {_ADMIN},
        _MONEY + "UsageService/SummarizeUsage": {_ADMIN, _EDGE, _TEAM},
        _MONEY + "UsageService/ListUsage": {_ADMIN, _EDGE, _TEAM},
        _MONEY + "UsageService/GetCall": {_ADMIN, _EDGE, _TEAM},
        _MONEY + "UsageService/ExportUsage": {_ADMIN, _EDGE, _TEAM},
    }.items()
}


def check_rows(paths: Iterable[str], allowed: Mapping[str, frozenset[CallerClass]]) -> None:
    """Refuses to start a server with a method that nobody was given the right to call."""
    missing = sorted(set(paths) - allowed.keys())
    if missing:
        raise ValueError(f"no row says who may call {', '.join(missing)}")


def account_for(call: Call, requested: str) -> str:
    """The account that a call is about: a team's own one, for the others the one that they name."""
    caller = call.caller
    if caller.caller_class is not CallerClass.TEAM:
        return requested
    if requested and requested != caller.account_id:
        raise ForeignAccountError("the account is not the caller's own")
    return caller.account_id


ResolveCaller = Callable[[str], Awaitable[Caller]]
"""Turns a bearer value that is no service token into a team's caller. Raises InvalidCredentialError for others."""


_SERVICE_PREFIX = "mws_service_"
# Marks a refusal of the caller itself. Our own processes read it as an outage: no end user's key is bad.
OF_THE_CALLER = {"credential": "caller"}


class ServiceTokens:
    """The callers that `callers.json` lists. Digests are compared, so timing tells nothing about a token."""

    def __init__(self, by_digest: Mapping[str, Caller]) -> None:
        self._by_digest = dict(by_digest)

    @classmethod
    def read(cls, secrets_dir: Path) -> "ServiceTokens":
        """Reads `callers.json`: {sha256 hex: {"class", "name"}}."""
        rows: dict[str, dict[str, str]] = json.loads((secrets_dir / "callers.json").read_text())
        return cls({digest: Caller(CallerClass(row["class"]), row["name"]) for digest, row in rows.items()})

    def find(self, token: str) -> Caller | None:
        """The caller that a service token stands for; None if it is no service token."""
        return self._by_digest.get(digest_of(token))

    def identify(self, token: str) -> Caller:
        """The same, for a link, which only services open. Raises MissingCredentialError or InvalidCredentialError."""
        if not token:
            raise MissingCredentialError("a service token is needed")
        caller = self.find(token)
        if caller is None:
            raise InvalidCredentialError("the service token is not valid")
        return caller


def digest_of(token: str) -> str:
    """SHA-256 in hex: the only form in which a token is kept."""
    return hashlib.sha256(token.encode()).hexdigest()


KEEP_TEAMS_S = 10.0


class BearerCallers:
    """Identifies the caller of a plain gRPC call by its `authorization: Bearer …`.

    A team's answer is kept for `keep_s` under its full digest, so a revoked key may still read here for that long. What
    costs money or makes keys looks at the key itself, every time.
    """

    def __init__(
        self,
        tokens: ServiceTokens,
        resolve_team: ResolveCaller | None = None,
        *,
        keep_s: float = KEEP_TEAMS_S,
        capacity: int = 10_000,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens, self._resolve_team = tokens, resolve_team
        self._keep_s, self._capacity, self._now = keep_s, capacity, now
        self._teams: dict[str, tuple[float, Caller]] = {}  # digest -> (until, caller), oldest first

    async def identify(self, authorization: str | None) -> Caller:
        """The caller behind the header's value. Raises MissingCredentialError or InvalidCredentialError."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if not token:
            raise MissingCredentialError("an `authorization: Bearer …` is needed", metadata=OF_THE_CALLER)
        is_bearer = scheme.lower() == "bearer"
        caller = self._tokens.find(token) if is_bearer else None
        if caller is not None:
            return caller
        if not is_bearer or token.startswith(_SERVICE_PREFIX):
            raise InvalidCredentialError("the credential is not valid", metadata=OF_THE_CALLER)
        return await self._team(token)

    async def _team(self, token: str) -> Caller:
        if self._resolve_team is None:
            raise InvalidCredentialError("the credential is not valid", metadata=OF_THE_CALLER)
        digest = digest_of(token)
        until, caller = self._teams.get(digest, (0.0, None))
        if caller is not None and self._now() < until:
            return caller
        self._teams.pop(digest, None)
        caller = await self._resolve_team(token)
        while len(self._teams) >= self._capacity:
            del self._teams[next(iter(self._teams))]
        self._teams[digest] = (self._now() + self._keep_s, caller)
        return caller


FOR_ITS_OWNER_ALONE = 0o077
"""The umask of every process of ours: databases, spools and logs tell who asked for what, and how much they own."""


def read_token(secrets_dir: Path, caller_class: CallerClass) -> str:
    """The token with which a process of this class calls others."""
    return (secrets_dir / f"{caller_class}.token").read_text().strip()


def mint_secrets(secrets_dir: Path) -> None:
    """Makes what the processes of one machine need to trust each other; keeps every secret that is already there.

    Files: `<class>.token` for all classes but teams, `callers.json`, `key_pepper`; readable by their owner alone.
    """
    secrets_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    rows: dict[str, dict[str, str]] = {}
    listed = secrets_dir / "callers.json"
    if listed.exists():
        rows = json.loads(listed.read_text())
    for caller_class in CallerClass:
        if caller_class is CallerClass.TEAM:
            continue
        token = _keep_or_mint(secrets_dir / f"{caller_class}.token", f"{_SERVICE_PREFIX}{caller_class}_")
        rows.setdefault(digest_of(token), {"class": str(caller_class), "name": str(caller_class)})
    _write_private(listed, json.dumps(rows, indent=1, sort_keys=True) + "\n")
    _keep_or_mint(secrets_dir / "key_pepper", "")


def _keep_or_mint(path: Path, prefix: str) -> str:
    if path.exists():
        path.chmod(0o600)
        return path.read_text().strip()
    secret = prefix + secrets.token_urlsafe(32)
    _write_private(path, secret + "\n")
    return secret


def _write_private(path: Path, text: str) -> None:
    """Replaces a file as a whole; nobody else can read it at any moment."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
