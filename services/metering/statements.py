"""Use case: the statement of a month, from one consistent view of the ledger.

Owns which entry belongs to which line; refuses to know protobuf and stores.
"""

import re
from collections import defaultdict
from datetime import UTC, datetime
from typing import NamedTuple

from services.metering.ports import Span
from services.metering.pricing import NO_USAGE, TokenUsage
from services.metering.reports import StatementFacts

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])").fullmatch
_SETTLED_AFTER_US = 3_600_000_000  # whatever was posted in the month is committed an hour later
_REVENUE = "revenue:"


class Line(NamedTuple):
    """Entries of one sort: the rule of credits, the profile of charges."""

    name: str
    entries: int  # calls, of charges
    amount_nano_usd: int  # as the account sees it
    usage: TokenUsage = NO_USAGE


class Statement(NamedTuple):
    """A month: opening + credits + charges = closing."""

    opening_nano_usd: int
    credits: tuple[Line, ...]
    charges: tuple[Line, ...]
    closing_nano_usd: int


def span_of(month: str) -> Span | None:
    """The month's span in UTC; None for a text that is no month."""
    match = _MONTH(month)
    if match is None or int(match[1]) < 1970:
        return None
    year, number = int(match[1]), int(match[2])
    following = (year + 1, 1) if number == 12 else (year, number + 1)
    return Span(_first_us(year, number), _first_us(*following) if following[0] <= 9999 else 1 << 60)


def _first_us(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1_000_000


def is_final(span: Span, now_us: int) -> bool:
    """Whether nothing can be added to the span any more."""
    return now_us >= span.until_us + _SETTLED_AFTER_US


def statement_of(facts: StatementFacts) -> Statement:
    """Sorts a month's entries into lines."""
    by_rule: dict[str, list[tuple[int, int]]] = defaultdict(list)
    amounts: dict[str, int] = defaultdict(int)
    for rule, counterpart, is_call, count, amount_nano_usd in facts.entries:
        if is_call:
            amounts[counterpart.removeprefix(_REVENUE)] += amount_nano_usd
        else:
            by_rule[rule].append((count, amount_nano_usd))
    by_profile = {each.group: each for each in facts.usage}
    charges = []
    for profile in sorted(amounts.keys() | by_profile.keys(), key=lambda name: (amounts.get(name, 0), name)):
        used = by_profile.get(profile)
        calls, usage = (used.calls, used.usage) if used is not None else (0, NO_USAGE)
        charges.append(Line(profile, calls, amounts.get(profile, 0), usage))
    return Statement(
        facts.opening_nano_usd,
        tuple(
            Line(rule, sum(count for count, _ in found), sum(amount for _, amount in found))
            for rule, found in sorted(by_rule.items())
        ),
        tuple(charges),
        facts.closing_nano_usd,
    )
