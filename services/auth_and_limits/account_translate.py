"""Messages of accounts, teams, keys and audit events to domain values and back.

Owns the rules of their fields and masks; refuses to decide.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from mws.admission.v1 import account_service_pb2, audit_service_pb2, key_service_pb2

from services.auth_and_limits.limits import LARGEST_LIMIT
from services.auth_and_limits.pages import DEFAULT_SIZE, LARGEST_SIZE, Page, PageTokenError, PageTokens
from services.auth_and_limits.plans import LARGEST_CONCURRENCY
from services.auth_and_limits.records import NO_THROTTLE, Account, AuditEvent, Key, Team, Throttle
from services.auth_and_limits.tiers import NO_OVERRIDES, Ceilings, Overrides
from services.auth_and_limits.translate import Rules

LARGEST_NAME = 128
_EARLIEST_MS = 0
_LATEST_MS = 253_402_300_799_000  # the end of the year 9999

T = TypeVar("T")
Edits = Mapping[str, Callable[[T, T], T]]
"""By path of a mask: takes that field of the first record over into the second."""


def account_to_pb(account: Account, ceilings: Ceilings) -> account_service_pb2.Account:
    message = account_service_pb2.Account(
        account_id=account.account_id,
        name=account.name,
        plan=account.plan,
        ceilings=account_service_pb2.Ceilings(
            requests_per_minute=ceilings.requests_per_minute,
            tokens_per_minute=ceilings.tokens_per_minute,
            concurrent_calls=ceilings.concurrent_calls,
            tier=ceilings.tier,
        ),
        created_at=instant_to_pb(account.created_at_ms),
        suspended=account.suspended,
        closed_at=instant_to_pb(account.closed_at_ms),
    )
    overrides = account.overrides
    message.overrides.SetInParent()
    if overrides.requests_per_minute is not None:
        message.overrides.requests_per_minute = overrides.requests_per_minute
    if overrides.tokens_per_minute is not None:
        message.overrides.tokens_per_minute = overrides.tokens_per_minute
    if overrides.concurrent_calls is not None:
        message.overrides.concurrent_calls = overrides.concurrent_calls
    return message


def overrides_from_pb(message: account_service_pb2.CeilingOverrides, rules: Rules, path: str) -> Overrides:
    """Notes what is out of range in `rules`."""
    overrides = Overrides(
        message.requests_per_minute if message.HasField("requests_per_minute") else None,
        message.tokens_per_minute if message.HasField("tokens_per_minute") else None,
        message.concurrent_calls if message.HasField("concurrent_calls") else None,
    )
    _optional(rules, f"{path}.requests_per_minute", overrides.requests_per_minute, LARGEST_LIMIT)
    _optional(rules, f"{path}.tokens_per_minute", overrides.tokens_per_minute, LARGEST_LIMIT)
    _optional(rules, f"{path}.concurrent_calls", overrides.concurrent_calls, LARGEST_CONCURRENCY)
    return NO_OVERRIDES if overrides == NO_OVERRIDES else overrides


def account_change(message: account_service_pb2.Account, paths: Sequence[str]) -> Callable[[Account], Account]:
    """What an update does to an account. Raises InvalidRequestError."""
    rules = Rules()
    wanted = Account(
        message.account_id,
        message.name,
        message.plan,
        overrides_from_pb(message.overrides, rules, "account.overrides"),
        message.suspended,
    )
    if "name" in paths:
        rules.length("account.name", wanted.name, LARGEST_NAME, 1)
    return _change(wanted, paths, _ACCOUNT_EDITS, rules)


def throttle_from_pb(message: key_service_pb2.KeyThrottle, rules: Rules, path: str) -> Throttle:
    """Notes what is out of range in `rules`."""
    throttle = Throttle(
        message.requests_per_minute if message.HasField("requests_per_minute") else None,
        message.tokens_per_minute if message.HasField("tokens_per_minute") else None,
    )
    _optional(rules, f"{path}.requests_per_minute", throttle.requests_per_minute, LARGEST_LIMIT)
    _optional(rules, f"{path}.tokens_per_minute", throttle.tokens_per_minute, LARGEST_LIMIT)
    return NO_THROTTLE if throttle == NO_THROTTLE else throttle


def key_to_pb(key: Key, last_used_ms: int | None) -> key_service_pb2.Key:
    message = key_service_pb2.Key(
        key_id=key.key_id,
        account_id=key.account_id,
        name=key.name,
        prefix=key.prefix,
        expires_at=instant_to_pb(key.expires_at_ms),
        revoked_at=instant_to_pb(key.revoked_at_ms),
        created_at=instant_to_pb(key.created_at_ms),
        last_used_at=instant_to_pb(last_used_ms),
    )
    message.throttle.SetInParent()
    if key.throttle.requests_per_minute is not None:
        message.throttle.requests_per_minute = key.throttle.requests_per_minute
    if key.throttle.tokens_per_minute is not None:
        message.throttle.tokens_per_minute = key.throttle.tokens_per_minute
    return message


def key_change(message: key_service_pb2.Key, paths: Sequence[str]) -> Callable[[Key], Key]:
    """What an update does to a key. Raises InvalidRequestError."""
    rules = Rules()
    wanted = Key(
        message.key_id,
        message.account_id,
        message.name,
        "",
        throttle_from_pb(message.throttle, rules, "key.throttle"),
        expiry_from_pb(message.expires_at, message.HasField("expires_at"), rules, "key.expires_at"),
    )
    if "name" in paths:
        rules.length("key.name", wanted.name, LARGEST_NAME)
    return _change(wanted, paths, _KEY_EDITS, rules)


def expiry_from_pb(message: Timestamp, is_set: bool, rules: Rules, path: str) -> int | None:
    """Notes an instant out of range in `rules`."""
    if not is_set:
        return None
    unix_ms = message.seconds * 1000 + message.nanos // 1_000_000
    rules.number(path, unix_ms, _LATEST_MS, _EARLIEST_MS)
    return unix_ms


def team_to_pb(team: Team) -> account_service_pb2.Team:
    return account_service_pb2.Team(
        team_id=team.team_id,
        account_id=team.account_id,
        issuer=team.issuer,
        subject=team.subject,
        created_at=instant_to_pb(team.created_at_ms),
    )


def event_to_pb(event: AuditEvent) -> audit_service_pb2.AuditEvent:
    return audit_service_pb2.AuditEvent(
        event_id=event.event_id,
        at=instant_to_pb(event.at_ms),
        actor=event.actor,
        action=event.action,
        account_id=event.account_id,
        resource_id=event.resource_id,
        changes=event.changes,
    )


def page_from_pb(tokens: PageTokens, page_size: int, page_token: str, *filters: str) -> Page:
    """Which page is asked for. Raises InvalidRequestError."""
    rules = Rules()
    rules.number("page_size", page_size, LARGEST_SIZE)
    after_id = ""
    if page_token:
        try:
            after_id = tokens.open(page_token, *filters)
        except PageTokenError:
            rules.broken("page_token", "must be the next_page_token of the same list")
    rules.check()
    return Page(page_size or DEFAULT_SIZE, after_id)


def instant_to_pb(unix_ms: int | None) -> Timestamp | None:
    """None stays absent."""
    if unix_ms is None:
        return None
    seconds, milliseconds = divmod(unix_ms, 1000)
    return Timestamp(seconds=seconds, nanos=milliseconds * 1_000_000)


def _optional(rules: Rules, field: str, value: int | None, largest: int) -> None:
    if value is not None:
        rules.number(field, value, largest, 1)


def _change(wanted: T, paths: Sequence[str], edits: Edits[T], rules: Rules) -> Callable[[T], T]:
    if not paths:
        rules.broken("update_mask", "must name at least one field")
    for path in paths:
        if path not in edits:
            rules.broken("update_mask", f"{path!r} cannot be changed; allowed are {', '.join(edits)}")
    rules.check()

    def change(record: T) -> T:
        for path in paths:
            record = edits[path](wanted, record)
        return record

    return change


_ACCOUNT_EDITS: Edits[Account] = {
    "name": lambda new, old: replace(old, name=new.name),
    "plan": lambda new, old: replace(old, plan=new.plan),
    "suspended": lambda new, old: replace(old, suspended=new.suspended),
    "overrides": lambda new, old: replace(old, overrides=new.overrides),
    "overrides.requests_per_minute": lambda new, old: replace(
        old, overrides=replace(old.overrides, requests_per_minute=new.overrides.requests_per_minute)
    ),
    "overrides.tokens_per_minute": lambda new, old: replace(
        old, overrides=replace(old.overrides, tokens_per_minute=new.overrides.tokens_per_minute)
    ),
    "overrides.concurrent_calls": lambda new, old: replace(
        old, overrides=replace(old.overrides, concurrent_calls=new.overrides.concurrent_calls)
    ),
}
_KEY_EDITS: Edits[Key] = {
    "name": lambda new, old: replace(old, name=new.name),
    "expires_at": lambda new, old: replace(old, expires_at_ms=new.expires_at_ms),
    "throttle": lambda new, old: replace(old, throttle=new.throttle),
    "throttle.requests_per_minute": lambda new, old: replace(
        old, throttle=replace(old.throttle, requests_per_minute=new.throttle.requests_per_minute)
    ),
    "throttle.tokens_per_minute": lambda new, old: replace(
        old, throttle=replace(old.throttle, tokens_per_minute=new.throttle.tokens_per_minute)
    ),
}
