"""Makes the lines of the audit log: who changed what, and to which new values.

Owns their form; refuses to write them: each is written with its change, in one transaction.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from services.auth_and_limits.records import AuditEvent
from services.runtime.calls import Caller


class Trail:
    """Makes the audit events of a process."""

    def __init__(self, new_id: Callable[[], str], now_unix_ms: Callable[[], int]) -> None:
        self.new_id = new_id
        self.now_unix_ms = now_unix_ms

    def event(
        self, caller: Caller, action: str, account_id: str, resource_id: str, changes: Mapping[str, str]
    ) -> AuditEvent:
        """One change by one caller."""
        return AuditEvent(
            self.new_id(), self.now_unix_ms(), actor_of(caller), action, account_id, resource_id, dict(changes)
        )


def actor_of(caller: Caller) -> str:
    """The caller as the audit log names it: its class, and its name where that says more."""
    if caller.name in {"", caller.caller_class}:
        return str(caller.caller_class)
    return f"{caller.caller_class}:{caller.name}"


def changed_fields(path: str, before: Any, after: Any) -> dict[str, str]:
    """The new values of what differs between two records, by path. An absent value is empty."""
    changes: dict[str, str] = {}
    for field in fields(after):
        old, new = getattr(before, field.name), getattr(after, field.name)
        here = f"{path}.{field.name}".lstrip(".")
        if hasattr(new, "__dataclass_fields__"):
            changes |= changed_fields(here, old, new)
        elif old != new:
            changes[here] = "" if new is None else str(new).lower() if isinstance(new, bool) else str(new)
    return changes
