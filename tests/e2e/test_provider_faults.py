"""What a provider may do wrong, and what the caller of a whole gateway sees of it, through both SDKs.

Owns the table of faults and the answer that each must come to; `tests/faulty_provider.py` is what fails.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
import yaml
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.faulty_provider import AFTER_CONTENT, ARGUMENTS, BEFORE_CONTENT, FAULTS, TEXT, FaultyProvider
from tests.gateway import Account, Gateway

UPSTREAMS = ("openai", "anthropic")
TOOL = {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}}
_LIMITS = {"first_byte_timeout_s": 0.4, "first_token_timeout_s": 0.4, "idle_timeout_s": 0.4}


def slug(fault: str, upstream: str) -> str:
    return f"{fault.lower().replace(' ', '-')}.{upstream}"


def catalogue(provider: FaultyProvider) -> dict[str, Any]:
    """A profile for each fault and upstream dialect, so that no circuit is broken by another test."""

    def machine(fault: str, upstream: str, name: str, priority: int) -> dict[str, Any]:
        url = provider.url + ("/v1" if upstream == "openai" else "")
        where = {"name": name, "dialect": upstream, "base_url": url, "model": f"{fault}/{name}", "priority": priority}
        return {**where, "options": _LIMITS}

    profiles = {
        slug(fault, upstream): {
            "display_name": fault,
            "context_tokens": 100_000,
            "max_output_tokens": 4_096,
            "price": {"input_nano_usd": 10, "output_nano_usd": 100},
            "upstreams": [machine(fault, upstream, "primary", 0), machine(fault, upstream, "spare", 1)],
        }
        for fault in FAULTS
        for upstream in UPSTREAMS
    }
    alone = profiles[slug("one 500", "openai")]["upstreams"]
    profiles["alone"] = {**profiles[slug("one 500", "openai")], "upstreams": alone[:1]}  # type: ignore[index]
    return {"default_profile": slug("429", "openai"), "profiles": profiles}


@dataclass(slots=True)
class World:
    """A gateway before the faulty provider, and clients of both SDKs."""

    gateway: Gateway
    provider: FaultyProvider
    account: Account

    def clients(self) -> tuple[anthropic.AsyncAnthropic, openai.AsyncOpenAI]:
        url, key = self.gateway.base_url, self.account.api_key
        return (
            anthropic.AsyncAnthropic(api_key=key, base_url=url, max_retries=0),
            openai.AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0),
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("faults")
    with FaultyProvider() as provider:
        file = directory / "catalog.yaml"
        file.write_text(yaml.safe_dump(catalogue(provider)))
        with Gateway(directory / "data", "--catalog", str(file)) as gateway:
            yield World(gateway, provider, gateway.account("faults"))
            assert gateway.mws("ledger", "check")["violations"] == []
            assert "Traceback" not in gateway.logs()


@dataclass(frozen=True, slots=True)
class Came:
    """What a call came to, whatever the dialect."""

    call_id: str
    text: str
    tool_input: Any
    stop: str | None
    has_usage: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One way to call."""

    stream: bool
    offers_tools: bool
    calls_tool: bool = False
    temperature: float = 0

    @property
    def prompt(self) -> str:
        return "use the tool" if self.calls_tool else "count to sixty"


async def by_anthropic(client: anthropic.AsyncAnthropic, model: str, case: Case) -> Came:
    tools: Any = [{"name": "weather", "input_schema": TOOL}] if case.offers_tools else anthropic.omit
    asked: dict[str, Any] = {
        "model": model,
        "max_tokens": 500,
        "messages": [{"role": "user", "content": case.prompt}],
        "tools": tools,
        "extra_body": {"temperature": case.temperature},  # this SDK's types have no field for it any more
    }
    if case.stream:
        async with client.messages.stream(**asked) as stream:
            message = await stream.get_final_message()
            headers = stream.response.headers
    else:
        raw = await client.messages.with_raw_response.create(**asked)
        message, headers = await raw.parse(), raw.headers
    text = "".join(block.text for block in message.content if block.type == "text")
    inputs = [block.input for block in message.content if block.type == "tool_use"]
    usage = message.usage.input_tokens > 0 and message.usage.output_tokens > 0
    return Came(headers["request-id"], text, inputs[0] if inputs else None, message.stop_reason, usage)


