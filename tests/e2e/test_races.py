"""Limits and money under concurrency: exactly as many calls as the ceiling or the credit allows, whoever races.

Owns the counting over the wire; the arithmetic itself has suites of its own.
"""

from collections import Counter
from typing import Any

import pytest
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.gateway import Account
from tests.load import Answer, at_once, chat, eventually, messages
from tests.paced import Paced, reconcile
from tests.plain_grpc import Failure, generate, generate_request, race, stub

SLOW = "chunks=1 delay_ms=2500"
"""Long enough that all callers are decided on before the first call ends and frees what it held."""


async def _held_nano_usd(paced: Paced, account: Account) -> int:
    """What one SLOW call holds."""
    async with stub(InferenceServiceStub, paced.gateway.grpc_target("inference")) as inference:
        events: Any = await generate(inference, generate_request(SLOW.replace("2500", "0")), account.api_key)
    return int(events[0].admitted.held_nano_usd)


async def test_credit_for_k_calls_admits_exactly_k(paced: Paced) -> None:
    held = await _held_nano_usd(paced, paced.account("measuring"))
    k, callers = 7, 40
    nano_usd = k * held + held - 1
    account = paced.account("k-calls", credit_usd=f"{nano_usd / 10**9:.9f}")

    answers = await at_once(paced.caller(account), [messages(SLOW, max_tokens=64) for _ in range(callers)])

    assert _statuses(answers) == {200: k, 402: callers - k}
    reconcile(answers, paced.provider.log(), paced.entries(account))


async def test_a_402_names_what_the_balance_would_cover(paced: Paced) -> None:
    account = paced.account("nearly-broke", credit_usd="0.0001")

    answer = await paced.caller(account).send(messages("chunks=1", max_tokens=60_000))

    assert answer.status == 402
    assert answer.error is not None
    affordable = int(answer.error["message"].rstrip(".").rsplit(" ", 1)[1])
    assert 0 < affordable < 100
    assert (await paced.caller(account).send(messages("chunks=1", max_tokens=affordable))).ok


@pytest.mark.parametrize("dialect", [pytest.param(messages, id="anthropic"), pytest.param(chat, id="openai")])
async def test_a_ceiling_of_k_requests_admits_exactly_k(paced: Paced, dialect: Any) -> None:
    k, callers = 5, 40
    account = paced.account("k-requests", rpm=k)

    answers = await at_once(paced.caller(account), [dialect("chunks=1") for _ in range(callers)])

    assert _statuses(answers) == {200: k, 429: callers - k}
    admitted = [answer for answer in answers if answer.ok]
    assert sorted(int(answer.headers["x-ratelimit-remaining-requests"]) for answer in admitted) == [0, 1, 2, 3, 4]


async def test_k_slots_run_exactly_k_calls_at_once_and_are_free_afterwards(paced: Paced) -> None:
    k, callers = 6, 30
    account = paced.account("k-slots", concurrency=k)
    caller = paced.caller(account)

    answers = await at_once(caller, [messages(SLOW) for _ in range(callers)])

    assert _statuses(answers) == {200: k, 429: callers - k}

    async def free_again() -> bool:
        again = await at_once(caller, [messages("chunks=1 delay_ms=300") for _ in range(k)])
        return all(answer.ok for answer in again)

    await eventually(free_again, within_s=5, why="slots of calls that ended")


async def test_one_call_id_raced_a_thousand_times_reaches_the_provider_once(paced: Paced) -> None:
    account = paced.account("raced")
    token = paced.gateway.token("edge")
    request = generate_request("chunks=3 delay_ms=200", account_id=account.account_id)
    async with stub(InferenceServiceStub, paced.gateway.grpc_target("inference")) as inference:
        results = await race([generate(inference, request, token) for _ in range(1000)])
        later = await generate(inference, request, token)

    served = [result for result in results if isinstance(result, list)]
    refused = Counter(result.reason for result in results if isinstance(result, Failure))
    assert len(served) == 1
    # On plain gRPC a thousand decisions at once may take some of them over the 2 s that a decision gets.
    assert refused.keys() <= {"CALL_ALREADY_ADMITTED", "STORE_UNAVAILABLE"}
    assert refused["CALL_ALREADY_ADMITTED"] > 900
    assert isinstance(later, Failure)
    assert later.reason == "CALL_ALREADY_ADMITTED"
    assert len(paced.provider.served(request.call_id)) == 1
    assert len(paced.entries(account)[request.call_id]) == 1


def _statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)
