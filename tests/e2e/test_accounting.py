"""Every call in the ledger: tokens are the provider's, prices the catalogue's, sums agree to the nano-dollar.

Owns the agreement of provider, ledger, balance and usage when nothing goes wrong, and when callers leave.
"""

from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.load import Request, at_once, chat, eventually, messages
from tests.paced import INPUT_NANO_USD, OUTPUT_NANO_USD, Paced, price_nano_usd, reconcile
from tests.plain_grpc import bearer, generate_request, stub
from tests.provider import words


async def test_every_call_is_in_the_ledger_to_the_nano_dollar(paced: Paced) -> None:
    account = paced.account("accounting")
    requests = [
        dialect(f"chunks={number % 7 + 1}", stream=bool(number % 3))
        for number in range(30)
        for dialect in (messages, chat)
    ]

    answers = await at_once(paced.caller(account), requests)

    assert all(answer.ok for answer in answers)
    assert [answer.text for answer in answers] == [words(n % 7 + 1) for n in range(30) for _ in (messages, chat)]
    log, entries = paced.provider.log(), paced.entries(account)
    assert entries.keys() == {answer.call_id for answer in answers}
    reconcile(answers, log, entries)
    cost = sum(price_nano_usd(served) for served in log if served.call_id in entries)
    assert paced.balance_nano_usd(account) == 100 * 10**9 - cost
    total = paced.gateway.mws("usage", "--account", account.account_id)["total"]
    mine = [served for served in log if served.call_id in entries]
    assert total["calls"] == len(answers)
    assert total["charged_nano_usd"] == cost
    assert total["input_tokens"] == sum(served.input_tokens for served in mine)
    assert total["output_tokens"] == sum(served.output_tokens for served in mine)
    assert paced.gateway.mws("ledger", "check", "--account", account.account_id)["violations"] == []


async def test_a_caller_that_leaves_stops_the_upstream_and_pays_what_was_delivered(paced: Paced) -> None:
    account = paced.account("leaver")
    request = messages("chunks=400 pace_ms=20", max_tokens=1000)

    answer = await paced.caller(account).send(Request(request.path, request.body, leave_after=1200))

    served = await eventually(lambda: paced.provider.served(answer.call_id), why="the call in the provider's log")
    await eventually(lambda: paced.provider.served(answer.call_id)[0].left, within_s=2, why="the upstream cancelled")
    (sent,) = paced.provider.served(answer.call_id)
    assert sent.sent_chunks < 120
    (entry,) = (await eventually(lambda: paced.entries(account).get(answer.call_id), why="an entry")) or [{}]
    assert entry["rule"] == "client_left"
    received = len(words(sent.sent_chunks)) / 4
    charged = -entry["amount_nano_usd"]
    assert 0 < charged <= (served[0].input_tokens + 40) * INPUT_NANO_USD + (received + 2) * OUTPUT_NANO_USD


async def test_a_team_that_cancels_stops_the_upstream_too(paced: Paced) -> None:
    account = paced.account("canceller")
    request = generate_request("chunks=400 pace_ms=20", max_tokens=1000)
    async with stub(InferenceServiceStub, paced.gateway.grpc_target("inference")) as inference:
        call = inference.Generate(request, metadata=bearer(account.api_key), timeout=60)
        seen = 0
        async for response in call:
            seen += sum(event.HasField("text_delta") for event in response.events)
            if seen >= 3:
                break
        call.cancel()

    await eventually(lambda: paced.provider.served(request.call_id)[0].left, within_s=2, why="the upstream cancelled")
    (entry,) = await eventually(lambda: paced.entries(account).get(request.call_id), why="an entry")
    assert entry["rule"] == "client_left"
    assert entry["amount_nano_usd"] < 0


async def test_what_fails_before_content_costs_nothing_and_frees_the_hold(paced: Paced) -> None:
    account = paced.account("unlucky", concurrency=1)
    caller = paced.caller(account)

    refused = await caller.send(messages("status=500"))
    after = await caller.send(messages("chunks=1"))

    assert refused.status == 503
    assert after.ok
    cost = price_nano_usd(paced.provider.served(after.call_id)[0])
    assert await eventually(lambda: paced.balance_nano_usd(account) == 100 * 10**9 - cost)


async def test_an_upstream_that_breaks_off_ends_the_stream_in_an_error_and_costs_what_was_delivered(
    paced: Paced,
) -> None:
    account = paced.account("cut")

    answers = await at_once(
        paced.caller(account), [messages("chunks=20 cut_after=5 pace_ms=5"), chat("chunks=20 cut_after=5 pace_ms=5")]
    )

    for answer in answers:
        assert answer.status == 200
        assert not answer.is_terminated
        assert answer.error is not None
        assert answer.text == words(5)
        (entry,) = paced.entries(account)[answer.call_id]
        assert entry["rule"] == "cut"
        assert entry["amount_nano_usd"] < 0


async def test_a_slot_is_free_again_when_its_caller_has_left(paced: Paced) -> None:
    account = paced.account("one-at-a-time", concurrency=1)
    caller = paced.caller(account)
    request = messages("chunks=400 pace_ms=20", max_tokens=1000)

    await caller.send(Request(request.path, request.body, leave_after=600))

    async def admitted() -> bool:
        return (await caller.send(messages("chunks=1"))).ok

    await eventually(admitted, within_s=3, why="the slot of the caller that left")
