"""What every store promises of answers under idempotency keys: kept with the posting, one call per key, for a day.

Owns the promise on both stores; refuses to test who replays an answer.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.metering import answers, usage
from services.metering.adapters.sqlite_ledger import open_ledger
from services.metering.answers import KEEP_US, MAX_MESSAGE_BYTES
from services.metering.charging import Ending, UsageEvent
from services.metering.ports import KeptAnswer, KeptAnswerRecord, LedgerStore
from services.metering.usage import Moment, RecordOutcome
from services.runtime.errors import NotFoundError
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, NOW_US, Bookkeeper, an_event

COST = 26_400
BODY = hashlib.sha256(b"body").digest()


@pytest.fixture(params=["sqlite", "postgres"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[LedgerStore]]:
    """Two replicas on one ledger; on a file, the same one twice."""
    async with AsyncExitStack() as stack:
        replicas: list[LedgerStore]
        if request.param == "sqlite":
            ledger = await stack.enter_async_context(open_ledger(tmp_path / "ledger.sqlite3", write_timeout_s=20.0))
            replicas = [ledger, ledger]
        else:
            from services.metering.adapters.postgres_ledger import open_postgres_ledger

            url = request.getfixturevalue("postgres_url")
            replicas = [
                await stack.enter_async_context(open_postgres_ledger(url, write_timeout_s=20.0)) for _ in range(2)
            ]
        await Bookkeeper(replicas[0]).register()
        yield replicas


one_store = pytest.mark.parametrize("stores", ["sqlite"], indirect=True)
"""For what is the same code on every store."""


def an_answer(message: bytes = b"hello", key: str = "k") -> KeptAnswer:
    return KeptAnswer(key, BODY, "test", message)


async def record(store: LedgerStore, event: UsageEvent, answer: KeptAnswer, now_us: int = NOW_US) -> RecordOutcome:
    (outcome,) = await store.commit(
        lambda transaction: usage.record(transaction, [event], Moment(now_us, new_id), {event.call_id: answer}),
        footprint=usage.footprint_of([event]),
    )
    return outcome


async def kept(store: LedgerStore, key: str = "k", now_us: int = NOW_US) -> KeptAnswerRecord:
    return await store.commit(lambda transaction: answers.find(transaction, ACCOUNT, key, now_us))


async def test_an_answer_is_there_once_its_call_is_posted(stores: list[LedgerStore]) -> None:
    event = an_event()
    outcome = await record(stores[0], event, an_answer())
    again = await record(stores[1], event, an_answer(b"another"))

    assert (outcome.charged_nano_usd, again.is_repeated) == (COST, True)
    assert await kept(stores[1]) == KeptAnswerRecord(ACCOUNT, event.call_id, an_answer(), NOW_US + KEEP_US)
    with pytest.raises(NotFoundError):
        await kept(stores[0], "unknown")


async def test_another_call_under_the_key_is_never_charged(stores: list[LedgerStore]) -> None:
    first = an_event()
    await record(stores[0], first, an_answer())

    second = await record(stores[1], an_event(), an_answer(b"second"))
    elsewhere = await record(stores[1], an_event(account_id="other"), an_answer())

    assert (second.kind, elsewhere.kind) == (usage.OutcomeKind.REJECTED, usage.OutcomeKind.POSTED)
    assert first.call_id in second.detail
    assert (await kept(stores[0])).answer.message == b"hello"
    assert (await stores[0].customer(ACCOUNT)).balance_nano_usd == -COST


async def test_of_calls_that_race_for_a_key_one_is_charged(stores: list[LedgerStore]) -> None:
    outcomes = await asyncio.gather(*(record(stores[turn % 2], an_event(), an_answer()) for turn in range(40)))

    posted = [outcome for outcome in outcomes if outcome.kind is usage.OutcomeKind.POSTED]
    assert len(posted) == 1
    assert (await kept(stores[0])).call_id == posted[0].call_id
    assert (await stores[0].customer(ACCOUNT)).balance_nano_usd == -COST


@one_store
async def test_an_answer_that_is_too_large_still_takes_its_key(stores: list[LedgerStore]) -> None:
    await record(stores[0], an_event(), an_answer(b"x" * MAX_MESSAGE_BYTES, "just"))
    await record(stores[0], an_event(), an_answer(b"x" * (MAX_MESSAGE_BYTES + 1)))
    second = await record(stores[0], an_event(), an_answer())

    assert len((await kept(stores[0], "just")).answer.message) == MAX_MESSAGE_BYTES
    assert ((await kept(stores[0])).answer.message, second.kind) == (b"", usage.OutcomeKind.REJECTED)


@one_store
async def test_what_is_not_posted_keeps_nothing(stores: list[LedgerStore]) -> None:
    await record(stores[0], an_event(price_book_version="0" * 64), an_answer())
    await record(stores[0], an_event(profile="unpriced"), an_answer())
    with pytest.raises(NotFoundError):
        await kept(stores[0])

    await record(stores[0], an_event(ending=Ending.REFUSED), an_answer())
    assert (await kept(stores[0])).answer == an_answer()


async def test_an_answer_is_forgotten_after_a_day_and_its_key_is_free(stores: list[LedgerStore]) -> None:
    await record(stores[0], an_event(), an_answer())
    await record(stores[0], an_event(), an_answer(key="other"))
    over = NOW_US + KEEP_US

    assert (await kept(stores[0], now_us=over - 1)).answer == an_answer()
    with pytest.raises(NotFoundError):
        await kept(stores[0], now_us=over)
    next_day = await record(stores[1], an_event(), an_answer(b"next"), over)
    forgotten = await stores[0].commit(lambda transaction: answers.sweep(transaction, over))

    assert (next_day.kind, forgotten) == (usage.OutcomeKind.POSTED, 1)
    assert (await kept(stores[0], now_us=over)).answer.message == b"next"


def test_what_a_user_was_told_has_no_text_form() -> None:
    assert "hello" not in repr(an_answer())
