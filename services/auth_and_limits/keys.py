"""API keys of accounts: made, throttled, revoked, each change with its line in the audit log.

Owns who may have keys made and which keys a caller may touch; refuses to keep a key's text beyond the answer.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from services.auth_and_limits import api_keys
from services.auth_and_limits.directory import Directory
from services.auth_and_limits.pages import Page
from services.auth_and_limits.ports import AccountStore, HoldStore
from services.auth_and_limits.records import NO_THROTTLE, Account, AuditEvent, Key, Throttle
from services.auth_and_limits.tiers import PlanBook, may_make_keys
from services.auth_and_limits.trail import Trail, changed_fields
from services.runtime.calls import Caller, CallerClass
from services.runtime.errors import CallerNotAllowedError, ForeignAccountError, KeysNotUnlockedError, NotFoundError


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key shall be."""

    account_id: str
    name: str = ""
    throttle: Throttle = NO_THROTTLE
    expires_at_ms: int | None = None
    request_id: str = ""  # empty: every request makes a key


class Keys:
    """The use cases around API keys."""

    def __init__(
        self, store: AccountStore, directory: Directory, holds: HoldStore, *, plans: PlanBook, trail: Trail
    ) -> None:
        self._store = store
        self._directory = directory
        self._holds = holds
        self._plans = plans
        self._trail = trail

    async def create(self, caller: Caller, new: NewKey, random_bytes: Callable[[int], bytes]) -> tuple[Key, str]:
        """Makes a key; its text exists in this answer only. Empty text: the same request made this key before."""
        _check_may_change_keys(caller)
        account = await self._store.account(new.account_id)
        if account is None or account.closed_at_ms is not None:
            raise NotFoundError("no such account", metadata={"resource": "account"})
        if caller.caller_class is not CallerClass.ADMIN:
            await self._check_unlocked(account)
        text = api_keys.mint(random_bytes)
        key = Key(
            self._trail.new_id(),
            new.account_id,
            new.name,
            api_keys.shown_prefix(text),
            new.throttle,
            new.expires_at_ms,
            None,
            self._trail.now_unix_ms(),
        )
        blank = Key(key.key_id, key.account_id, "", "", created_at_ms=key.created_at_ms)
        event = self._trail.event(caller, "key.created", key.account_id, key.key_id, changed_fields("", blank, key))
        digest = self._directory.digest_to_store(text)
        created = await self._store.create_key(key, digest, event, new.request_id, _content_of(new))
        if created.key_id != key.key_id:
            return created, ""
        self._directory.put_key(created)
        return created, text

    async def page(self, account_id: str, page: Page) -> Sequence[Key]:
        """One more than a page of an account's keys, oldest first."""
        return await self._store.keys(account_id, page.after_id, page.size + 1)

    async def update(self, caller: Caller, key_id: str, change: Callable[[Key], Key]) -> Key:
        """Applies a change; one that changes nothing leaves no trace."""
        return await self._edit(caller, "key.updated", key_id, change)

    async def revoke(self, caller: Caller, key_id: str) -> Key:
        """Ends a key for ever; a repeat leaves the first instant."""
        now_ms = self._trail.now_unix_ms()
        return await self._edit(
            caller, "key.revoked", key_id, lambda key: replace(key, revoked_at_ms=key.revoked_at_ms or now_ms)
        )

    def last_used_ms(self, key: Key) -> int | None:
        """When the key was last used, to the minute."""
        return self._directory.last_used_ms(key)

    async def _edit(self, caller: Caller, action: str, key_id: str, change: Callable[[Key], Key]) -> Key:
        _check_may_change_keys(caller)

        def edit(before: Key) -> tuple[Key, AuditEvent | None]:
            if caller.account_id not in {"", before.account_id}:
                raise ForeignAccountError("the key is of another account")
            after = change(before)
            changes = changed_fields("", before, after)
            return after, self._trail.event(caller, action, after.account_id, key_id, changes) if changes else None

        key = await self._store.edit_key(key_id, edit)
        self._directory.put_key(key)
        return key

    async def _check_unlocked(self, account: Account) -> None:
        lifetime_paid_nano_usd = await self._holds.lifetime_paid_nano_usd(account.account_id)
        if not may_make_keys(self._plans.plan(account.plan), lifetime_paid_nano_usd):
            raise KeysNotUnlockedError("keys need $25 of purchases or a subscription")


def _check_may_change_keys(caller: Caller) -> None:
    """A key that leaked must not make itself a successor, nor end the keys of its owner."""
    if caller.key_sha256:
        raise CallerNotAllowedError(
            "API keys cannot change keys: use an access token, the dashboard or an administrator",
            metadata={"caller_class": str(caller.caller_class)},
        )


def _content_of(new: NewKey) -> bytes:
    """What a repeat of a request must agree with."""
    throttle = [new.throttle.requests_per_minute, new.throttle.tokens_per_minute]
    return hashlib.sha256(json.dumps([new.name, *throttle, new.expires_at_ms]).encode()).digest()
