"""The simulated upstream keeps its documented conventions, and the rules of every upstream."""

import asyncio
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.ports import EmbeddingRequest, RerankRequest, UpstreamRequest
from services.routing_and_inference.upstreams import open_dialects
from services.routing_and_inference.upstreams.simulated import SimulatedChat, SimulatedEmbedder, SimulatedRanker
from services.routing_and_inference.upstreams.simulated_values import ValueMaker
from tests.builders import collect, fold, generation, profile, run_now, upstream_request, usage

Choice, Reasoning = pb.ToolChoice, pb.Reasoning
WEATHER = pb.Tool(
    name="get_weather",
    parameters_json='{"properties":{"city":{"type":"string"},"unit":{"enum":["c","f"]}},"required":["city"]}',
)
CLOCK = pb.Tool(name="get_time", parameters_json='{"type":"object","properties":{"zone":{"type":"string"}}}')


def ask(made: pb.Generation, *, thinking: bool = False) -> list[tuple[str, ...]]:
    return fold(run_now(collect(SimulatedChat(instant=True), request(made, thinking=thinking))))


def request(made: pb.Generation, *, thinking: bool = False) -> UpstreamRequest:
    return upstream_request(made, upstream="simulated", thinking=thinking)


def text_of(runs: list[tuple[str, ...]]) -> str:
    return "".join(run[1] for run in runs if run[0] == "text")


def calls_of(runs: list[tuple[str, ...]]) -> list[tuple[str, Any]]:
    return [(run[2], json.loads(run[3] or "{}")) for run in runs if run[0] == "call"]


def test_an_answer_is_labelled_once_and_speaks_of_the_question() -> None:
    text = text_of(ask(generation("How large is Jupiter, and who measured it?")))
    assert text.startswith("[simulated] ")
    assert text.count("[simulated]") == 1
    assert "Jupiter" in text
    assert len(text.split("\n\n")) >= 3


def test_the_same_question_has_the_same_answer_streamed_or_not() -> None:
    assert ask(generation("Why?", stream=True)) == ask(generation("Why?"))
    assert ask(generation("Why not?")) != ask(generation("Why?"))


@given(st.text(max_size=200), st.integers(1, 50))
def test_no_answer_is_longer_than_allowed(question: str, most: int) -> None:
    events = run_now(collect(SimulatedChat(instant=True), request(generation(question, max_output_tokens=most))))
    assert usage(events)["output_tokens"] <= most
    assert len(text_of(fold(events))) <= 4 * most


def test_an_answer_that_is_too_long_ends_for_its_length() -> None:
    assert ask(generation("Why?", max_output_tokens=3))[-1] == ("finish", "length")


def test_the_first_stop_sequence_ends_the_answer_and_is_named() -> None:
    runs = ask(generation("say one two three four", stop_sequences=["three", "two", "two three"]))
    assert runs == [("text", "one "), ("finish", "stop_sequence", "two three")]


def test_say_is_repeated_word_for_word() -> None:
    assert ask(generation("Hello!\nsay 🙂 exactly this ")) == [("text", "🙂 exactly this"), ("finish", "stop")]


@pytest.mark.parametrize(
    ("question", "calls"),
    [
        pytest.param('call get_weather {"city":"Oslo"}', [("get_weather", {"city": "Oslo"})],
                     id="a call with arguments"),
        pytest.param('call get_weather {"city":"Oslo"}\ncall get_time {"zone":"CET"}\ncall get_weather {"city":"Rome"}',
                     [("get_weather", {"city": "Oslo"}), ("get_time", {"zone": "CET"}), ("get_weather",
                     {"city": "Rome"})],
                     id="several calls"),
        pytest.param("call get_time", [("get_time", {"zone": "call"})], id="made-up arguments"),
        pytest.param("Please use the get_weather tool for Berlin.", [("get_weather", {"city": "Berlin"})],
                     id="plain words"),
        pytest.param("Use get_time and get_weather for Lima", [("get_time", {"zone": "Lima"}), ("get_weather",
                     {"city": "Lima"})],
                     id="two tools in plain words"),
        pytest.param("call launch_missiles {}", [], id="a tool that was not offered"),
        pytest.param("What is get_weather?", [], id="a tool that is only mentioned"),
    ],
)  # fmt: skip
def test_tools_are_called_when_asked_for(question: str, calls: list[tuple[str, Any]]) -> None:
    runs = ask(generation(question, tools=[WEATHER, CLOCK]))
    assert calls_of(runs) == calls
    assert runs[-1] == ("finish", "tool_calls" if calls else "stop")


def test_a_choice_of_tools_is_kept() -> None:
    def called(**fields: Any) -> list[str]:
        return [name for name, _ in calls_of(ask(generation("Hi", tools=[WEATHER, CLOCK], **fields)))]

    assert called() == []
    assert called(tool_choice=Choice(mode=Choice.MODE_REQUIRED)) == ["get_weather"]
    assert called(tool_choice=Choice(mode=Choice.MODE_NAMED, name="get_time")) == ["get_time"]
    both = "call get_time\ncall get_weather"
    runs = ask(generation(both, tools=[WEATHER, CLOCK], tool_choice=Choice(mode=Choice.MODE_NONE)))
    assert calls_of(runs) == []
    runs = ask(generation(both, tools=[WEATHER, CLOCK], parallel_tool_calls=False))
    assert [name for name, _ in calls_of(runs)] == ["get_time"]


def test_results_are_quoted_in_the_answer() -> None:
    made = generation("Use get_weather for Berlin", tools=[WEATHER])
    called = made.messages.add(role=pb.ROLE_ASSISTANT).content.add().tool_call
    called.id, called.name = "a", "get_weather"
    answered = made.messages.add(role=pb.ROLE_USER).content.add().tool_result
    answered.tool_call_id = "a"
    answered.content.add().text.text = "17 degrees"
    runs = ask(made)
    assert text_of(runs) == "[simulated] The tool answered: 17 degrees"
    assert runs[-1] == ("finish", "stop")


