"""The charge rule: one table and one function for every way a call can end. docs/charging.md explains every row.

Owns which tokens of a call are charged, and the remarks on the charge; refuses to post, to store and to read clocks.
"""

import enum
import json
from collections.abc import Mapping
from typing import NamedTuple

from services.metering.pricing import NO_USAGE, ProfilePrice, TokenUsage, cost_nano_usd

# What one call may cost at most: nine million dollars, so that sums of charges stay far inside 64 bits.
MAX_CHARGE_NANO_USD = 9_000_000_000_000_000


class Ending(enum.IntEnum):
    """How a call ended; the numbers are those of the contract and of the store."""

    COMPLETE = 1
    CLIENT_LEFT = 2
    CLIENT_LEFT_BEFORE_CONTENT = 3
    FAILED_BEFORE_CONTENT = 4
    CUT = 5
    RESCUED = 6
    REFUSED = 7
    BALANCE_CUT = 8


class Operation(enum.StrEnum):
    """What the call was; decides which classes of tokens can cost anything."""

    GENERATE = "generate"
    EMBED = "embed"
    RERANK = "rerank"


class Flag(enum.StrEnum):
    """A remark on a charge."""

    ESTIMATED = "estimated"  # the rule charges the upstream's report, and (a part of) it was missing
    LATE = "late"  # the call had been declared void before its usage arrived
    OVER_HOLD = "over_hold"  # more than was held for the call


class UsageEvent(NamedTuple):
    """What happened in one call, as its runner saw it. Instants are Unix microseconds."""

    call_id: str
    account_id: str
    key_id: str
    application: str
    operation: str
    profile: str
    requested_model: str
    upstream: str
    attempt: int
    price_book_version: str
    ending: int
    reported: TokenUsage
    delivered: TokenUsage
    upstream_accepted: bool
    held_nano_usd: int
    started_at_us: int
    ended_at_us: int


class Charge(NamedTuple):
    """What a call is charged: under which rule, for which tokens, how much, with which remarks."""

    rule: str
    usage: TokenUsage
    nano_usd: int
    flags: tuple[str, ...]


class Basis(enum.Enum):
    """Which tokens a rule charges."""

    REPORTED = enum.auto()  # the upstream's report; what is missing in it is taken from what was delivered
    DELIVERED = enum.auto()  # the input once, and the output that was handed to the transport
    INPUT = enum.auto()  # the input alone
    NOTHING = enum.auto()


class Rule(NamedTuple):
    """A row of the table; the name stands on the entry."""

    name: str
    basis: Basis


RULES: Mapping[tuple[int, bool], Rule] = {
    (ending, is_accepted): rule
    for ending, accepted, not_accepted in (
        (Ending.COMPLETE, Rule("complete", Basis.REPORTED), None),
        (Ending.CLIENT_LEFT, Rule("client_left", Basis.REPORTED), None),
        (
            Ending.CLIENT_LEFT_BEFORE_CONTENT,
            Rule("client_left_before_content", Basis.INPUT),
            Rule("client_left_before_upstream", Basis.NOTHING),
        ),
        (Ending.FAILED_BEFORE_CONTENT, Rule("failed_before_content", Basis.NOTHING), None),
        (Ending.CUT, Rule("cut", Basis.DELIVERED), None),
        (Ending.RESCUED, Rule("rescued", Basis.DELIVERED), None),
        (Ending.REFUSED, Rule("refused", Basis.REPORTED), None),
        (Ending.BALANCE_CUT, Rule("balance_cut", Basis.DELIVERED), None),
    )
    for is_accepted, rule in ((True, accepted), (False, not_accepted or accepted))
}
"""(how the call ended, whether the upstream had answered 2xx) -> the rule."""


class UnchargeableError(ValueError):
    """The event lacks the count that its rule charges, or the charge is beyond any sense."""


