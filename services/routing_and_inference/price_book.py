"""The prices of a catalogue under one version, as they are registered with metering and pinned at admission.

Owns the canonical text that the version is the digest of (docs/charging.md); refuses to price anything.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from services.routing_and_inference.catalog import Price, Profile


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Prices by slug, and the SHA-256 (hex) of their canonical text."""

    version: str
    prices: Mapping[str, Price]


def price_book_of(profiles: Iterable[Profile]) -> PriceBook:
    """The price book of a catalogue's profiles."""
    prices = {profile.slug: profile.price for profile in profiles}
    return PriceBook(hashlib.sha256(canonical_json(prices).encode()).hexdigest(), prices)


def canonical_json(prices: Mapping[str, Price]) -> str:
    """A row per profile, sorted by slug; keys sorted, no spaces, no escapes of non-ASCII, absent prices left out."""
    rows = [
        {"profile": slug} | {name: value for name, value in asdict(prices[slug]).items() if value is not None}
        for slug in sorted(prices)
    ]
    return json.dumps(rows, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
