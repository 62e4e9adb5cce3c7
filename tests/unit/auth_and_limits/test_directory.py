"""The directory: one way for every credential, the newest version of every record, and no trust in what may be old.

Owns what memory decides; what replicas tell each other is in `tests/contract/auth_and_limits`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.auth_and_limits import api_keys
from services.auth_and_limits.admission import TeamCallers
from services.auth_and_limits.directory import UNKNOWN_KEPT_MS, Directory
from services.auth_and_limits.ports import AccountStore, Alone, Changed, ChangeFeed
from services.auth_and_limits.records import Account, Key, Team
from services.runtime.errors import InvalidCredentialError, StoreUnavailableError

PEPPER = b"pepper"
ACCOUNT = Account("a", "acme", "pro")
TEAM = Team("t", "a", "https://idp", "svc")
GOOD, REVOKED = api_keys.mint(lambda count: b"\x01" * count), api_keys.mint(lambda count: b"\x02" * count)


class CountingStore:
    """A store of two keys that counts how often it is asked."""

    def __init__(self) -> None:
        self.looked_up: list[bytes] = []
        self.uses: list[dict[str, int]] = []
        self.is_away = False
        self.team: Team | None = TEAM

    async def key_by_digest(self, stored_digest: bytes) -> tuple[Account, Key] | None:
        self.looked_up.append(stored_digest)
        for text, revoked_at_ms in ((GOOD, None), (REVOKED, 1)):
            if stored_digest == api_keys.stored_digest(PEPPER, api_keys.digest(text)):
                return ACCOUNT, Key(text[-4:], "a", "", "", revoked_at_ms=revoked_at_ms)
        return None

    async def account(self, _account_id: str) -> Account:
        return ACCOUNT

    async def team_by_subject(self, _issuer: str, _subject: str) -> Team | None:
        return self.team

    async def note_uses(self, uses: dict[str, int]) -> None:
        if self.is_away:
            raise StoreUnavailableError("away")
        self.uses.append(uses)


class Subjects:
    """Every token is of the one subject."""

    async def verify(self, _token: str) -> tuple[str, str]:
        return TEAM.issuer, TEAM.subject


class Stale:
    """A feed that has to be asked; hands over what it then knows."""

    is_healthy = True

    def __init__(self) -> None:
        self.is_fresh = False
        self.news: Changed | None = None
        self.apply: Callable[[Changed], None] = lambda _: None

    async def refresh(self) -> None:
        if self.news is not None:
            self.apply(self.news)

    def follow(self, apply: Callable[[Changed], None]) -> None:
        self.apply = apply


@dataclass
class Clock:
    now_ms: int = 600_000

    def __call__(self) -> int:
        return self.now_ms


def directory_on(store: CountingStore, feed: ChangeFeed | None = None, now: Clock | None = None) -> Directory:
    stores = cast("AccountStore", store)
    return Directory(stores, Subjects(), feed or Alone(), pepper=PEPPER, now_unix_ms=now or Clock())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(api_keys.mint(lambda count: b"\x07" * count), id="a well formed key that nobody has"),
        pytest.param(GOOD[:-1] + ("a" if GOOD[-1] != "a" else "b"), id="a mistyped key"),
        pytest.param(GOOD[:-1], id="a key cut short"),
        pytest.param("mws_live_", id="a prefix alone"),
        pytest.param("mws_live_ключ", id="no key at all"),
        pytest.param(REVOKED, id="a revoked key"),
    ],
)
async def test_a_bad_key_costs_one_digest_and_one_look_up_whatever_is_wrong_with_it(text: str) -> None:
    store = CountingStore()
    directory = directory_on(store)
    for attempt in range(3):
        with pytest.raises(InvalidCredentialError) as refused:
            await TeamCallers(directory).resolve(text)
        assert (refused.value.message, dict(refused.value.metadata)) == ("the credential is not valid", {})
        assert len(store.looked_up) == 1, attempt


async def test_an_unknown_key_is_looked_up_again_after_a_while() -> None:
    store, now = CountingStore(), Clock()
    directory = directory_on(store, now=now)
    for pause_ms in (0, UNKNOWN_KEPT_MS - 1, 1):
        now.now_ms += pause_ms
        with pytest.raises(InvalidCredentialError):
            await directory.payer_by_key(b"x" * 32)

    assert len(store.looked_up) == 2


@given(st.permutations(range(6)))
async def test_of_all_versions_of_a_record_the_newest_stays_in_whatever_order_they_come(order: Sequence[int]) -> None:
    directory = directory_on(CountingStore())
    await directory.payer_by_key(api_keys.digest(GOOD))
    for revision in order:
        key = Key(GOOD[-4:], "a", str(revision), "", revision=revision)
        account = replace(ACCOUNT, name=str(revision), revision=revision)
        if revision % 2:
            directory.apply(Changed(revision, [account], [key], []))
        else:
            directory.put_key(key)
            directory.put_account(account)

    payer = await directory.payer_by_key(api_keys.digest(GOOD))
    assert payer.key is not None
    assert (payer.account.name, payer.key.name) == ("5", "5")


async def test_what_may_be_old_is_refreshed_before_a_decision() -> None:
    feed = Stale()
    directory = directory_on(CountingStore(), feed)
    await directory.payer_by_key(api_keys.digest(GOOD))
    feed.news = Changed(1, [replace(ACCOUNT, suspended=True, revision=1)], [], [])

    with pytest.raises(InvalidCredentialError):
        await directory.payer_by_key(api_keys.digest(GOOD))
    feed.news = Changed(2, [replace(ACCOUNT, revision=2)], [], [])
    assert (await directory.payer_by_account("a")).account.revision == 2
    feed.news = Changed(3, [replace(ACCOUNT, closed_at_ms=1, revision=3)], [], [])
    with pytest.raises(InvalidCredentialError):
        await directory.payer_by_token("t")


async def test_a_team_that_another_replica_deleted_is_not_remembered() -> None:
    store = CountingStore()
    directory = directory_on(store)
    assert await directory.team_by_token("t") == TEAM
    store.team = None
    assert await directory.team_by_token("t") == TEAM
    directory.apply(Changed(1, [], [], [TEAM.team_id]))

    with pytest.raises(InvalidCredentialError):
        await directory.team_by_token("t")


async def test_a_store_that_went_back_is_asked_anew() -> None:
    store = CountingStore()
    directory = directory_on(store)
    await directory.payer_by_key(api_keys.digest(GOOD))
    directory.put_account(replace(ACCOUNT, suspended=True, revision=9))
    directory.apply(Changed(8, [], [], [], is_reset=True))

    assert (await directory.payer_by_key(api_keys.digest(GOOD))).account == ACCOUNT
    assert len(store.looked_up) == 2


@pytest.mark.parametrize(
    "account",
    [
        pytest.param(replace(ACCOUNT, suspended=True, revision=1), id="suspended"),
        pytest.param(replace(ACCOUNT, closed_at_ms=1, revision=1), id="closed"),
    ],
)
async def test_an_account_that_may_not_call_is_as_good_as_unknown(account: Account) -> None:
    directory = directory_on(CountingStore())
    await directory.payer_by_key(api_keys.digest(GOOD))
    directory.put_account(account)
    credentials: list[Any] = [
        directory.payer_by_key(api_keys.digest(GOOD)),
        directory.payer_by_account("a"),
        directory.payer_by_token("t"),
    ]
    for asked in credentials:
        with pytest.raises(InvalidCredentialError):
            await asked


async def test_uses_are_written_once_a_minute_and_survive_a_store_that_is_away() -> None:
    store, now = CountingStore(), Clock()
    directory = directory_on(store, now=now)
    for pause_ms in (0, 1_000, 59_000):
        now.now_ms += pause_ms
        await directory.payer_by_key(api_keys.digest(GOOD))
        await directory.write_uses()
    now.now_ms += 60_000
    await directory.payer_by_key(api_keys.digest(GOOD))
    store.is_away = True
    with pytest.raises(StoreUnavailableError):
        await directory.write_uses()
    store.is_away = False
    await directory.write_uses()

    assert store.uses == [{GOOD[-4:]: at_ms} for at_ms in (600_000, 660_000, 720_000)]
