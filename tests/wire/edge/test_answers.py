"""The running edge as SDK users and bare HTTP clients see it: answers, models, counts, other routes."""

import gzip
import json
from collections.abc import AsyncIterator

import openai
import pytest
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as inference_pb

from services.runtime.calls import Call
from services.runtime.telemetry import current_traceparent
from tests.wire.edge.conftest import StartEdge
from tests.wire.edge.running_edge import GOOD_KEY, SIX, RunningEdge, admitted, finished, hello, started, text

USER = [{"role": "user", "content": "hi"}]
MESSAGES = {"model": "m", "max_tokens": 9, "messages": USER}
CHAT = {"model": "m", "messages": USER}


async def test_a_message_and_its_stream_fold_to_the_same(edge: RunningEdge) -> None:
    async with edge.anthropic() as client:
        whole = await client.messages.create(model="claude-x", max_tokens=9, messages=USER)  # type: ignore[arg-type]
        async with client.messages.stream(model="claude-x", max_tokens=9, messages=USER) as stream:  # type: ignore[arg-type]
            folded = await stream.get_final_message()

    left, right = whole.model_dump(exclude_none=True), folded.model_dump(exclude_none=True)
    left.pop("id"), right.pop("id"), right["content"][0].pop("parsed_output", None)
    assert left == right
    assert (whole.content[0].type, whole.model, whole.usage.output_tokens) == ("text", "claude-x", 5)


async def test_a_completion_and_its_stream_fold_to_the_same(edge: RunningEdge) -> None:
    async with edge.openai() as client:
        whole = await client.chat.completions.create(model="gpt-4o", messages=USER)  # type: ignore[arg-type]
        async with client.chat.completions.stream(model="gpt-4o", messages=USER) as stream:  # type: ignore[arg-type]
            folded = await stream.get_final_completion()

    assert whole.choices[0].message.content == "Hello" == folded.choices[0].message.content
    assert (whole.model, folded.model) == ("gpt-4o", "gpt-4o")


async def test_the_request_reaches_inference_with_the_key_s_digest_only(edge: RunningEdge) -> None:
    async with edge.http() as client:
        reply = await client.post("/v1/messages", json=MESSAGES, headers={"idempotency-key": "abc"})

    asked = edge.inference.asked[0]
    assert asked.call_id == reply.headers["request-id"]
    assert len(asked.credential.api_key_sha256) == 32
    assert (asked.model, asked.dialect, asked.idempotency_key) == ("m", pb.DIALECT_ANTHROPIC, "abc")
    assert len(asked.body_sha256) == 32
    assert GOOD_KEY.encode() not in asked.SerializeToString() + edge.log.getvalue()


async def test_every_answer_carries_ids_limits_and_profile(edge: RunningEdge) -> None:
    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        yield [admitted(request, dropped_images=2), started(), text("x"), finished()]

    edge.inference.script = script
    async with edge.http() as client:
        for stream in (False, True):
            reply = await client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
            assert [reply.headers[name] for name in SIX] == ["5000", "160000", "4999", "159972", "12ms", "1m12.5s"]
            assert (reply.headers["x-mws-profile"], reply.headers["x-mws-dropped"]) == ("dragon", "images=2")
            assert reply.headers["request-id"] == reply.headers["x-request-id"]
        echoed = await client.post("/v1/messages", json=MESSAGES, headers={"x-request-id": "mine"})

    assert echoed.headers["x-request-id"] == "mine" != echoed.headers["request-id"]


async def test_a_stream_has_the_headers_of_a_stream(edge: RunningEdge) -> None:
    async with edge.http() as client:
        reply = await client.post("/v1/messages?beta=true", json=MESSAGES | {"stream": True})

    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (reply.headers["cache-control"], reply.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert reply.text.endswith('data: {"type":"message_stop"}\n\n')


@pytest.mark.parametrize("prefix", ["/v1", "/v1/v1"])
async def test_doubled_versions_are_served(edge: RunningEdge, prefix: str) -> None:
    async with edge.http() as client:
        for path, body in (("messages", MESSAGES), ("messages/count_tokens", MESSAGES), ("chat/completions", CHAT)):
            assert (await client.post(f"{prefix}/{path}?beta=true", json=body)).status_code == 200
        for path in ("models", "models/dragon"):
            assert (await client.get(f"{prefix}/{path}")).status_code == 200


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "X-API-Key"])
async def test_both_ways_to_send_a_key_work_everywhere(edge: RunningEdge, name: str) -> None:
    value = f"bearer {GOOD_KEY}" if name == "authorization" else GOOD_KEY
    async with edge.http(None) as client:
        for path, body in (("messages", MESSAGES), ("chat/completions", CHAT)):
            assert (await client.post(f"/v1/{path}", json=body, headers={name: value})).status_code == 200


async def test_gzipped_bodies_are_read(edge: RunningEdge) -> None:
    body = gzip.compress(json.dumps(CHAT).encode())
    async with edge.http() as client:
        reply = await client.post("/v1/chat/completions", content=body, headers={"content-encoding": "gzip"})

    assert reply.status_code == 200


async def test_models_satisfy_both_sdks(edge: RunningEdge) -> None:
    async with edge.anthropic() as left, edge.openai() as right:
        theirs = [model async for model in left.models.list(limit=1)]
        ours = [model async for model in right.models.list()]
        one = await left.models.retrieve("dragon")
        alias = await right.models.retrieve("claude-sonnet-4-6")
        with pytest.raises(openai.NotFoundError) as missing:
            await right.models.retrieve("nope")

    assert [model.id for model in theirs] == [model.id for model in ours] == ["dragon", "dragon-nova"]
    assert (one.display_name, alias.id, alias.owned_by) == ("Dragon", "claude-sonnet-4-6", "mws")
    assert "nope" in missing.value.message