async def by_openai(client: openai.AsyncOpenAI, model: str, case: Case) -> Came:
    function: Any = {"type": "function", "function": {"name": "weather", "parameters": TOOL}}
    asked: dict[str, Any] = {
        "model": model,
        "temperature": case.temperature,
        "max_tokens": 500,
        "messages": [{"role": "user", "content": case.prompt}],
        "tools": [function] if case.offers_tools else openai.omit,
    }
    create = client.chat.completions.with_raw_response.create
    if case.stream:
        state: Any = ChatCompletionStreamState()
        raw = await create(**asked, stream=True, stream_options={"include_usage": True})
        async for chunk in raw.parse():
            state.handle_chunk(chunk)
        completion: Any = state.get_final_completion()
    else:
        raw = await create(**asked)
        completion = raw.parse()
    choice = completion.choices[0]
    calls = choice.message.tool_calls or []
    inputs = [json.loads(call.function.arguments) for call in calls]
    usage = completion.usage is not None and completion.usage.prompt_tokens > 0
    text = choice.message.content or ""
    return Came(raw.headers["x-request-id"], text, inputs[0] if inputs else None, choice.finish_reason, usage)


TYPED = (anthropic.APIError, openai.APIError)


async def every_way(world: World, model: str, cases: list[Case]) -> list[Came | BaseException]:
    """One call of each case in each public dialect, at once."""
    of_anthropic, of_openai = world.clients()
    async with of_anthropic, of_openai:
        calls = [by_anthropic(of_anthropic, model, case) for case in cases]
        calls += [by_openai(of_openai, model, case) for case in cases]
        return await asyncio.gather(*calls, return_exceptions=True)


COLD = [Case(stream, tools) for stream in (True, False) for tools in (True, False)]
WARM = [Case(stream, tools, temperature=1) for stream in (True, False) for tools in (True, False)]


def whole(came: Came | BaseException) -> Came:
    assert isinstance(came, Came), came
    assert came.text == TEXT
    assert came.stop in {"end_turn", "stop"}
    assert came.has_usage
    return came


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "content filter"])
async def test_a_fault_of_a_provider_is_not_seen(world: World, fault: str, upstream: str) -> None:
    for came in map(whole, await every_way(world, slug(fault, upstream), COLD)):
        asked = world.provider.asked(came.call_id)
        assert asked.count("primary") <= 2, asked  # none at all once its circuit is broken
        assert len(asked) <= 4, asked


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("fault", BEFORE_CONTENT)
async def test_before_content_the_temperature_does_not_matter(world: World, fault: str, upstream: str) -> None:
    for came in await every_way(world, slug(fault, upstream), WARM):
        whole(came)


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("fault", AFTER_CONTENT)
async def test_a_warm_answer_that_breaks_off_is_whole_or_a_typed_error(world: World, fault: str, upstream: str) -> None:
    for came in await every_way(world, slug(fault, upstream), WARM):
        assert isinstance(came, TYPED) or came.text == TEXT  # type: ignore[union-attr]


@pytest.mark.parametrize("upstream", UPSTREAMS)
async def test_a_refusal_stays_one(world: World, upstream: str) -> None:
    for came in await every_way(world, slug("content filter", upstream), COLD):
        if isinstance(came, openai.ContentFilterFinishReasonError):  # what this SDK makes of it in a stream
            continue
        assert isinstance(came, Came), came
        assert came.stop in {"refusal", "content_filter"}
        assert world.provider.asked(came.call_id) == ["primary"]


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("fault", AFTER_CONTENT)
async def test_a_cut_inside_tool_arguments_is_an_error_and_never_half_a_call(
    world: World, fault: str, upstream: str
) -> None:
    cases = [Case(stream=True, offers_tools=True, calls_tool=True)]
    for came in await every_way(world, slug(fault, upstream), cases):
        if isinstance(came, Came):  # once the circuit of the primary is broken
            assert world.provider.asked(came.call_id) == ["spare"]
            assert came.tool_input == json.loads(ARGUMENTS)
        else:
            assert isinstance(came, TYPED), came


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("fault", FAULTS[:8])
async def test_tool_calls_survive_failover(world: World, fault: str, upstream: str) -> None:
    cases = [Case(stream, offers_tools=True, calls_tool=True) for stream in (True, False)]
    for came in await every_way(world, slug(fault, upstream), cases):
        assert isinstance(came, Came), came
        assert came.tool_input == json.loads(ARGUMENTS)


async def test_an_only_upstream_is_tried_again_after_a_hiccup(world: World) -> None:
    for came in map(whole, await every_way(world, "alone", COLD)):
        assert 1 <= len(world.provider.asked(came.call_id)) <= 3


@pytest.mark.parametrize("upstream", UPSTREAMS)
async def test_a_failover_is_paid_once(world: World, upstream: str) -> None:
    payer = world.gateway.account("payer")
    own = World(world.gateway, world.provider, payer)
    came = await every_way(own, slug("503", upstream), COLD)
    for one in came:
        whole(one)

    usage = world.gateway.mws("usage", "--account", payer.account_id)
    assert json.dumps(usage)  # the shape is the billing suite's; here the sum of the balance is what counts
    balance = world.gateway.mws("balance", "--account", payer.account_id)
    spent = 100 * 10**9 - int(balance["balance_nano_usd"])
    assert spent == len(came) * (11 * 10 + 60 * 100)
