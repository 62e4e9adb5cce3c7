"""`Idempotency-Key` through a whole gateway, in both dialects: one provider call and one posting, come what may.

Owns what a client with a key sees; the provider's log and the ledger say what really happened.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.gateway import Account
from tests.load import Request, chat, messages
from tests.paced import Paced

DIALECTS = [pytest.param(messages, id="anthropic"), pytest.param(chat, id="openai")]
FORMS = [pytest.param(True, id="streaming"), pytest.param(False, id="in one piece")]


@pytest.fixture
def account(paced: Paced) -> Account:
    return paced.gateway.account("retries")


def sent(request: Request, account: Account, key: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {account.api_key}", "idempotency-key": key, "content-type": "application/json"}
    return {"url": request.path, "content": request.body, "headers": headers}


def client_of(paced: Paced) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=paced.gateway.base_url, timeout=30)


def spent(paced: Paced, account: Account) -> int:
    balance = paced.gateway.mws("balance", "--account", account.account_id)
    return 100 * 10**9 - int(balance["balance_nano_usd"])


@pytest.mark.parametrize("stream", FORMS)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_retry_gets_the_same_answer_and_pays_nothing(
    paced: Paced, account: Account, dialect: Callable[..., Request], stream: bool
) -> None:
    request = dialect("chunks=6", stream=stream)
    async with client_of(paced) as client:
        first = await client.post(**sent(request, account, "once"))
        cost = spent(paced, account)
        again = await client.post(**sent(request, account, "once"))

    assert (first.status_code, again.status_code) == (200, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    if not stream:
        assert again.json() == first.json()
    assert text_of(again.text) == text_of(first.text) != ""
    assert len(paced.provider.served(first.headers["request-id"])) == 1
    assert paced.provider.served(again.headers["request-id"]) == []
    assert spent(paced, account) == cost


def text_of(body: str) -> str:
    """All text of an answer, in whichever dialect and form."""
    said = ""
    for line in body.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            said += event.get("delta", {}).get("text", "")
            said += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", []))
    if said or body.startswith(("event:", "data:")):
        return said
    whole = json.loads(body)
    return str(whole["content"][0]["text"] if "content" in whole else whole["choices"][0]["message"]["content"])


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_client_that_hangs_up_and_retries_gets_the_whole_answer(
    paced: Paced, account: Account, dialect: Callable[..., Request]
) -> None:
    request = dialect("chunks=30 pace_ms=10", stream=True)
    async with client_of(paced) as client:
        async with client.stream("POST", **sent(request, account, "hung up")) as left:
            call_id = left.headers["request-id"]
            async for _ in left.aiter_bytes():
                break
        again = await client.post(**sent(request, account, "hung up"))

    assert again.status_code == 200
    assert text_of(again.text).split() == [f"w{number}" for number in range(30)]
    (served,) = paced.provider.served(call_id)
    assert served.finished
    assert paced.provider.served(again.headers["request-id"]) == []


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_ten_retries_at_once_are_one_call(
    paced: Paced, account: Account, dialect: Callable[..., Request]
) -> None:
    request = dialect("chunks=5 pace_ms=20", stream=False)
    async with client_of(paced) as client:
        replies = await asyncio.gather(*(client.post(**sent(request, account, "ten")) for _ in range(10)))

    assert {reply.status_code for reply in replies} == {200}
    assert len({json.dumps(reply.json()) for reply in replies}) == 1
    assert sum(len(paced.provider.served(reply.headers["request-id"])) for reply in replies) == 1


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_another_body_under_the_key_is_409_and_not_to_be_retried(
    paced: Paced, account: Account, dialect: Callable[..., Request]
) -> None:
    async with client_of(paced) as client:
        await client.post(**sent(dialect("chunks=2", stream=False), account, "taken"))
        other = await client.post(**sent(dialect("chunks=3", stream=False), account, "taken"))

    assert other.status_code == 409
    assert other.headers["x-should-retry"] == "false"
    assert paced.provider.served(other.headers["request-id"]) == []


async def test_accounts_do_not_share_keys(paced: Paced, account: Account) -> None:
    stranger = paced.gateway.account("stranger")
    request = chat("chunks=2", stream=False)
    async with client_of(paced) as client:
        mine = await client.post(**sent(request, account, "shared"))
        theirs = await client.post(**sent(request, stranger, "shared"))

    assert "idempotent-replayed" not in theirs.headers
    assert mine.json()["id"] != theirs.json()["id"]
