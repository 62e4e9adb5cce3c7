"""`AdmissionService` as its callers see it.

Owns the way of messages in and out, and the reasons of failures; the arithmetic has its own tests.
"""

import asyncio
import hashlib
import time
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from mws.admission.v1 import account_service_pb2 as account_pb
from mws.admission.v1 import admission_service_pb2 as pb
from mws.common.v1 import credential_pb2, limits_pb2

from services.runtime.calls import CallerClass
from services.runtime.errors import (
    CallAlreadyAdmittedError,
    DeadlineExceededError,
    ForeignAccountError,
    GatewayError,
    HoldNotOpenError,
    IdempotencyKeyReusedError,
    InvalidCredentialError,
    InvalidRequestError,
    MissingCredentialError,
    NotFoundError,
)
from services.runtime.ids import new_id
from tests.rpc.auth_and_limits.serving import TIMEOUT_S, Running, admit_request, by_key


def id_minted(minutes_ago: float) -> str:
    digits = f"{int(time.time() * 1000 - minutes_ago * 60_000):012x}"
    return f"{digits[:8]}-{digits[8:]}{new_id()[13:]}"


async def inference(running: Running) -> Any:
    return (await running.by(CallerClass.INFERENCE)).admission


async def test_an_admission_answers_with_the_hold_the_payer_and_the_limits(running: Running) -> None:
    account_id = await running.new_account()
    key_id, key = await running.new_key(account_id)
    await running.fund(account_id, 1_000)
    request = admit_request(by_key(key), amount_nano_usd=600, rate_tokens=2_000)

    answer = await running.admit(request)

    lease_s = answer.admitted.lease_until.seconds - time.time()
    assert 15 < lease_s <= 20
    answer.admitted.ClearField("lease_until")
    assert answer == pb.AdmitResponse(
        account_id=account_id,
        key_id=key_id,
        admitted=pb.Hold(
            call_id=request.call_id,
            run_id=request.run_id,
            runner="inference-0/1",
            account_id=account_id,
            key_id=key_id,
            state=pb.HOLD_STATE_OPEN,
            amount_nano_usd=600,
            rate_tokens=2_000,
            price_book_version="book",
        ),
        limits=limits_pb2.LimitsSnapshot(
            requests=limits_pb2.BucketSnapshot(limit=1_000, remaining=999, reset=Duration(nanos=60_000_000)),
            tokens=limits_pb2.BucketSnapshot(limit=2_000_000, remaining=1_998_000, reset=Duration(nanos=60_000_000)),
        ),
    )


async def test_a_refusal_is_an_answer_with_the_limits(running: Running) -> None:
    account_id = await running.new_account(overrides=account_pb.CeilingOverrides(requests_per_minute=1))
    _, key = await running.new_key(account_id)
    await running.admit(admit_request(by_key(key)))

    answer = await running.admit(admit_request(by_key(key)))

    assert answer.refused.reason == pb.Refusal.REASON_REQUESTS
    assert 59 < answer.refused.retry_in.ToTimedelta().total_seconds() <= 60
    assert not answer.refused.HasField("ceiling")
    assert not answer.refused.HasField("available_nano_usd")
    assert (answer.limits.requests.remaining, answer.account_id) == (0, account_id)


