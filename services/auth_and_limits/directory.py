"""Who a credential stands for, from memory: accounts, keys and teams as they are now.

Owns the cache and what may enter it; refuses to store, and to say no when it could not look.

A digest means one key for ever, so it is kept; what may change (revoked, throttle, plan, …) lives in the account's and
the key's record, which every change replaces here as soon as it is written.
"""

import asyncio
from collections.abc import Callable

from services.auth_and_limits import api_keys
from services.auth_and_limits.ports import AccountStore, Changed, ChangeFeed, TokenVerifier
from services.auth_and_limits.records import Account, Key, Payer, Team
from services.runtime.errors import GatewayError, InvalidCredentialError

UNKNOWN_KEPT_MS = 5_000
UNKNOWN_KEPT_AT_MOST = 10_000
_MINUTE_MS = 60_000


class Directory:
    """Accounts and keys that were used once. Own changes come by `put_*` and `drop_team`, others' by the feed."""

    def __init__(
        self,
        store: AccountStore,
        tokens: TokenVerifier,
        feed: ChangeFeed,
        *,
        pepper: bytes,
        now_unix_ms: Callable[[], int],
    ) -> None:
        self._store = store
        self._feed = feed
        self._tokens = tokens
        self._pepper = pepper
        self._now_unix_ms = now_unix_ms
        self._accounts: dict[str, Account] = {}
        self._keys: dict[str, Key] = {}
        self._key_ids: dict[bytes, str] = {}  # by the digest that the edge sends
        self._teams: dict[tuple[str, str], Team] = {}
        self._unknown: dict[bytes, int] = {}  # digests that no key had, until when that is believed
        self._looking: dict[bytes, asyncio.Future[None]] = {}  # a burst on a new key asks the store once
        self._last_used_ms: dict[str, int] = {}
        self._unwritten_uses: dict[str, int] = {}
        feed.follow(self.apply)

    async def payer_by_key(self, key_digest: bytes) -> Payer:
        """The account and the key behind a digest. Raises InvalidCredentialError."""
        if not self._feed.is_fresh:
            await self._feed.refresh()
        while (key_id := self._key_ids.get(key_digest)) is None:
            looking = self._looking.get(key_digest)
            if looking is None:
                await self._look_up(key_digest)
            else:
                await asyncio.wait([looking])
                looking.result()  # fails as the look-up failed; one that was cancelled is begun anew
        return self._usable(self._keys[key_id])

    async def payer_by_token(self, token: str) -> Payer:
        """The account that the bearer of an OIDC access token acts for. Raises InvalidCredentialError."""
        team = await self.team_by_token(token)
        return await self.payer_by_account(team.account_id)

    async def payer_by_account(self, account_id: str) -> Payer:
        """The account itself, for a caller that is authenticated already. Raises InvalidCredentialError."""
        if not self._feed.is_fresh:
            await self._feed.refresh()
        account = self._accounts.get(account_id)
        if account is None:
            account = await self._store.account(account_id)
            if account is None:
                raise _invalid()
            self.put_account(account)
            account = self._accounts[account_id]
        if not account.may_call:
            raise _invalid()
        return Payer(account)

    async def team_by_token(self, token: str) -> Team:
        """The team behind an OIDC access token. Raises InvalidCredentialError."""
        issuer, subject = await self._tokens.verify(token)
        if not self._feed.is_fresh:
            await self._feed.refresh()
        team = self._teams.get((issuer, subject))
        if team is None:
            team = await self._store.team_by_subject(issuer, subject)
            if team is None:
                raise _invalid()
            self._teams[issuer, subject] = team
        return team

    def digest_to_store(self, api_key: str) -> bytes:
        """The form in which a key is stored."""
        return api_keys.stored_digest(self._pepper, api_keys.digest(api_key))

    def put_account(self, account: Account) -> None:
        """An account was written or read. Of two versions the newer one stays, whichever came last."""
        known = self._accounts.get(account.account_id)
        if known is None or account.revision >= known.revision:
            self._accounts[account.account_id] = account

    def put_key(self, key: Key) -> None:
        """A key was written; a new one works at once, whoever tried it before."""
        self._unknown.clear()
        known = self._keys.get(key.key_id)
        if known is None or key.revision >= known.revision:
            self._keys[key.key_id] = key

    def apply(self, changed: Changed) -> None:
        """Other replicas wrote: what is in memory becomes as new as that."""
        if changed.is_reset:
            for memory in (self._accounts, self._keys, self._key_ids, self._teams):
                memory.clear()
        for account in changed.accounts:
            if account.account_id in self._accounts:
                self.put_account(account)
        for key in changed.keys:
            if key.key_id in self._keys:
                self.put_key(key)
        self._unknown.clear()
        ended = set(changed.ended_team_ids)
        self._teams = {subject: team for subject, team in self._teams.items() if team.team_id not in ended}

    def drop_team(self, team: Team) -> None:
        """A team was deleted."""
        self._teams.pop((team.issuer, team.subject), None)

    def last_used_ms(self, key: Key) -> int | None:
        """When the key was last used, to the minute; by other replicas, as far as they have written it."""
        return max(self._last_used_ms.get(key.key_id, 0), key.last_used_at_ms or 0) or None

    async def write_uses(self) -> None:
        """Writes down which keys were used since the last time. A failure loses nothing."""
        uses, self._unwritten_uses = self._unwritten_uses, {}
        if not uses:
            return
        try:
            await self._store.note_uses(uses)
        except BaseException:
            self._unwritten_uses = uses | self._unwritten_uses
            raise

    async def _look_up(self, key_digest: bytes) -> None:
        looking = self._looking[key_digest] = asyncio.get_running_loop().create_future()
        try:
            await self._load(key_digest)
        except GatewayError as error:
            looking.set_exception(error)
            looking.exception()  # nobody may have been waiting
            raise
        finally:
            del self._looking[key_digest]
            if not looking.done():
                looking.set_result(None)

    async def _load(self, key_digest: bytes) -> None:
        now_ms = self._now_unix_ms()
        if self._unknown.get(key_digest, 0) > now_ms:
            raise _invalid()
        found = await self._store.key_by_digest(api_keys.stored_digest(self._pepper, key_digest))
        if found is None:
            while len(self._unknown) >= UNKNOWN_KEPT_AT_MOST:
                del self._unknown[next(iter(self._unknown))]
            self._unknown[key_digest] = now_ms + UNKNOWN_KEPT_MS
            raise _invalid()
        account, key = found
        self.put_account(account)
        known = self._keys.get(key.key_id)
        if known is None or key.revision >= known.revision:
            self._keys[key.key_id] = key
        self._key_ids[key_digest] = key.key_id

    def _usable(self, key: Key) -> Payer:
        account = self._accounts[key.account_id]
        now_ms = self._now_unix_ms()
        if key.revoked_at_ms is not None or not account.may_call:
            raise _invalid()
        if key.expires_at_ms is not None and key.expires_at_ms <= now_ms:
            raise _invalid()
        minute_ms = now_ms - now_ms % _MINUTE_MS
        if self._last_used_ms.get(key.key_id) != minute_ms:
            self._last_used_ms[key.key_id] = self._unwritten_uses[key.key_id] = minute_ms
        return Payer(account, key)


def _invalid() -> InvalidCredentialError:
    """Unknown, revoked, expired, suspended: they look alike on purpose."""
    return InvalidCredentialError("the credential is not valid")
