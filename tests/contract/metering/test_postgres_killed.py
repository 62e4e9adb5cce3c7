"""PostgreSQL dies, freezes, or takes sessions away under load: nothing is lost or posted twice, and nobody restarts.

Owns the ledger's view of a server that fails; the spool that keeps usage meanwhile is the runner's.
"""

import asyncio
import time
from collections.abc import Callable

import pytest

from services.metering import checking, usage
from services.metering.adapters.postgres_ledger import PostgresLedger, open_postgres_ledger
from services.metering.charging import UsageEvent
from services.metering.usage import Moment, RecordOutcome
from services.runtime.errors import StoreUnavailableError
from services.runtime.ids import new_id
from tests.contract.metering.building import NOW_US, Bookkeeper, an_event
from tests.postgres_server import PostgresServer

COST = 26_400
ACCOUNTS = tuple(f"account-{index}" for index in range(4))
PATIENCE_S = 40


class Runner:
    """Records without pause; what was refused waits in a spool and is sent again later, as it was."""

    def __init__(self, store: PostgresLedger, account_id: str) -> None:
        self._store = store
        self._account_id = account_id
        self.acknowledged: list[str] = []
        self.spool: list[list[UsageEvent]] = []
        self.refused_after_s: list[float] = []

    async def run(self) -> None:
        while True:
            await self.send([an_event(account_id=self._account_id) for _ in range(3)])

    async def send(self, batch: list[UsageEvent]) -> None:
        began = time.monotonic()
        try:
            outcomes = await record(self._store, batch)
        except StoreUnavailableError:
            self.refused_after_s.append(time.monotonic() - began)
            self.spool.append(batch)
            await asyncio.sleep(0.02)  # a runner does not hammer a store that is down
        else:
            self.acknowledged += [outcome.call_id for outcome in outcomes]

    async def empty_the_spool(self) -> None:
        while self.spool:
            await self.send(self.spool.pop(0))


async def record(store: PostgresLedger, batch: list[UsageEvent]) -> list[RecordOutcome]:
    moment = Moment(NOW_US, new_id)
    return await store.commit(
        lambda transaction: usage.record(transaction, batch, moment), footprint=usage.footprint_of(batch)
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def fail_by_kill(postgres: PostgresServer) -> None:
    postgres.kill()


def fail_by_freeze(postgres: PostgresServer) -> None:
    postgres.freeze()


def fail_by_restart(postgres: PostgresServer) -> None:
    postgres.stop()


def come_back(postgres: PostgresServer) -> None:
    if postgres.is_running:
        postgres.thaw()
    postgres.start()


@pytest.mark.parametrize(
    "fail",
    [
        pytest.param(fail_by_kill, id="killed with -9"),
        pytest.param(fail_by_restart, id="stopped by an administrator"),
        pytest.param(fail_by_freeze, id="frozen"),
    ],
)
async def test_a_server_that_fails_under_load_costs_no_posting(
    postgres: PostgresServer, ledger_url: str, fail: Callable[[PostgresServer], None]
) -> None:
    async with open_postgres_ledger(ledger_url, write_timeout_s=0.25) as store:
        await Bookkeeper(store).register()
        runners = [Runner(store, account_id) for account_id in ACCOUNTS]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(runner.run()) for runner in runners]
            await until(lambda: all(len(runner.acknowledged) >= 15 for runner in runners))
            await asyncio.to_thread(fail, postgres)
            await until(lambda: all(len(runner.refused_after_s) >= 3 for runner in runners))
            before = [len(runner.acknowledged) for runner in runners]
            await asyncio.to_thread(come_back, postgres)
            await until(
                lambda: all(len(each.acknowledged) > had + 15 for each, had in zip(runners, before, strict=True))
            )
            for task in running:
                task.cancel()
        for runner in runners:
            async with asyncio.timeout(PATIENCE_S):
                await runner.empty_the_spool()
        report = await store.inspect(lambda snapshot: checking.check(snapshot, ""))
        balances = {account_id: (await store.customer(account_id)).balance_nano_usd for account_id in ACCOUNTS}

    acknowledged = {runner._account_id: set(runner.acknowledged) for runner in runners}
    assert report.violations == ()
    assert max(seconds for runner in runners for seconds in runner.refused_after_s) < 2
    # A batch whose runner was stopped while it was on its way may have landed, too.
    unknown = report.checked_usage_events - sum(map(len, acknowledged.values()))
    assert 0 <= unknown <= 3 * len(ACCOUNTS)
    assert -sum(balances.values()) == report.checked_usage_events * COST
    assert all(-balances[account_id] >= len(acknowledged[account_id]) * COST for account_id in ACCOUNTS)


async def test_sessions_that_an_administrator_ends_are_opened_again(postgres: PostgresServer, ledger_url: str) -> None:
    async with open_postgres_ledger(ledger_url, write_timeout_s=20.0) as store:
        books = Bookkeeper(store)
        await books.register()
        event = an_event()
        await books.record(event)
        await store.customer(event.account_id)
        async with store.claim_notices(1):
            pass
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mws-metering'"
        )

        async def repeated() -> bool:
            try:
                (outcome,) = await books.record(event)
                customer = await store.customer(event.account_id)
                async with store.claim_notices(10) as claim:
                    return (outcome.is_repeated, customer.seq, len(claim.notices)) == (True, 1, 1)
            except StoreUnavailableError:
                return False

        async with asyncio.timeout(PATIENCE_S):
            while not await repeated():
                await asyncio.sleep(0.01)
