"""What an application does with the Anthropic SDK for Python, any version: run as a program against a gateway.

Owns the scenario; it imports nothing of ours, so that it runs in an environment that has only the SDK.
Arguments: base URL, API key, key of an account without credit, key of an account with one request per minute.
"""

import json
import sys
from typing import Any

import anthropic

BASE_URL, KEY, BROKE_KEY, SLOW_KEY = sys.argv[1:5]
SIX = [f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")]
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASK = 'call get_weather {"city": "Paris"}\ncall get_weather {"city": "Rome"}'


def client(key: str = KEY) -> Any:
    return anthropic.Anthropic(base_url=BASE_URL, api_key=key, max_retries=0, timeout=30)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def check_headers(headers: Any) -> None:
    missing = [name for name in SIX if not headers.get(name)]
    assert not missing, missing
    assert headers.get("request-id"), "no request-id"


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def text() -> None:
    raw = client().messages.with_raw_response.create(model="claude-sonnet-4-6", max_tokens=200, messages=user("Hello"))
    check_headers(raw.headers)
    message = raw.parse()
    assert (message.model, message.stop_reason, message.role) == ("claude-sonnet-4-6", "end_turn", "assistant"), message
    assert text_of(message)
    assert message.usage.input_tokens > 0 and message.usage.output_tokens > 0
    cut = client().messages.create(model="dragon", max_tokens=4, messages=user("Hello"))
    assert cut.stop_reason == "max_tokens", cut


def streaming() -> None:
    whole = client().messages.create(model="dragon", max_tokens=500, messages=user("Tell me of rivers"))
    with client().messages.stream(model="dragon", max_tokens=500, messages=user("Tell me of rivers")) as stream:
        check_headers(stream.response.headers)
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 3, pieces
    assert "".join(pieces) == text_of(final) == text_of(whole)
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def ask(messages: list[Any], *, stream: bool) -> Any:
    options: dict[str, Any] = {"model": "dragon", "max_tokens": 500, "messages": messages, "tools": [WEATHER]}
    if not stream:
        return client().messages.create(**options)
    with client().messages.stream(**options) as events:
        return events.get_final_message()


def tool_loop() -> None:
    for stream in (False, True):
        first = ask(user(ASK), stream=stream)
        calls = [block for block in first.content if block.type == "tool_use"]
        assert first.stop_reason == "tool_use", first
        assert [call.input for call in calls] == [{"city": "Paris"}, {"city": "Rome"}], calls
        assert len({call.id for call in calls}) == 2
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": f"21 degrees in {call.input['city']}"}
            for call in calls
        ]
        history = [*user(ASK), {"role": "assistant", "content": [b.model_dump() for b in first.content]}]
        second = ask([*history, {"role": "user", "content": results}], stream=stream)
        assert second.stop_reason == "end_turn", second
        assert "21 degrees in Rome" in text_of(second), second


def raises(kind: Any, status: int, call: Any) -> Any:
    try:
        call()
    except kind as error:
        assert error.status_code == status, error
        return error
    raise AssertionError(f"expected {kind.__name__}")


def post(key: str, body: dict[str, Any]) -> Any:
    return client(key).post("/v1/messages", cast_to=object, body=body)


def errors() -> None:
    bare = {"model": "dragon", "messages": user("x")}
    raises(anthropic.AuthenticationError, 401, lambda: post("mws_live_wrong", {**bare, "max_tokens": 9}))
    raises(anthropic.AuthenticationError, 401, lambda: post("mws_live_wrong", bare))
    error = raises(anthropic.BadRequestError, 400, lambda: post(KEY, bare))
    check_headers(error.response.headers)
    assert error.body["error"]["type"] == "invalid_request_error", error.body
    assert "max_tokens" in error.body["error"]["message"], error.body
    broken = {**WEATHER, "input_schema": "not a schema"}
    raises(anthropic.BadRequestError, 400, lambda: post(KEY, {**bare, "max_tokens": 9, "tools": [broken]}))
    for stream in (False, True):
        body = {**bare, "max_tokens": 9, "stream": stream}
        error = raises(anthropic.APIStatusError, 402, lambda body=body: post(BROKE_KEY, body))
        assert error.body["error"]["type"] == "billing_error", error.body
    refused = []
    for _ in range(3):
        try:
            post(SLOW_KEY, {**bare, "max_tokens": 9})
        except anthropic.RateLimitError as error:
            check_headers(error.response.headers)
            assert int(error.response.headers["retry-after"]) >= 1
            refused.append(error)
    assert len(refused) >= 2, refused


def models() -> None:
    raw = client().models.with_raw_response.list(limit=1000)
    check_headers(raw.headers)
    listed = [model.id for model in raw.parse()]
    assert len(listed) == 11 and listed[0] == "dragon", listed
    assert client().models.retrieve("dragon-seer").display_name
    raw = client().messages.with_raw_response.count_tokens(model="dragon", messages=user("12345678"))
    check_headers(raw.headers)
    assert raw.parse().input_tokens == 2, raw.parse()


if __name__ == "__main__":
    for step in (text, streaming, tool_loop, errors, models):
        step()
    print(json.dumps({"sdk": "anthropic", "version": anthropic.__version__, "base_url": BASE_URL, "ok": True}))
