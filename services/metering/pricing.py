"""Prices in integer nano-dollars per token, and the version of a price book.

Owns arithmetic on given prices; refuses to know where prices come from and which tokens are charged.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class TokenUsage(NamedTuple):
    """Tokens in disjoint classes but for reasoning, a part of the output. None is "not reported", which is not zero."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    search_units: int | None = None


NO_USAGE = TokenUsage()


class ProfilePrice(NamedTuple):
    """Prices of one profile, per token and per search unit. A cache price of None is the input price."""

    profile: str
    input_nano_usd: int = 0
    output_nano_usd: int = 0
    cache_read_nano_usd: int | None = None
    cache_write_5m_nano_usd: int | None = None
    cache_write_1h_nano_usd: int | None = None
    search_unit_nano_usd: int = 0


PriceBook = Mapping[str, ProfilePrice]


def cost_nano_usd(usage: TokenUsage, price: ProfilePrice) -> int:
    """What a usage costs. Exact: every price is whole, so nothing is ever rounded."""
    cost = (usage.input_tokens or 0) * price.input_nano_usd + (usage.output_tokens or 0) * price.output_nano_usd
    if usage.cache_read_tokens:
        cost += usage.cache_read_tokens * _or_input(price.cache_read_nano_usd, price)
    if usage.cache_write_5m_tokens:
        cost += usage.cache_write_5m_tokens * _or_input(price.cache_write_5m_nano_usd, price)
    if usage.cache_write_1h_tokens:
        cost += usage.cache_write_1h_tokens * _or_input(price.cache_write_1h_nano_usd, price)
    if usage.search_units:
        cost += usage.search_units * price.search_unit_nano_usd
    return cost


def _or_input(own_price: int | None, price: ProfilePrice) -> int:
    return price.input_nano_usd if own_price is None else own_price


def canonical_json(prices: Iterable[ProfilePrice]) -> str:
    """The one text form of a price book; the rule is in docs/charging.md, and other services compute it too."""
    rows = [
        {name: value for name, value in price._asdict().items() if value is not None}
        for price in sorted(prices, key=lambda price: price.profile)
    ]
    return json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def price_book_version(prices: Iterable[ProfilePrice]) -> str:
    """The version of a price book: SHA-256, in hex, of its canonical JSON in UTF-8."""
    return hashlib.sha256(canonical_json(prices).encode()).hexdigest()


def read_canonical_json(text: str) -> PriceBook:
    """The book that `canonical_json` wrote."""
    return {row["profile"]: ProfilePrice(**row) for row in json.loads(text)}
