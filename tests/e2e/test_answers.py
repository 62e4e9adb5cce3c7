"""Both dialects, streaming and not, through all four processes with the simulated upstream.

Owns what every answer and every refusal looks like to an HTTP client; the SDK suites prove the same to the SDKs.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway import Account, Gateway
from tests.load import LIMIT_HEADERS, Answer, Caller, Request, chat, messages

PROMPT = "Tell me why streams must not lie."
DIALECTS = [pytest.param(messages, id="anthropic"), pytest.param(chat, id="openai")]
FORMS = [pytest.param(True, id="streaming"), pytest.param(False, id="in one piece")]


@pytest.fixture(scope="module")
def account(gateway: Gateway) -> Account:
    return gateway.account("answers")


@pytest.fixture
def caller(gateway: Gateway, account: Account) -> Caller:
    return Caller(gateway.base_url, account.api_key)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_stream_folds_to_the_answer_in_one_piece(caller: Caller, dialect: Callable[..., Request]) -> None:
    streamed = await caller.send(dialect(PROMPT, stream=True))
    whole = await caller.send(dialect(PROMPT, stream=False))

    assert streamed.ok
    assert whole.ok
    assert streamed.text == whole.text != ""
    assert streamed.usage == whole.usage
    assert streamed.call_id != whole.call_id


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", FORMS)
async def test_an_answer_stops_at_max_tokens(caller: Caller, dialect: Callable[..., Request], stream: bool) -> None:
    answer = await caller.send(dialect(PROMPT, stream=stream, max_tokens=3))

    assert answer.ok
    assert answer.usage[1] == 3


@pytest.mark.parametrize("name", ["claude-sonnet-4-6", "gpt-4o", "dragon-flash"])
async def test_the_answer_names_the_model_that_was_asked_for(caller: Caller, name: str) -> None:
    answer = await caller.send(messages(PROMPT, stream=False, model=name))

    assert answer.json["model"] == name
    assert answer.headers["x-mws-profile"] == ("dragon-flash" if name == "dragon-flash" else "dragon")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/v1/models", "/v1/models/dragon", "/v1/v1/models/dragon"])
async def test_models_carry_the_six_headers_under_both_paths(caller: Caller, path: str) -> None:
    assert (await caller.get(path)).status == 200


@pytest.mark.parametrize("prefix", ["/v1", "/v1/v1"])
async def test_count_tokens_answers_under_both_paths(caller: Caller, prefix: str) -> None:
    body = {"model": "dragon", "messages": [{"role": "user", "content": "x" * 400}]}

    answer = await caller.send(Request(f"{prefix}/messages/count_tokens", json.dumps(body).encode()))

    assert answer.status == 200
    assert 100 <= answer.json["input_tokens"] <= 110


async def test_a_doubled_prefix_streams_as_well(caller: Caller) -> None:
    answer = await caller.send(Request("/v1/v1/messages", messages(PROMPT).body))

    assert answer.ok
    assert answer.is_stream


MISSING_MAX_TOKENS = Request("/v1/messages", b'{"model":"dragon","messages":[{"role":"user","content":"x"}]}')
BROKEN_TOOL: dict[str, Any] = {"tools": [{"name": "f", "input_schema": "no schema"}]}
INVALID = [
    pytest.param(MISSING_MAX_TOKENS, id="no max_tokens"),
    pytest.param(messages(PROMPT, **BROKEN_TOOL), id="malformed tool schema"),
    pytest.param(messages(PROMPT, messages="no list"), id="messages of the wrong type"),
    pytest.param(chat(PROMPT, messages=[]), id="no messages"),
    pytest.param(Request("/v1/messages", b"{"), id="no JSON"),
    pytest.param(Request("/v1/chat/completions", b"[]"), id="no object"),
]


@pytest.mark.parametrize("request_", INVALID)
async def test_a_bad_body_is_400_and_still_tells_the_limits(caller: Caller, request_: Request) -> None:
    answer = await caller.send(request_)

    assert answer.status == 400
    assert set(LIMIT_HEADERS) <= answer.headers.keys()


@pytest.mark.parametrize("request_", [*INVALID, pytest.param(messages(PROMPT), id="a good body")])
async def test_a_wrong_key_wins_over_a_bad_body(gateway: Gateway, request_: Request) -> None:
    stranger = Caller(gateway.base_url, "mws_live_wrong")

    answer = await stranger.send(request_)

    assert answer.status == 401
    assert _kind(answer) in ("authentication_error", "invalid_request_error")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", FORMS)
async def test_an_empty_balance_is_402(gateway: Gateway, dialect: Callable[..., Request], stream: bool) -> None:
    broke = Caller(gateway.base_url, gateway.account("broke", credit_usd=None).api_key)

    answer = await broke.send(dialect(PROMPT, stream=stream))

    assert answer.status == 402
    assert _kind(answer) in ("billing_error", "insufficient_quota")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", FORMS)
async def test_an_exceeded_limit_is_429_with_all_headers(
    gateway: Gateway, dialect: Callable[..., Request], stream: bool
) -> None:
    slow = Caller(gateway.base_url, gateway.account("slow", rpm=1).api_key)

    first, second = await slow.send(dialect(PROMPT, stream=stream)), await slow.send(dialect(PROMPT, stream=stream))

    assert (first.status, second.status) == (200, 429)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(second.headers["retry-after"]) > 50


async def test_a_revoked_key_is_refused_at_its_next_use(gateway: Gateway) -> None:
    account = gateway.account("revoked")
    caller = Caller(gateway.base_url, account.api_key)
    assert (await caller.send(messages(PROMPT))).ok
    (key,) = gateway.mws("key", "list", "--account", account.account_id)["keys"]

    gateway.mws("key", "revoke", "--key", key["key_id"])

    assert (await caller.send(messages(PROMPT))).status == 401


def _kind(answer: Answer) -> str:
    assert answer.error is not None
    return str(answer.error["type"])