async def test_tokens_are_counted(edge: RunningEdge) -> None:
    async with edge.anthropic() as client:
        count = await client.messages.count_tokens(model="m", messages=USER)  # type: ignore[arg-type]
    async with edge.http() as bare:
        body = (await bare.post("/v1/messages/count_tokens", json=MESSAGES)).content

    assert (count.input_tokens, body) == (4, b'{"input_tokens":4}')


async def test_no_tokens_are_generated_without_asking_anyone_to(edge: RunningEdge) -> None:
    async with edge.http() as client:
        whole = (await client.post("/v1/messages", json=MESSAGES | {"max_tokens": 0})).json()
        stream = await client.post("/v1/messages", json=MESSAGES | {"max_tokens": 0, "stream": True})

    assert (whole["content"], whole["stop_reason"], whole["usage"]["output_tokens"]) == ([], "max_tokens", 0)
    assert stream.text.endswith('data: {"type":"message_stop"}\n\n')
    assert edge.inference.asked == []


async def test_embeddings_come_as_numbers_or_as_base64(edge: RunningEdge) -> None:
    async with edge.openai() as client:
        default = await client.embeddings.create(model="e", input=["a", "b"])
        numbers = await client.embeddings.create(model="e", input=[1, 2, 3], encoding_format="float", dimensions=2)

    assert [item.embedding for item in default.data] == [[1.0, 2.0], [1.0, 2.0]]
    assert (numbers.data[0].embedding, len(numbers.data), numbers.usage.total_tokens) == ([1.0, 2.0], 1, 3)


async def test_rerank_answers_in_the_common_shape(edge: RunningEdge) -> None:
    body = {"model": "r", "query": "q", "documents": ["a", {"text": "b"}, {"x": 1}], "top_n": 2}
    async with edge.http() as client:
        for path in ("/v1/rerank", "/v2/rerank", "/v1/v2/rerank"):
            reply = (await client.post(path, json=body | {"return_documents": True})).json()
            assert [(r["index"], r["document"]["text"]) for r in reply["results"]] == [(0, "a"), (1, "b")]
            assert reply["meta"]["billed_units"] == {"search_units": 1}
        bad = (await client.post("/v1/rerank", json=body | {"documents": []})).json()

    assert bad["message"] == bad["error"]["message"]


async def test_operators_find_what_they_look_for(edge: RunningEdge) -> None:
    edge.readiness.set("inference", False)
    async with edge.http(None) as client:
        assert (await client.get("/healthz")).text == "ok\n"
        assert ((await client.get("/readyz")).status_code, (await client.head("/")).status_code) == (503, 200)
        edge.readiness.set("inference", True)
        assert (await client.get("/readyz")).status_code == 200
        await client.get("/v1/nothing")
        assert (
            'mws_edge_request_duration_seconds_count{route="unknown",status="404"} 1.0'
            in (await client.get("/metrics")).text
        )
        document = (await client.get("/openapi.json")).json()
        assert "/docs" in (await client.get("/")).text
        assert (await client.get("/docs")).status_code == 200

    assert {"/v1/messages", "/v1/chat/completions", "/v1/models/{id}", "/v1/embeddings"} <= set(document["paths"])


async def test_the_log_has_one_line_per_request(edge: RunningEdge) -> None:
    edge.inference.script = hello
    async with edge.http() as client:
        await client.post("/v1/messages", json=MESSAGES | {"stream": True})
    edge.flush_log()

    lines = [json.loads(line) for line in edge.log.getvalue().splitlines()]
    (line,) = [line for line in lines if line["event"] == "http.finished"]
    assert {name: line[name] for name in ("method", "route", "status", "account_id", "profile", "output_tokens")} == {
        "method": "POST",
        "route": "/v1/messages",
        "status": 200,
        "account_id": "acct",
        "profile": "dragon",
        "output_tokens": 5,
    }


async def test_large_bodies_pass_one_after_another(start_edge: StartEdge) -> None:
    edge = await start_edge(body_limit_bytes=8 << 20)
    big = {"model": "m", "messages": [{"role": "user", "content": "x" * (5 << 20)}]}
    async with edge.http() as client:
        replies = [await client.post("/v1/chat/completions", json=big) for _ in range(2)]

    assert [reply.status_code for reply in replies] == [200, 200]
    assert len(edge.inference.asked[1].generation.messages[0].content[0].text.text) == 5 << 20


async def test_a_caller_s_trace_is_continued(edge: RunningEdge) -> None:
    seen: list[str | None] = []

    async def script(request: inference_pb.GenerateRequest, _call: Call) -> AsyncIterator[list[pb.GenerationEvent]]:
        seen.append(current_traceparent())
        yield [admitted(request), started(), text("x"), finished()]

    edge.inference.script = script
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with edge.http() as client:
        await client.post("/v1/messages", json=MESSAGES, headers={"traceparent": trace})
        own = await client.post("/v1/messages", json=MESSAGES, headers={"traceparent": "nonsense"})

    assert seen[0] is not None
    assert seen[0][3:35] == trace[3:35]
    assert seen[1] is not None
    assert seen[1][3:35] == own.headers["request-id"].replace("-", "")
