"""ReadBalances as auth-and-limits sees it.

Owns what a hold store needs that has lost its balances.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mws.metering.v1 import metering_service_pb2 as pb

from services.metering import translate
from services.runtime.calls import CallerClass
from services.runtime.errors import CallerNotAllowedError, InvalidRequestError
from services.runtime.ids import new_id
from tests.contract.metering.building import ACCOUNT, an_event
from tests.rpc.metering.serving import TIMEOUT_S, Running, running_metering


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_metering(tmp_path) as metering:
        yield metering


async def read(running: Running, *account_ids: str, by: CallerClass = CallerClass.AUTH) -> list[pb.AccountBalance]:
    request = pb.ReadBalancesRequest(account_ids=account_ids)
    return list((await running.by_class[by].metering.ReadBalances(request, timeout=TIMEOUT_S)).balances)


async def test_it_says_what_the_last_change_of_a_balance_said(running: Running) -> None:
    await running.record(translate.event_to_pb(an_event()))
    balance = await running.balance()

    (found,) = await read(running, ACCOUNT)

    assert found == pb.AccountBalance(account_id=ACCOUNT, seq=1, balance_nano_usd=balance.balance_nano_usd)


async def test_an_account_without_entries_has_nothing(running: Running) -> None:
    unknown = new_id()

    assert await read(running, unknown, ACCOUNT) == [
        pb.AccountBalance(account_id=unknown),
        pb.AccountBalance(account_id=ACCOUNT),
    ]


async def test_no_ids_and_too_many_are_refused(running: Running) -> None:
    for account_ids in ((), ("a",) * 1_001):
        with pytest.raises(InvalidRequestError):
            await read(running, *account_ids)


async def test_only_auth_may_ask(running: Running) -> None:
    with pytest.raises(CallerNotAllowedError):
        await read(running, ACCOUNT, by=CallerClass.INFERENCE)