async def test_an_empty_balance_says_what_is_left(running: Running) -> None:
    account_id = await running.new_account()
    _, key = await running.new_key(account_id)

    answer = await running.admit(admit_request(by_key(key), amount_nano_usd=1))

    assert answer.refused == pb.Refusal(reason=pb.Refusal.REASON_CREDIT, available_nano_usd=0)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"call_id": ""}, "call_id", id="no call id"),
        pytest.param({"call_id": "01920000-0000-4000-8000-000000000000"}, "call_id", id="a UUIDv4"),
        pytest.param({"call_id": new_id().upper()}, "call_id", id="upper case"),
        pytest.param({"call_id": id_minted(30.5)}, "call_id", id="minted more than 30 minutes ago"),
        pytest.param({"call_id": id_minted(-60)}, "call_id", id="minted more than 5 minutes from now"),
        pytest.param({"run_id": "x"}, "run_id", id="no run id"),
        pytest.param({"runner": ""}, "runner", id="no runner"),
        pytest.param({"runner": "x" * 129}, "runner", id="a long runner"),
        pytest.param({"operation": 0}, "operation", id="no operation"),
        pytest.param({"operation": 99}, "operation", id="an unknown operation"),
        pytest.param({"profile": "x" * 129}, "profile", id="a long profile"),
        pytest.param({"amount_nano_usd": -1}, "amount_nano_usd", id="a negative amount"),
        pytest.param({"amount_nano_usd": 9 * 10**15 + 1}, "amount_nano_usd", id="an amount beyond 9e15"),
        pytest.param({"rate_tokens": -1}, "rate_tokens", id="negative tokens"),
        pytest.param({"price_book_version": "x" * 65}, "price_book_version", id="a long version"),
        pytest.param({"idempotency_key": "k"}, "body_sha256", id="a key without a body"),
        pytest.param({"idempotency_key": "k" * 256, "body_sha256": b"x" * 32}, "idempotency_key", id="a long key"),
        pytest.param(
            {"credential": credential_pb2.Credential(api_key_sha256=b"x" * 31)},
            "credential.api_key_sha256",
            id="a digest of 31 bytes",
        ),
        pytest.param(
            {"credential": credential_pb2.Credential(access_token="x" * 16_385)},
            "credential.access_token",
            id="a token beyond 16 KiB",
        ),
    ],
)
async def test_a_broken_rule_names_its_field(running: Running, fields: dict[str, Any], field: str) -> None:
    credential = fields.pop("credential", by_key("mws_live_x"))

    with pytest.raises(InvalidRequestError) as refused:
        await running.admit(admit_request(credential, **fields))

    assert [violation.field for violation in refused.value.violations] == [field]


@pytest.mark.parametrize("minutes_ago", [29.5, -4.5], ids=["old enough", "from a clock ahead"])
async def test_ids_within_their_window_are_taken(running: Running, minutes_ago: float) -> None:
    _, key = await running.new_key(await running.new_account())

    assert (await running.admit(admit_request(by_key(key), call_id=id_minted(minutes_ago)))).HasField("admitted")


@pytest.mark.parametrize(
    ("credential", "error"),
    [
        pytest.param(None, MissingCredentialError, id="none"),
        pytest.param(credential_pb2.Credential(), MissingCredentialError, id="an empty one"),
        pytest.param(credential_pb2.Credential(access_token=""), MissingCredentialError, id="an empty token"),
        pytest.param(by_key("mws_live_nobody"), InvalidCredentialError, id="an unknown key"),
        pytest.param(credential_pb2.Credential(access_token="a.b.c"), InvalidCredentialError, id="no JWT"),
        pytest.param(credential_pb2.Credential(account_id=new_id()), InvalidCredentialError, id="an unknown account"),
    ],
)
async def test_who_shows_nothing_good_is_nobody(
    running: Running, credential: credential_pb2.Credential | None, error: type[GatewayError]
) -> None:
    with pytest.raises(error):
        await running.admit(admit_request(credential))
    with pytest.raises(error):
        await running.limits(credential or credential_pb2.Credential())


async def test_only_the_named_account_may_pay(running: Running) -> None:
    account_id = await running.new_account()
    _, key = await running.new_key(account_id)

    with pytest.raises(ForeignAccountError):
        await running.admit(admit_request(by_key(key), only_account_id=new_id()))
    assert (await running.admit(admit_request(by_key(key), only_account_id=account_id))).HasField("admitted")


async def test_a_call_id_belongs_to_one_run(running: Running) -> None:
    _, key = await running.new_key(await running.new_account())
    request = admit_request(by_key(key))
    first = await running.admit(request)

    assert (await running.admit(request)).admitted == first.admitted
    with pytest.raises(CallAlreadyAdmittedError):
        await running.admit(admit_request(by_key(key), call_id=request.call_id))


