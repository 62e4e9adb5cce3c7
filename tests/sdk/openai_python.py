"""What an application does with the OpenAI SDK for Python, any version: run as a program against a gateway.

Owns the scenario; it imports nothing of ours, so that it runs in an environment that has only the SDK.
Arguments: base URL, API key, key of an account without credit, key of an account with one request per minute.
"""

import json
import sys
from typing import Any

import openai

BASE_URL, KEY, BROKE_KEY, SLOW_KEY = sys.argv[1:5]
SIX = [f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK = 'call get_weather {"city": "Paris"}\ncall get_weather {"city": "Rome"}'


def client(key: str = KEY) -> Any:
    return openai.OpenAI(base_url=BASE_URL, api_key=key, max_retries=0, timeout=30)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def check_headers(headers: Any) -> None:
    missing = [name for name in SIX if not headers.get(name)]
    assert not missing, missing
    assert headers.get("x-request-id"), "no x-request-id"


def create(key: str = KEY, **options: Any) -> Any:
    return client(key).chat.completions.create(**{"model": "gpt-4o", "messages": user("Hello"), **options})


def text() -> None:
    raw = client().chat.completions.with_raw_response.create(model="gpt-4o", messages=user("Hello"))
    check_headers(raw.headers)
    reply = raw.parse()
    choice = reply.choices[0]
    assert (reply.model, choice.finish_reason, choice.message.role) == ("gpt-4o", "stop", "assistant"), reply
    assert choice.message.content
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
    assert create(max_completion_tokens=4).choices[0].finish_reason == "length"


def streaming() -> None:
    whole = create(messages=user("Tell me of rivers"))
    raw = client().chat.completions.with_raw_response.create(
        model="gpt-4o", messages=user("Tell me of rivers"), stream=True, stream_options={"include_usage": True}
    )
    check_headers(raw.headers)
    chunks = list(raw.parse())
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert reasons == [whole.choices[0].finish_reason], reasons
    plain = list(create(messages=user("Tell me of rivers"), stream=True))
    assert all(chunk.choices for chunk in plain), "a usage chunk that nobody asked for"


def ask(messages: list[Any], *, stream: bool) -> Any:
    options: dict[str, Any] = {"model": "dragon", "messages": messages, "tools": [WEATHER]}
    if not stream:
        return create(**options).choices[0]
    streaming_client = client()
    helper = getattr(streaming_client.chat.completions, "stream", None) or streaming_client.beta.chat.completions.stream
    with helper(**options) as events:
        return events.get_final_completion().choices[0]


def tool_loop() -> None:
    for stream in (False, True):
        first = ask(user(ASK), stream=stream)
        calls = first.message.tool_calls
        assert first.finish_reason == "tool_calls", first
        inputs = [json.loads(call.function.arguments) for call in calls]
        assert inputs == [{"city": "Paris"}, {"city": "Rome"}], calls
        assert len({call.id for call in calls}) == 2
        history = [
            *user(ASK),
            {
                "role": "assistant",
                "content": first.message.content,
                "tool_calls": [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.function.name, "arguments": call.function.arguments},
                    }
                    for call in calls
                ],
            },
            *(
                {"role": "tool", "tool_call_id": call.id, "content": f"21 degrees in {city['city']}"}
                for call, city in zip(calls, inputs, strict=True)
            ),
        ]
        second = ask(history, stream=stream)
        assert second.finish_reason == "stop", second
        assert "21 degrees in Rome" in second.message.content, second


def raises(kind: Any, status: int, call: Any) -> Any:
    try:
        call()
    except kind as error:
        assert error.status_code == status, error
        return error
    raise AssertionError(f"expected {kind.__name__}")


def errors() -> None:
    raises(openai.AuthenticationError, 401, lambda: create("mws_live_wrong"))
    raises(openai.AuthenticationError, 401, lambda: create("mws_live_wrong", messages=[]))
    error = raises(openai.BadRequestError, 400, lambda: create(messages=[]))
    check_headers(error.response.headers)
    assert error.type == "invalid_request_error" and error.param == "messages", error.body
    broken: dict[str, Any] = {"type": "function", "function": {"name": "x", "parameters": "not a schema"}}
    raises(openai.BadRequestError, 400, lambda: create(tools=[broken]))
    for stream in (False, True):
        error = raises(openai.APIStatusError, 402, lambda stream=stream: create(BROKE_KEY, stream=stream))
        assert error.code == "insufficient_quota", error.body
    refused = []
    for _ in range(3):
        try:
            create(SLOW_KEY)
        except openai.RateLimitError as error:
            check_headers(error.response.headers)
            assert error.code == "rate_limit_exceeded" and int(error.response.headers["retry-after"]) >= 1
            refused.append(error)
    assert len(refused) >= 2, refused


def models() -> None:
    raw = client().models.with_raw_response.list()
    check_headers(raw.headers)
    listed = [model.id for model in raw.parse()]
    assert len(listed) == 11 and listed[0] == "dragon", listed
    assert client().models.retrieve("dragon-seer").owned_by == "mws"
    raises(openai.NotFoundError, 404, lambda: client().models.retrieve("no-such-model"))


def embeddings() -> None:
    raw = client().embeddings.with_raw_response.create(model="text-embedding-3-small", input=["rivers", "lakes"])
    check_headers(raw.headers)
    unasked = raw.parse()  # the SDK asks for base64 and decodes it
    numbers = client().embeddings.create(model="e", input=["rivers", "lakes"], encoding_format="float")
    assert [item.index for item in unasked.data] == [0, 1] and unasked.model == "text-embedding-3-small", unasked
    assert [list(item.embedding) for item in unasked.data] == [item.embedding for item in numbers.data]
    assert unasked.usage.prompt_tokens == unasked.usage.total_tokens > 0
    tokens = client().embeddings.create(model="e", input=[[1, 2, 3], [4]])
    assert len(tokens.data) == 2 and tokens.usage.prompt_tokens == 4, tokens.usage
    short = client().embeddings.create(model="e", input="rivers", dimensions=8)
    assert len(short.data[0].embedding) == 8, short
    error = raises(openai.BadRequestError, 400, lambda: client().embeddings.create(model="e", input=""))
    assert error.param == "input", error.body


def rerank() -> None:
    body = {"model": "r", "query": "rivers", "documents": ["of lakes", "of rivers"], "return_documents": True}
    ranked: Any = client().post("/rerank", body=body, cast_to=object)
    assert [result["index"] for result in ranked["results"]] == [1, 0], ranked
    assert ranked["results"][0]["document"] == {"text": "of rivers"}, ranked
    raises(openai.BadRequestError, 400, lambda: client().post("/rerank", body={**body, "top_n": 0}, cast_to=object))


def whatever_is_documented() -> None:
    for extra in ({"logprobs": True, "top_logprobs": 2}, {"service_tier": "auto"}, {"store": True, "user": "u"}):
        assert create(**extra).choices[0].logprobs is None
    reply = create(n=1, logit_bias={"50256": -100}, extra_body={"min_p": 0.1, "verbosity": "low"})
    assert reply.choices[0].message.refusal is None and reply.service_tier == "default", reply
    error = raises(openai.BadRequestError, 400, lambda: create(n=2))
    assert (error.param, error.code) == ("n", "unsupported_value"), error.body


if __name__ == "__main__":
    for step in (text, streaming, tool_loop, errors, models, embeddings, rerank, whatever_is_documented):
        step()
    print(json.dumps({"sdk": "openai", "version": openai.__version__, "base_url": BASE_URL, "ok": True}))
