"""Prices: exact sums per class, and versions that every implementation agrees on.

Owns pricing.py's facts; refuses to know which tokens a rule charges.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metering.pricing import (
    ProfilePrice,
    TokenUsage,
    canonical_json,
    cost_nano_usd,
    price_book_version,
    read_canonical_json,
)

VECTORS = json.loads((Path(__file__).parents[2] / "contract" / "price_book_vectors.json").read_text())
CACHED = ProfilePrice("p", 100, 500, cache_read_nano_usd=10, cache_write_5m_nano_usd=125, cache_write_1h_nano_usd=200)
PLAIN = ProfilePrice("p", 100, 500)


@pytest.mark.parametrize(
    ("usage", "price", "nano_usd"),
    [
        pytest.param(TokenUsage(), PLAIN, 0, id="nothing costs nothing"),
        pytest.param(TokenUsage(3, 2), PLAIN, 1_300, id="input and output have their own price"),
        pytest.param(TokenUsage(1, None, 7), CACHED, 170, id="cache reads have their own price"),
        pytest.param(TokenUsage(1, None, 7), PLAIN, 800, id="without one cache reads cost what input costs"),
        pytest.param(TokenUsage(0, 0, None, 2, 3), CACHED, 850, id="cache writes by their life"),
        pytest.param(TokenUsage(0, 0, None, 2, 3), PLAIN, 500, id="without one cache writes cost what input costs"),
        pytest.param(TokenUsage(0, 0, 9), CACHED._replace(cache_read_nano_usd=0), 0, id="a price of zero is a price"),
        pytest.param(TokenUsage(0, 10, None, None, None, 8), PLAIN, 5_000, id="reasoning is inside the output"),
        pytest.param(TokenUsage(search_units=3), ProfilePrice("p", search_unit_nano_usd=7), 21, id="search units"),
        pytest.param(TokenUsage(10**12, 10**12), ProfilePrice("p", 10**9, 10**9), 2 * 10**21, id="no size overflows"),
    ],
)
def test_cost_is_the_sum_over_classes(usage: TokenUsage, price: ProfilePrice, nano_usd: int) -> None:
    assert nano_usd == cost_nano_usd(usage, price)


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector["name"]) for vector in VECTORS])
def test_a_price_book_has_the_version_of_the_shared_vectors(vector: dict[str, Any]) -> None:
    prices = [ProfilePrice(**price) for price in vector["prices"]]

    assert (vector["canonical_json"], vector["version"]) == (canonical_json(prices), price_book_version(prices))


amounts = st.integers(min_value=0, max_value=10**12)
prices = st.lists(
    st.builds(ProfilePrice, st.text(min_size=1), amounts, amounts, st.none() | amounts, st.none() | amounts),
    unique_by=lambda price: price.profile,
)


@given(prices, st.randoms(use_true_random=False))
def test_a_version_does_not_depend_on_the_order_and_its_text_reads_back(book: list[ProfilePrice], random: Any) -> None:
    shuffled = list(book)
    random.shuffle(shuffled)

    assert price_book_version(book) == price_book_version(shuffled)
    assert {price.profile: price for price in book} == read_canonical_json(canonical_json(book))