def charge(event: UsageEvent, price: ProfilePrice, *, is_late: bool) -> Charge:
    """What a call is charged. The only way from an ending to money. Raises UnchargeableError."""
    rule = RULES[event.ending, event.upstream_accepted]
    usage, is_estimated = _CHARGED[event.operation](event, rule.basis)
    nano_usd = cost_nano_usd(usage, price)
    if nano_usd > MAX_CHARGE_NANO_USD:
        raise UnchargeableError(f"the charge would be {nano_usd} nano-USD, above the limit of {MAX_CHARGE_NANO_USD}")
    flags: tuple[str, ...] = ()
    if is_estimated:
        flags += (Flag.ESTIMATED.value,)
    if is_late:
        flags += (Flag.LATE.value,)
    if nano_usd > event.held_nano_usd:
        flags += (Flag.OVER_HOLD.value,)
    return Charge(rule.name, usage, nano_usd, flags)


def _charged_generation(event: UsageEvent, basis: Basis) -> tuple[TokenUsage, bool]:
    if basis is Basis.NOTHING:
        return NO_USAGE, False
    reported, delivered = event.reported, event.delivered
    if basis is Basis.DELIVERED:
        return TokenUsage(_input_of(delivered), _output_of(delivered)), False
    if basis is Basis.REPORTED and reported.input_tokens is not None and reported.output_tokens is not None:
        return reported if reported.search_units is None else reported._replace(search_units=None), False
    charged_input, is_estimated = _reported_input(event)
    if basis is Basis.INPUT:
        return charged_input, is_estimated
    output_tokens, reasoning_tokens = reported.output_tokens, reported.reasoning_tokens
    if output_tokens is None:
        output_tokens, reasoning_tokens, is_estimated = _output_of(delivered), None, True
    input_tokens, _, cache_read, cache_write_5m, cache_write_1h, _, _ = charged_input
    return (
        TokenUsage(input_tokens, output_tokens, cache_read, cache_write_5m, cache_write_1h, reasoning_tokens),
        is_estimated,
    )


def _charged_embedding(event: UsageEvent, basis: Basis) -> tuple[TokenUsage, bool]:
    """Embeddings have no output: whatever a report says of it costs nothing."""
    if basis is Basis.NOTHING:
        return NO_USAGE, False
    if basis is Basis.DELIVERED:
        return TokenUsage(_input_of(event.delivered)), False
    return _reported_input(event)


def _charged_rerank(event: UsageEvent, basis: Basis) -> tuple[TokenUsage, bool]:
    """Reranks cost search units and no tokens; a search unit is input, so it is charged whenever the input is."""
    if basis is Basis.NOTHING:
        return NO_USAGE, False
    reported, delivered = event.reported.search_units, event.delivered.search_units
    first, second = (delivered, reported) if basis is Basis.DELIVERED else (reported, delivered)
    units = second if first is None else first
    if units is None:
        raise UnchargeableError("neither reported nor delivered says how many search units")
    return TokenUsage(search_units=units), first is None


_CHARGED = {
    Operation.GENERATE.value: _charged_generation,
    Operation.EMBED.value: _charged_embedding,
    Operation.RERANK.value: _charged_rerank,
}


def _reported_input(event: UsageEvent) -> tuple[TokenUsage, bool]:
    """The prompt in its classes as reported. A missing uncached class is the delivered prompt less what was cached."""
    reported = event.reported
    input_tokens = reported.input_tokens
    is_estimated = input_tokens is None
    if input_tokens is None:
        cached = (
            (reported.cache_read_tokens or 0)
            + (reported.cache_write_5m_tokens or 0)
            + (reported.cache_write_1h_tokens or 0)
        )
        input_tokens = max(0, _input_of(event.delivered) - cached)
    charged = TokenUsage(
        input_tokens,
        None,
        reported.cache_read_tokens,
        reported.cache_write_5m_tokens,
        reported.cache_write_1h_tokens,
    )
    return charged, is_estimated


def _input_of(delivered: TokenUsage) -> int:
    if delivered.input_tokens is None:
        raise UnchargeableError("delivered.input_tokens is needed by this ending and is absent")
    return delivered.input_tokens


def _output_of(delivered: TokenUsage) -> int:
    if delivered.output_tokens is None:
        raise UnchargeableError("delivered.output_tokens is needed by this ending and is absent")
    return delivered.output_tokens


def event_json(event: UsageEvent) -> str:
    """An event as text, for people who look into why it was rejected."""
    facts = event._asdict()
    for name in ("reported", "delivered"):
        facts[name] = {key: value for key, value in facts[name]._asdict().items() if value is not None}
    return json.dumps(facts)
