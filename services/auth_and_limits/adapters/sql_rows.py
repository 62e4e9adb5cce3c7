"""Rows of the accounts' tables to records and back.

Owns that mapping alone.
"""

import json
from typing import Any

from services.auth_and_limits.records import NO_THROTTLE, Account, AuditEvent, Key, Team, Throttle
from services.auth_and_limits.tiers import NO_OVERRIDES, Overrides


def account_from_row(row: Any, prefix: str = "") -> Account:
    overrides = Overrides(
        row[prefix + "requests_per_minute"], row[prefix + "tokens_per_minute"], row[prefix + "concurrent_calls"]
    )
    return Account(
        row[prefix + "account_id"],
        row[prefix + "name"],
        row[prefix + "plan"],
        NO_OVERRIDES if overrides == NO_OVERRIDES else overrides,
        row[prefix + "suspended"],
        row[prefix + "created_at_ms"],
        row[prefix + "closed_at_ms"],
        row[prefix + "revision"],
    )


def account_values(account: Account) -> dict[str, Any]:
    return {
        "account_id": account.account_id,
        "name": account.name,
        "plan": account.plan,
        "requests_per_minute": account.overrides.requests_per_minute,
        "tokens_per_minute": account.overrides.tokens_per_minute,
        "concurrent_calls": account.overrides.concurrent_calls,
        "suspended": account.suspended,
        "created_at_ms": account.created_at_ms,
        "closed_at_ms": account.closed_at_ms,
        "revision": account.revision,
    }


def key_from_row(row: Any) -> Key:
    throttle = Throttle(row["requests_per_minute"], row["tokens_per_minute"])
    return Key(
        row["key_id"],
        row["account_id"],
        row["name"],
        row["prefix"],
        NO_THROTTLE if throttle == NO_THROTTLE else throttle,
        row["expires_at_ms"],
        row["revoked_at_ms"],
        row["created_at_ms"],
        row["last_used_at_ms"],
        row["revision"],
    )


def key_values(key: Key) -> dict[str, Any]:
    """All but the last use, which is written on its own."""
    return {
        "key_id": key.key_id,
        "account_id": key.account_id,
        "name": key.name,
        "prefix": key.prefix,
        "requests_per_minute": key.throttle.requests_per_minute,
        "tokens_per_minute": key.throttle.tokens_per_minute,
        "expires_at_ms": key.expires_at_ms,
        "revoked_at_ms": key.revoked_at_ms,
        "created_at_ms": key.created_at_ms,
        "revision": key.revision,
    }


def team_from_row(row: Any) -> Team:
    return Team(row["team_id"], row["account_id"], row["issuer"], row["subject"], row["created_at_ms"])


def team_values(team: Team) -> dict[str, Any]:
    return {
        "team_id": team.team_id,
        "account_id": team.account_id,
        "issuer": team.issuer,
        "subject": team.subject,
        "created_at_ms": team.created_at_ms,
    }


def event_from_row(row: Any) -> AuditEvent:
    return AuditEvent(
        row["event_id"],
        row["at_ms"],
        row["actor"],
        row["action"],
        row["account_id"],
        row["resource_id"],
        json.loads(row["changes"]),
    )


def event_values(event: AuditEvent, revision: int) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "at_ms": event.at_ms,
        "actor": event.actor,
        "action": event.action,
        "account_id": event.account_id,
        "resource_id": event.resource_id,
        "changes": json.dumps(dict(event.changes)),
        "revision": revision,
    }
