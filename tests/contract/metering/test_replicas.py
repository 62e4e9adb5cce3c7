"""Several replicas on one database: whoever posts, marks, grants or delivers, it happens once.

Owns what replicas may do to each other; what one ledger does is in test_ledger_store.py.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from services.metering import checking, granting, usage
from services.metering.adapters.postgres_ledger import PostgresLedger, open_postgres_ledger
from services.metering.charging import UsageEvent
from services.metering.ports import Footprint, Rejection
from services.metering.usage import Moment, RecordOutcome
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, NOW_US, Bookkeeper, a_credit, an_event

COST = 26_400


@pytest.fixture
async def replicas(postgres_url: str) -> AsyncIterator[list[PostgresLedger]]:
    """Three replicas that were started at once on an empty database."""
    async with AsyncExitStack() as stack:
        opened = [open_postgres_ledger(postgres_url, write_timeout_s=20.0) for _ in range(3)]
        stores = await asyncio.gather(*map(stack.enter_async_context, opened))
        await Bookkeeper(stores[0]).register()
        yield list(stores)


async def record(store: PostgresLedger, *events: UsageEvent | Rejection) -> list[RecordOutcome]:
    """As the servicer does, footprint included."""
    moment = Moment(NOW_US, new_id)
    return await store.commit(
        lambda transaction: usage.record(transaction, events, moment), footprint=usage.footprint_of(events)
    )


async def violations(store: PostgresLedger) -> tuple[checking.Violation, ...]:
    return (await store.inspect(lambda snapshot: checking.check(snapshot, ""))).violations


async def test_a_call_that_every_replica_is_told_of_is_posted_once(replicas: list[PostgresLedger]) -> None:
    accounts = [f"account-{index}" for index in range(5)]
    events = [an_event(account_id=accounts[index % 5]) for index in range(200)]
    batches = [events[start : start + 20] for start in range(0, 200, 20)]

    answers = await asyncio.gather(
        *(record(store, *batch) for number, store in enumerate(replicas) for batch in batches[number:] + batches)
    )

    first = [outcome for answer in answers for outcome in answer if not outcome.is_repeated]
    assert sorted(outcome.call_id for outcome in first) == sorted(event.call_id for event in events)
    assert {outcome.charged_nano_usd for answer in answers for outcome in answer} == {COST}
    balances = [(await store.customer(accounts[0])).balance_nano_usd for store in replicas]
    assert balances == [-40 * COST] * 3
    assert await violations(replicas[0]) == ()


async def test_a_call_is_never_void_and_posted_in_silence(replicas: list[PostgresLedger]) -> None:
    events = [an_event() for _ in range(60)]

    def resolve(store: PostgresLedger, call_ids: list[str]) -> "asyncio.Future[object]":
        return asyncio.ensure_future(
            store.commit(
                lambda transaction: usage.resolve(transaction, call_ids, NOW_US),
                footprint=Footprint(call_ids=call_ids, marks_void=True),
            )
        )

    work = []
    for start in range(0, 60, 4):
        batch = events[start : start + 4]
        work.append(asyncio.ensure_future(record(replicas[start % 3], *batch)))
        work.append(resolve(replicas[(start + 1) % 3], [event.call_id for event in batch]))  # type: ignore[arg-type]
    await asyncio.gather(*work)

    assert await violations(replicas[0]) == ()  # `void_and_posted` is one of its rules
    assert (await replicas[0].customer(ACCOUNT)).balance_nano_usd == -60 * COST


async def test_a_key_grants_once_whoever_is_asked(replicas: list[PostgresLedger]) -> None:
    credit = a_credit(account_id="new")

    granted = await asyncio.gather(
        *(
            store.commit(lambda transaction: granting.grant(transaction, credit, NOW_US, new_id), footprint=footprint)
            for store in replicas
            for footprint in (None, Footprint(["new"]))
        )
    )

    assert len({each.record.transfer.transfer_id for each in granted}) == 1
    assert (await replicas[2].customer("new")).balance_nano_usd == 1_000_000_000
    assert await violations(replicas[1]) == ()


async def test_a_call_of_two_accounts_is_posted_for_one_of_them(replicas: list[PostgresLedger]) -> None:
    event = an_event()

    answers = await asyncio.gather(
        *(record(store, event._replace(account_id=f"account-{number}")) for number, store in enumerate(replicas))
    )

    kinds = sorted(answer[0].kind.name for answer in answers)
    assert kinds == ["POSTED", "REJECTED", "REJECTED"]
    assert await violations(replicas[0]) == ()


async def test_a_row_of_the_outbox_is_claimed_by_one(replicas: list[PostgresLedger]) -> None:
    for _ in range(4):
        await record(replicas[0], an_event())

    async with replicas[0].claim_notices(3) as mine, replicas[1].claim_notices(10) as theirs:
        claimed = [len(mine.notices), len(theirs.notices)]
        await mine.delivered(mine.notices[:2], {ACCOUNT: 2})
    async with replicas[2].claim_notices(10) as left:
        rest = [notice.seq for notice in left.notices]

    assert (claimed, rest) == ([3, 1], [3, 4])
    assert [await replicas[2].is_delivered(mark) for mark in (1, 2, 3)] == [True, True, False]


async def test_a_claim_that_fails_is_given_back(replicas: list[PostgresLedger]) -> None:
    await record(replicas[0], an_event())

    with pytest.raises(KeyError):
        async with replicas[0].claim_notices(10):
            raise KeyError("auth-and-limits is away")

    async with asyncio.timeout(20):
        while not (found := await _claimed(replicas[1])):
            await asyncio.sleep(0.01)
    assert found == 1
    async with replicas[0].claim_notices(10) as again:
        assert len(again.notices) == 1


async def _claimed(store: PostgresLedger) -> int:
    async with store.claim_notices(10) as claim:
        return len(claim.notices)