async def test_an_idempotency_key_waits_then_replays(running: Running) -> None:
    account_id = await running.new_account()
    _, key = await running.new_key(account_id)
    keyed = {"idempotency_key": "k", "body_sha256": hashlib.sha256(b"1").digest()}
    first = admit_request(by_key(key), **keyed)
    await running.admit(first)

    waiting = await running.admit(admit_request(by_key(key), **keyed))
    await running.fund(account_id, 0, first.call_id)
    replayed = await running.admit(admit_request(by_key(key), **keyed))

    assert (waiting.wait.call_id, replayed.replay.call_id) == (first.call_id, first.call_id)
    with pytest.raises(IdempotencyKeyReusedError):
        await running.admit(admit_request(by_key(key), idempotency_key="k", body_sha256=b"x" * 32))


async def test_a_hold_is_extended_finished_and_closed(running: Running) -> None:
    account_id = await running.new_account()
    _, key = await running.new_key(account_id)
    await running.fund(account_id, 1_000)
    request = admit_request(by_key(key), amount_nano_usd=100, rate_tokens=500)
    await running.admit(request)
    stub = await inference(running)
    ids = {"call_id": request.call_id, "run_id": request.run_id}

    refused = await stub.Extend(pb.ExtendRequest(**ids, amount_nano_usd=1_001), timeout=TIMEOUT_S)
    extended = await stub.Extend(pb.ExtendRequest(**ids, amount_nano_usd=1_000), timeout=TIMEOUT_S)
    ended = pb.FinishedHold(**ids, cost_nano_usd=0, used_tokens=0)
    await stub.Finish(pb.FinishRequest(holds=[ended]), timeout=TIMEOUT_S)
    with pytest.raises(HoldNotOpenError):
        await stub.Void(pb.VoidRequest(call_id=request.call_id, run_id=request.run_id), timeout=TIMEOUT_S)
    await running.fund(account_id, 1_000, request.call_id)
    closed = await stub.AwaitOutcome(pb.AwaitOutcomeRequest(call_id=request.call_id), timeout=TIMEOUT_S)

    assert refused.refused == pb.Refusal(reason=pb.Refusal.REASON_CREDIT, available_nano_usd=900)
    assert extended.extended.amount_nano_usd == 1_000
    assert (closed.hold.state, closed.hold.HasField("lease_until")) == (pb.HOLD_STATE_CLOSED, False)
    limits = (await running.limits(by_key(key))).limits
    assert limits.tokens.remaining == 2_000_000


async def test_a_cost_that_is_absent_keeps_the_amount_and_a_zero_frees_it(running: Running) -> None:
    account_id = await running.new_account()
    _, key = await running.new_key(account_id)
    await running.fund(account_id, 100)
    request = admit_request(by_key(key), amount_nano_usd=100)
    await running.admit(request)
    stub = await inference(running)
    available = []
    for cost in (None, 0):
        ended = pb.FinishedHold(call_id=request.call_id, run_id=request.run_id, cost_nano_usd=cost)
        await stub.Finish(pb.FinishRequest(holds=[ended]), timeout=TIMEOUT_S)
        refused = await running.admit(admit_request(by_key(key), amount_nano_usd=101))
        available.append(refused.refused.available_nano_usd)

    assert available == [0, 100]


