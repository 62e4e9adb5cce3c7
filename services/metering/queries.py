"""Use case: usage by group, in pages, and what makes the cost of one call.

Owns order, totals and cost lines; refuses to know protobuf and stores.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.metering.pricing import NO_USAGE, ProfilePrice, TokenUsage, cost_nano_usd
from services.metering.reports import GroupedSum

_TIMES = frozenset(("day", "hour"))
_CLASSES = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write_5m": "cache_write_5m_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "search_units": "search_units",
}
_ONE_OF = {name: TokenUsage(**{field: 1}) for name, field in _CLASSES.items()}


class CostLine(NamedTuple):
    """What one class of tokens cost."""

    token_class: str
    quantity: int
    unit_price_nano_usd: int

    @property
    def cost_nano_usd(self) -> int:
        """quantity x price."""
        return self.quantity * self.unit_price_nano_usd


def cost_lines(usage: TokenUsage, price: ProfilePrice) -> list[CostLine]:
    """The classes of tokens that were charged. Reasoning is a part of the output and has no line."""
    quantities = ((name, getattr(usage, field)) for name, field in _CLASSES.items())
    return [CostLine(name, count, cost_nano_usd(_ONE_OF[name], price)) for name, count in quantities if count]


def ordered(groups: Iterable[GroupedSum], groupings: tuple[str, str]) -> list[GroupedSum]:
    """By time if one of the groupings is a time, else the dearest first."""
    is_by_time = bool(_TIMES & set(groupings))
    return sorted(groups, key=lambda each: _place(each, is_by_time=is_by_time))


def after(
    groups: Sequence[GroupedSum], groupings: tuple[str, str], last: tuple[int, str, str] | None
) -> list[GroupedSum]:
    """The ordered groups behind one that is known by its cost and its names."""
    if last is None:
        return list(groups)
    is_by_time = bool(_TIMES & set(groupings))
    charged, group, then_group = last
    place = _place(GroupedSum(group, then_group, 0, NO_USAGE, charged), is_by_time=is_by_time)
    return [each for each in groups if _place(each, is_by_time=is_by_time) > place]


def _place(group: GroupedSum, *, is_by_time: bool) -> tuple[int, str, str]:
    return 0 if is_by_time else -group.charged_nano_usd, group.group, group.then_group


def total_of(groups: Iterable[GroupedSum]) -> GroupedSum:
    """The sum over all groups."""
    rows = list(groups)
    columns = [[row.usage[index] for row in rows] for index in range(len(NO_USAGE))]
    usage = TokenUsage._make([_sum_of_known(column) for column in columns])
    return GroupedSum("", "", sum(row.calls for row in rows), usage, sum(row.charged_nano_usd for row in rows))


def _sum_of_known(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
