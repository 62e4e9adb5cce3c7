"""Which hold store a process uses, from its settings: the embedded one, or Redis for several processes.

Owns that choice; refuses to know what a store does.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.auth_and_limits.adapters.embedded_holds import EmbeddedHolds
from services.auth_and_limits.ports import AccountStore, BalanceSource, HoldStore
from services.auth_and_limits.settings import Settings
from services.auth_and_limits.tiers import PlanBook
from services.runtime.errors import StoreUnavailableError


@asynccontextmanager
async def open_holds(
    settings: Settings, plans: PlanBook, accounts: AccountStore, balances: BalanceSource | None
) -> AsyncIterator[HoldStore]:
    """The store, open until the context ends."""
    if settings.redis_url is not None:
        from services.auth_and_limits.adapters.redis_holds import RedisHolds
        from services.auth_and_limits.adapters.redis_link import RedisLink
        from services.auth_and_limits.adapters.redis_scripts import read_scripts
        from services.auth_and_limits.adapters.redis_url import parse_redis_url

        where = parse_redis_url(settings.redis_url.get_secret_value())
        link = RedisLink(where, read_scripts(), patience_s=settings.store_timeout_s)
        shared = RedisHolds(link, plans, balances=balances, learning_s=settings.learning_s, name=settings.name)
        await shared.open()
        try:
            yield shared
        finally:
            await shared.close()
        return
    path = settings.data_dir / "auth" / "holds.sqlite3"
    embedded = EmbeddedHolds(path, plans, slow_s=settings.store_timeout_s)
    await embedded.open()
    try:
        if balances is not None:
            embedded.heal_from(balances, has_accounts=await _has_accounts(accounts))
        yield embedded
    finally:
        await embedded.close()


async def _has_accounts(accounts: AccountStore) -> bool:
    try:
        return bool(await accounts.accounts("", "", 1))
    except StoreUnavailableError:
        return True  # a store that is away for now may hold some
