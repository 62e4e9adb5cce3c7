"""What is held, what is taken from the minute, and what a balance would cover."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing_and_inference import bounding
from services.routing_and_inference.bounding import PromptSize, TextMeter
from services.routing_and_inference.catalog import Kind, Price, Profile

PROFILE = Profile(
    "p",
    Kind.GENERATION,
    Price(input_nano_usd=10, output_nano_usd=100),
    (),
    context_tokens=10_000,
    max_output_tokens=5_000,
)

texts = st.text(max_size=200)
sizes = st.builds(
    PromptSize,
    ascii_characters=st.integers(0, 10**6),
    other_characters=st.integers(0, 10**6),
    images=st.integers(0, 50),
    document_bytes=st.integers(0, 10**7),
)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        pytest.param(PromptSize(), 0, id="nothing"),
        pytest.param(PromptSize(ascii_characters=3), 1, id="three ASCII characters are at most a token"),
        pytest.param(PromptSize(ascii_characters=4), 2, id="rounded up"),
        pytest.param(PromptSize(other_characters=3), 6, id="others are at most two each"),
        pytest.param(PromptSize(images=2), 3_200, id="an image"),
        pytest.param(PromptSize(document_bytes=9), 3, id="bytes of a document"),
        pytest.param(PromptSize(ascii_characters=10**6), 10_000, id="never more than the context"),
        pytest.param(PromptSize(has_unknown_document=True), 10_000, id="a document that nobody has seen"),
    ],
)
def test_the_bound_of_a_prompt(size: PromptSize, tokens: int) -> None:
    assert bounding.input_bound_tokens(size, PROFILE.context_tokens) == tokens


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        pytest.param(PromptSize(), 1, id="at least one"),
        pytest.param(PromptSize(ascii_characters=4), 1, id="four characters"),
        pytest.param(PromptSize(ascii_characters=4, other_characters=1), 2, id="rounded up"),
        pytest.param(PromptSize(ascii_characters=1, images=1), 1_601, id="an image"),
        pytest.param(PromptSize(ascii_characters=1, document_bytes=10**6), 1, id="document bytes are not text"),
    ],
)
def test_the_estimate_of_a_prompt(size: PromptSize, tokens: int) -> None:
    assert bounding.estimated_input_tokens(size) == tokens


@pytest.mark.parametrize(
    ("stated", "estimated", "limit"),
    [
        pytest.param(100, 10, 100, id="as stated"),
        pytest.param(9_999, 10, 5_000, id="the profile's maximum"),
        pytest.param(5_000, 9_000, 1_000, id="what the prompt leaves"),
        pytest.param(5_000, 10_000, 1, id="at least one"),
    ],
)
def test_the_output_limit(stated: int, estimated: int, limit: int) -> None:
    assert bounding.output_limit(PROFILE, stated, estimated) == limit


@pytest.mark.parametrize(
    ("stated", "amount", "rate"),
    [
        pytest.param(100, 2 * 10 + 100 * 100, 2 + 100, id="a small maximum is held in full"),
        pytest.param(4_000, 2 * 10 + 4_000 * 100, 2 + 1_024, id="the minute gives 1,024 of a large one"),
        pytest.param(None, 2 * 10 + 4_096 * 100, 2 + 1_024, id="none stated: a slice"),
    ],
)
def test_what_is_held_for_a_generation(stated: int | None, amount: int, rate: int) -> None:
    bound = bounding.bound_generation(PROFILE, PromptSize(ascii_characters=6), stated)

    assert (bound.amount_nano_usd, bound.rate_tokens) == (amount, rate)


def test_the_dearest_class_of_input_is_held() -> None:
    price = Price(input_nano_usd=10, output_nano_usd=0, cache_read_nano_usd=1, cache_write_1h_nano_usd=20)
    profile = Profile("p", Kind.GENERATION, price, (), context_tokens=100, max_output_tokens=10)

    assert bounding.bound_generation(profile, PromptSize(ascii_characters=3), 5).amount_nano_usd == 20


@pytest.mark.parametrize(("documents", "units"), [(1, 1), (100, 1), (101, 2), (1_000, 10)])
def test_a_search_unit_is_a_hundred_documents(documents: int, units: int) -> None:
    bound = bounding.bound_rerank(Price(search_unit_nano_usd=7), PromptSize(ascii_characters=40), documents)

    assert (bound.amount_nano_usd, bound.rate_tokens) == (7 * units, 10)


def test_token_ids_are_tokens() -> None:
    bound = bounding.bound_embedding(Price(input_nano_usd=3), PromptSize(), 5)

    assert (bound.amount_nano_usd, bound.rate_tokens) == (15, 5)


@given(sizes, st.integers(0, 10**12))
def test_the_affordable_output_is_covered_and_one_more_token_is_not(size: PromptSize, available: int) -> None:
    bound = bounding.bound_generation(PROFILE, size, 1)
    affordable = bound.affordable_output_tokens(available, 10**9)

    assert affordable == 0 or bound.amount_for(affordable) <= available
    assert affordable == 10**9 or bound.amount_for(affordable + 1) > available


@given(sizes)
def test_the_bound_is_never_below_the_estimate(size: PromptSize) -> None:
    estimate = bounding.estimated_input_tokens(size)

    assert bounding.input_bound_tokens(size, 0) + 1 >= estimate


@given(st.lists(texts))
def test_characters_add_up_however_text_is_cut(pieces: list[str]) -> None:
    whole, cut = TextMeter(), TextMeter()
    whole.add("".join(pieces))
    for piece in pieces:
        cut.add(piece)

    assert (whole.ascii_characters, whole.other_characters) == (cut.ascii_characters, cut.other_characters)
    assert whole.characters == len("".join(pieces))
    assert whole.ascii_characters == sum(character.isascii() for character in "".join(pieces))
