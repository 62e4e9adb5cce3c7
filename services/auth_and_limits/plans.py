"""Reads the plan file into frozen values.

Owns the file's rules and the wording of its errors; refuses to decide anything with the plans.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from services.auth_and_limits.limits import LARGEST_LIMIT
from services.auth_and_limits.tiers import Ceilings, Plan, PlanBook, Tier

PACKAGED_PLANS = Path(__file__).with_name("plans.yaml")
LARGEST_CONCURRENCY = 1_000_000
_NANO_USD = 1_000_000_000
_LARGEST_USD = 1_000_000
_TIER_FIELDS = {"name", "from_paid_usd", "requests_per_minute", "tokens_per_minute", "concurrent_calls"}


class PlanFileError(ValueError):
    """A rule of the plan file is broken: the message names the file, the path inside it, and the rule."""


def load_plans(path: Path) -> PlanBook:
    """The plans of a file. Raises PlanFileError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanFileError(f"{path}: cannot be read as YAML: {error}") from error
    try:
        return _book(_Node(content, ""))
    except _RuleError as error:
        raise PlanFileError(f"{path}: {error}") from error


class _RuleError(ValueError):
    """Path and rule, not yet the file."""


class _Node:
    """A value of the file and the path that leads to it."""

    def __init__(self, value: Any, path: str) -> None:
        self.value = value
        self.path = path

    def fail(self, rule: str) -> _RuleError:
        return _RuleError(f"{self.path or 'the file'}: {rule}")

    def mapping(self, allowed: set[str] | None = None) -> Mapping[str, "_Node"]:
        if not isinstance(self.value, dict) or not all(isinstance(name, str) and name for name in self.value):
            raise self.fail("must be a mapping with names")
        if allowed is not None and (extra := sorted(set(self.value) - allowed)):
            raise self.fail(f"unknown field {extra[0]!r}; allowed are {', '.join(sorted(allowed))}")
        return {name: _Node(value, f"{self.path}.{name}".lstrip(".")) for name, value in self.value.items()}

    def field(self, name: str) -> "_Node":
        fields = self.mapping()
        if name not in fields:
            raise self.fail(f"{name} is missing")
        return fields[name]

    def items(self) -> list["_Node"]:
        if not isinstance(self.value, list) or not self.value:
            raise self.fail("must be a list with at least one item")
        return [_Node(value, f"{self.path}[{index}]") for index, value in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str) or not 1 <= len(self.value) <= 64:
            raise self.fail("must be a text of 1..64 characters")
        return self.value

    def integer(self, smallest: int, largest: int) -> int:
        if type(self.value) is not int or not smallest <= self.value <= largest:
            raise self.fail(f"must be a whole number of {smallest}..{largest}")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.fail("must be true or false")
        return self.value


def _book(root: _Node) -> PlanBook:
    root.mapping({"default_plan", "plans"})
    plans_node = root.field("plans")
    plans = {name: _plan(name, node) for name, node in plans_node.mapping().items()}
    if not plans:
        raise plans_node.fail("must hold at least one plan")
    default_node = root.field("default_plan")
    if default_node.text() not in plans:
        raise default_node.fail(f"must be one of {', '.join(sorted(plans))}")
    return PlanBook(default_node.text(), plans)


def _plan(name: str, node: _Node) -> Plan:
    node.mapping({"subscription", "tiers"})
    _Node(name, node.path).text()
    tier_nodes = node.field("tiers").items()
    tiers = tuple(_tier(tier_node) for tier_node in tier_nodes)
    if tiers[0].from_paid_nano_usd != 0:
        raise tier_nodes[0].fail("from_paid_usd of the first tier must be 0")
    for tier_node, below, above in zip(tier_nodes[1:], tiers, tiers[1:], strict=False):
        if above.from_paid_nano_usd <= below.from_paid_nano_usd:
            raise tier_node.fail("from_paid_usd must be higher than that of the tier before")
    names = [tier.ceilings.tier for tier in tiers]
    if len(set(names)) != len(names):
        raise node.fail("two tiers have the same name")
    return Plan(name, node.field("subscription").flag(), tiers)


def _tier(node: _Node) -> Tier:
    node.mapping(_TIER_FIELDS)
    ceilings = Ceilings(
        requests_per_minute=node.field("requests_per_minute").integer(1, LARGEST_LIMIT),
        tokens_per_minute=node.field("tokens_per_minute").integer(1, LARGEST_LIMIT),
        concurrent_calls=node.field("concurrent_calls").integer(1, LARGEST_CONCURRENCY),
        tier=node.field("name").text(),
    )
    return Tier(node.field("from_paid_usd").integer(0, _LARGEST_USD) * _NANO_USD, ceilings)
