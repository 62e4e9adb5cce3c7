"""The OpenAPI document is whole: references resolve, every route and failure is told."""

import json
import re

import msgspec
from mws.common.v1 import token_usage_pb2
from mws.inference.v1 import generation_pb2 as pb

from edge.answer import Head
from edge.anthropic.events import MessageFold
from edge.anthropic.schema import MessageReply
from edge.documentation import openapi_document
from edge.openai.chunks import ChatFold
from edge.openai.schema import ChatReply


def test_every_reference_resolves() -> None:
    document = openapi_document()
    text = json.dumps(document)

    assert set(re.findall(r"#/components/schemas/(\w+)", text)) <= set(document["components"]["schemas"])
    assert 'additionalProperties": false' not in text


def test_every_operation_tells_its_failures_and_headers() -> None:
    for path in openapi_document()["paths"].values():
        for operation in path.values():
            assert {"200", "400", "401", "402", "429", "500", "503"} <= set(operation["responses"])
            assert "x-ratelimit-reset-tokens" in operation["responses"]["200"]["headers"]


def test_what_charges_may_conflict_with_an_earlier_call() -> None:
    paths = openapi_document()["paths"]
    conflicting = {path for path, item in paths.items() if "409" in item.get("post", {}).get("responses", {})}

    assert conflicting == {"/v1/messages", "/v1/chat/completions", "/v1/embeddings", "/v1/rerank", "/v2/rerank"}


def test_replies_are_what_the_document_says() -> None:
    head = Head("01994a3e-0000-7000-8000-000000000000", 1, "m", 1)
    answer = [
        pb.GenerationEvent(thinking_delta=pb.ThinkingDelta(text="t")),
        pb.GenerationEvent(text_delta=pb.TextDelta(text="x")),
        pb.GenerationEvent(tool_call_started=pb.ToolCallStarted(id="c", name="f")),
        pb.GenerationEvent(finished=pb.Finished(usage=token_usage_pb2.TokenUsage(input_tokens=1, output_tokens=1))),
    ]
    left, right = MessageFold(head), ChatFold(head)
    left.feed(answer)
    right.feed(answer)

    assert len(msgspec.json.decode(left.reply(), type=MessageReply).content) == 3
    assert msgspec.json.decode(right.reply(), type=ChatReply).choices[0].finish_reason == "stop"