def test_thinking_profiles_think_when_told() -> None:
    told = generation("Why?", reasoning=Reasoning(mode=Reasoning.MODE_ENABLED))
    assert ask(told, thinking=True)[0][0] == "thinking"
    assert ask(told)[0][0] == "text"
    assert ask(generation("Why?"), thinking=True)[0][0] == "text"
    off = generation("Why?", reasoning=Reasoning(mode=Reasoning.MODE_DISABLED, effort="high"))
    assert ask(off, thinking=True)[0][0] == "text"


def test_json_is_answered_with_json() -> None:
    properties = '{"name":{"type":"string"},"age":{"type":"integer","minimum":18}}'
    schema = f'{{"type":"object","properties":{properties},"required":["name","age"]}}'
    wanted = pb.ResponseFormat(json_schema=pb.JsonSchemaFormat(schema_json=schema))
    made = json.loads(text_of(ask(generation("Describe Ada", response_format=wanted))))
    assert made == {"name": "Ada", "age": 18}
    wanted = pb.ResponseFormat(json_object=pb.JsonObjectFormat())
    assert json.loads(text_of(ask(generation("Describe Ada", response_format=wanted))))["simulated"] is True


def test_usage_is_the_estimate_of_what_was_said() -> None:
    events = run_now(collect(SimulatedChat(instant=True), request(generation("x" * 41))))
    text = text_of(fold(events))
    assert usage(events) == {"input_tokens": 11, "output_tokens": math.ceil(len(text) / 4)}


async def test_streams_keep_the_pace_of_the_profile() -> None:
    loop = asyncio.get_running_loop()
    made = upstream_request(
        generation("Why?", stream=True, max_output_tokens=60), upstream="simulated", options={"tokens_per_second": 300}
    )
    async with open_dialects() as dialects:
        began = loop.time()
        events = await collect(dialects.generation["simulated"], made)
    assert 0.15 <= loop.time() - began < 2
    assert usage(events)["output_tokens"] == 60


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        pytest.param({"type": "string"}, "Ada", id="a text"),
        pytest.param({"type": "string", "format": "date"}, "2026-01-15", id="a date"),
        pytest.param({"type": "string", "minLength": 8, "maxLength": 9}, "Ada Ada ", id="a text of some length"),
        pytest.param({"enum": ["b", "a"]}, "b", id="an enumeration"),
        pytest.param({"const": 7}, 7, id="a constant"),
        pytest.param({"type": "integer", "minimum": 3, "multipleOf": 5}, 5, id="a multiple"),
        pytest.param({"type": "number", "exclusiveMinimum": 2, "maximum": 2.5}, 2.5, id="a number between"),
        pytest.param({"type": "integer", "maximum": -4}, -4, id="a negative number"),
        pytest.param({"type": "boolean"}, True, id="a truth"),
        pytest.param({"type": ["null", "boolean"]}, True, id="perhaps nothing"),
        pytest.param({"type": "null"}, None, id="nothing"),
        pytest.param({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [1, 1], id="a list"),
        pytest.param({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 1, id="one of several"),
        pytest.param({"allOf": [{"properties": {"a": {"const": 1}}, "required": ["a"]},
                                {"properties": {"b": {"const": 2}}, "required": ["b"]}]}, {"a": 1, "b": 2},
                                id="all of several"),
        pytest.param({"$defs": {"n": {"type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/n"}}}, {"x": 1},
                     id="a reference"),
        pytest.param({"properties": {"child": {"$ref": "#"}}, "required": []}, {"child": {}}, id="a tree"),
        pytest.param({}, "Ada", id="anything"),
    ],
)  # fmt: skip
def test_made_up_values_fit_their_schema(schema: Any, value: Any) -> None:
    assert ValueMaker(schema, ["Ada"]).make() == value


def embed(*texts: str, dimensions: int | None = None) -> list[tuple[float, ...]]:
    made = request(generation())
    wanted = EmbeddingRequest("call", 1, texts, (), dimensions, profile(dimensions=64), made.target)
    result = asyncio.run(SimulatedEmbedder().embed(wanted))
    return [struct.unpack(f"<{len(vector) // 4}f", vector) for vector in result.vectors]


def test_vectors_have_length_one_and_the_wanted_dimensions() -> None:
    for vector in embed("a small text", "!!!", "", "étude 🙂"):
        assert len(vector) == 64
        assert math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-5)
    assert len(embed("a", dimensions=7)[0]) == 7
    assert embed("the same") == embed("the same")


def test_texts_about_the_same_lie_nearer() -> None:
    cat, cats, tax = embed("the cat sat on the mat", "cats sitting on mats", "income tax forms", dimensions=256)
    near, far = (sum(a * b for a, b in zip(cat, other, strict=True)) for other in (cats, tax))
    assert near > far


def test_ranking_puts_the_nearest_first() -> None:
    documents = ["income tax forms", "the capital of France is Paris", "Paris Hilton", "what is the capital of France"]
    made = request(generation())
    wanted = RerankRequest("call", 1, "what is the capital of France", documents, 3, profile(), made.target)
    result = asyncio.run(SimulatedRanker().rerank(wanted))
    assert [ranked.index for ranked in result.ranking][:2] == [3, 1]
    assert (len(result.ranking), result.search_units) == (3, 1)
    assert math.isclose(result.ranking[0].relevance_score, 1)
    assert all(0 <= ranked.relevance_score <= 1 for ranked in result.ranking)
