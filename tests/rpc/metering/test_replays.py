"""RecordUsage with an answer and GetKeptAnswer, as inference and the edge call them.

Owns the contract's fields and who may ask; refuses to test stores.
"""

import hashlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mws.metering.v1 import metering_service_pb2 as pb

from services.metering import translate
from services.runtime.calls import CallerClass
from services.runtime.errors import CallerNotAllowedError, InvalidRequestError, NotFoundError
from tests.contract.metering.building import ACCOUNT, an_event
from tests.rpc.metering.serving import TIMEOUT_S, Running, running_metering

BODY = hashlib.sha256(b"body").digest()
ANSWER = pb.KeptAnswer(idempotency_key="k", body_sha256=BODY, form="message", message=b"what a user was told")


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with running_metering(tmp_path) as metering:
        yield metering


def an_answered_event(answer: pb.KeptAnswer = ANSWER) -> pb.UsageEvent:
    event = translate.event_to_pb(an_event())
    event.answer.CopyFrom(answer)
    return event


async def test_an_answer_is_fetched_by_inference_and_the_edge_alone(running: Running) -> None:
    event = an_answered_event()
    await running.record(event)

    request = pb.GetKeptAnswerRequest(account_id=ACCOUNT, idempotency_key="k")
    for caller_class in CallerClass:
        stub = running.by_class[caller_class].metering
        if caller_class in {CallerClass.INFERENCE, CallerClass.EDGE}:
            found = await stub.GetKeptAnswer(request, timeout=TIMEOUT_S)
            assert (found.call_id, found.answer) == (event.call_id, ANSWER)
            assert found.kept_until.seconds > event.ended_at.seconds
        else:
            with pytest.raises(CallerNotAllowedError):
                await stub.GetKeptAnswer(request, timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        pytest.param(
            pb.GetKeptAnswerRequest(account_id=ACCOUNT, idempotency_key="x"), NotFoundError, id="nothing kept"
        ),
        pytest.param(pb.GetKeptAnswerRequest(account_id="other", idempotency_key="k"), NotFoundError, id="not theirs"),
        pytest.param(pb.GetKeptAnswerRequest(account_id=ACCOUNT), InvalidRequestError, id="no key"),
        pytest.param(pb.GetKeptAnswerRequest(idempotency_key="k"), InvalidRequestError, id="no account"),
    ],
)
async def test_what_is_not_kept_is_not_found(
    running: Running, request_: pb.GetKeptAnswerRequest, error: type[Exception]
) -> None:
    await running.record(an_answered_event())

    with pytest.raises(error):
        await running.inference.GetKeptAnswer(request_, timeout=TIMEOUT_S)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(pb.KeptAnswer(body_sha256=BODY, message=b"told"), id="no key"),
        pytest.param(pb.KeptAnswer(idempotency_key="k", body_sha256=b"short", message=b"told"), id="no digest"),
        pytest.param(pb.KeptAnswer(idempotency_key="k" * 256, body_sha256=BODY, message=b"told"), id="a long key"),
    ],
)
async def test_an_unusable_answer_is_rejected_and_not_kept_to_look_at(
    running: Running, tmp_path: Path, answer: pb.KeptAnswer
) -> None:
    (outcome,) = await running.record(an_answered_event(answer))

    with sqlite3.connect(tmp_path / "ledger.sqlite3") as connection:
        ((kept,),) = connection.execute("SELECT event_json FROM rejected_events")
    connection.close()
    assert outcome.kind == pb.RecordOutcome.KIND_REJECTED
    assert "answer" not in kept


async def test_two_calls_of_one_batch_under_one_key_are_charged_once(running: Running) -> None:
    first, second = await running.record(an_answered_event(), an_answered_event())

    assert (first.kind, second.kind) == (pb.RecordOutcome.KIND_POSTED, pb.RecordOutcome.KIND_REJECTED)
    assert (await running.balance()).balance_nano_usd == -first.charged_nano_usd
    assert await running.violations() == []