async def test_a_renewal_names_what_is_gone_and_recreates_what_was_lost(running: Running) -> None:
    account_id = await running.new_account()
    _, key = await running.new_key(account_id)
    voided = admit_request(by_key(key))
    held = (await running.admit(voided)).admitted
    stub = await inference(running)
    await stub.Void(pb.VoidRequest(call_id=voided.call_id, run_id=voided.run_id), timeout=TIMEOUT_S)
    lost = pb.Hold()
    lost.CopyFrom(held)
    lost.call_id = new_id()

    answer = await stub.Renew(pb.RenewRequest(runner="inference-0/1", holds=[held, lost]), timeout=TIMEOUT_S)

    assert list(answer.gone_call_ids) == [voided.call_id]
    assert running.service.holds.open_holds == 1


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        pytest.param("Finish", pb.FinishRequest(), id="finish nothing"),
        pytest.param("Finish", pb.FinishRequest(holds=[pb.FinishedHold(cost_nano_usd=-1)]), id="a negative cost"),
        pytest.param("Finish", pb.FinishRequest(holds=[pb.FinishedHold(used_tokens=-1)]), id="negative tokens"),
        pytest.param("Extend", pb.ExtendRequest(amount_nano_usd=-1), id="extend below nothing"),
        pytest.param("Renew", pb.RenewRequest(), id="renew without a runner"),
        pytest.param(
            "Renew", pb.RenewRequest(runner="r", holds=[pb.Hold(state=pb.HOLD_STATE_CLOSED)]), id="renew a closed hold"
        ),
        pytest.param("BalanceChanged", pb.BalanceChangedRequest(), id="no change"),
        pytest.param("BalanceChanged", pb.BalanceChangedRequest(changes=[pb.BalanceChange(seq=1)]), id="of nobody"),
        pytest.param(
            "BalanceChanged",
            pb.BalanceChangedRequest(changes=[pb.BalanceChange(account_id="a", seq=1, balance_nano_usd=10**16)]),
            id="a balance beyond 9e15",
        ),
        pytest.param("AwaitOutcome", pb.AwaitOutcomeRequest(call_id="x"), id="await no id"),
    ],
)
async def test_broken_requests_are_refused(running: Running, method: str, request_: Any) -> None:
    caller = CallerClass.METERING if method == "BalanceChanged" else CallerClass.INFERENCE
    stub = (await running.by(caller)).admission

    with pytest.raises(InvalidRequestError):
        await getattr(stub, method)(request_, timeout=TIMEOUT_S)


async def test_awaiting_ends_with_its_deadline(running: Running) -> None:
    _, key = await running.new_key(await running.new_account())
    request = admit_request(by_key(key))
    await running.admit(request)

    with pytest.raises(DeadlineExceededError):
        await (await inference(running)).AwaitOutcome(pb.AwaitOutcomeRequest(call_id=request.call_id), timeout=0.05)


async def test_a_team_awaits_its_own_calls_only(running: Running) -> None:
    account_id = await running.new_account()
    _, key = await running.new_key(account_id)
    request = admit_request(by_key(key))
    await running.admit(request)
    await running.fund(account_id, 0, request.call_id)
    outcome = pb.AwaitOutcomeRequest(call_id=request.call_id)

    own = await (await running.team(account_id)).admission.AwaitOutcome(outcome, timeout=TIMEOUT_S)
    with pytest.raises(NotFoundError):
        await (await running.team(new_id())).admission.AwaitOutcome(outcome, timeout=TIMEOUT_S)

    assert own.hold.call_id == request.call_id


async def test_limits_name_the_payer_and_take_nothing(running: Running) -> None:
    account_id = await running.new_account()
    key_id, key = await running.new_key(account_id)

    answers = [await running.limits(by_key(key)) for _ in range(3)]

    assert {(answer.account_id, answer.key_id) for answer in answers} == {(account_id, key_id)}
    assert {answer.limits.requests.remaining for answer in answers} == {1_000}


async def test_a_team_sees_its_own_limits_without_showing_anything(running: Running) -> None:
    account_id, other_id = await running.new_account(), await running.new_account()
    stub = (await running.team(account_id)).admission

    own = await stub.GetLimits(pb.GetLimitsRequest(), timeout=TIMEOUT_S)
    foreign = pb.GetLimitsRequest(credential=credential_pb2.Credential(account_id=other_id))
    with pytest.raises(ForeignAccountError):
        await stub.GetLimits(foreign, timeout=TIMEOUT_S)

    assert own.account_id == account_id


async def test_a_burst_on_a_key_that_nobody_used_before_is_served(running: Running) -> None:
    _, key = await running.new_key(await running.new_account())

    answers = await asyncio.gather(*(running.admit(admit_request(by_key(key))) for _ in range(200)))

    assert all(answer.HasField("admitted") for answer in answers)
