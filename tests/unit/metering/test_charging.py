"""The charge rule: every row of docs/charging.md is a row here.

Owns charging.py's facts; refuses to touch a store.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mws.metering.v1 import metering_service_pb2 as pb

from services.metering import charging
from services.metering.charging import MAX_CHARGE_NANO_USD, Ending, Operation, UnchargeableError, UsageEvent
from services.metering.pricing import NO_USAGE, ProfilePrice, TokenUsage, cost_nano_usd
from tests.contract.metering.building import an_event

PRICE = ProfilePrice("dragon", 2, 3, 1, 4, 5, 7)
REPORTED = TokenUsage(10, 20)
DELIVERED = TokenUsage(11, 22)
INPUT_OF_REPORT = TokenUsage(10)
UNITS = TokenUsage(search_units=4)


def row(ending: Ending, rule: str, charged: TokenUsage, *flags: str, case: str, **changes: Any) -> Any:
    return pytest.param({"ending": ending} | changes, rule, charged, flags, id=f"{rule}: {case}")


@pytest.mark.parametrize(
    ("facts", "rule", "charged", "flags"),
    [
        row(Ending.COMPLETE, "complete", REPORTED, case="what the upstream reported"),
        row(Ending.COMPLETE, "complete", DELIVERED, "estimated", reported=NO_USAGE, case="nothing reported"),
        row(Ending.COMPLETE, "complete", TokenUsage(10, 22), "estimated", reported=TokenUsage(10), case="no output"),
        row(
            Ending.COMPLETE, "complete", TokenUsage(11, 20), "estimated", reported=TokenUsage(None, 20), case="no input"
        ),
        row(
            Ending.COMPLETE,
            "complete",
            TokenUsage(3, 20, 8),
            "estimated",
            reported=TokenUsage(None, 20, 8),
            case="no uncached input, so the delivered input less the cached part",
        ),
        row(
            Ending.COMPLETE,
            "complete",
            TokenUsage(0, 20, 8, 9),
            "estimated",
            reported=TokenUsage(None, 20, 8, 9),
            case="more cached than delivered, so no uncached input",
        ),
        row(
            Ending.COMPLETE,
            "complete",
            TokenUsage(1, 20, 2, 3, 4, 15),
            reported=TokenUsage(1, 20, 2, 3, 4, 15),
            case="every class as reported",
        ),
        row(
            Ending.COMPLETE,
            "complete",
            TokenUsage(10, 22),
            "estimated",
            reported=TokenUsage(10, reasoning_tokens=5),
            case="reasoning without an output count is dropped",
        ),
        row(Ending.COMPLETE, "complete", TokenUsage(0, 0), reported=TokenUsage(0, 0), case="zero is a report"),
        row(Ending.CLIENT_LEFT, "client_left", REPORTED, case="what the upstream reported"),
        row(
            Ending.CLIENT_LEFT, "client_left", DELIVERED, "estimated", reported=NO_USAGE, case="else what was delivered"
        ),
        row(
            Ending.CLIENT_LEFT_BEFORE_CONTENT,
            "client_left_before_content",
            INPUT_OF_REPORT,
            case="the input, whatever output was reported",
        ),
        row(
            Ending.CLIENT_LEFT_BEFORE_CONTENT,
            "client_left_before_content",
            TokenUsage(11),
            "estimated",
            reported=NO_USAGE,
            case="the delivered input when nothing was reported",
        ),
        row(
            Ending.CLIENT_LEFT_BEFORE_CONTENT,
            "client_left_before_upstream",
            NO_USAGE,
            upstream_accepted=False,
            case="nothing, the upstream had not answered",
        ),
        row(Ending.FAILED_BEFORE_CONTENT, "failed_before_content", NO_USAGE, case="nothing, even with a 2xx head"),
        row(
            Ending.FAILED_BEFORE_CONTENT,
            "failed_before_content",
            NO_USAGE,
            upstream_accepted=False,
            reported=NO_USAGE,
            delivered=NO_USAGE,
            case="nothing, without any count",
        ),
        row(Ending.CUT, "cut", DELIVERED, case="what was delivered, whatever was reported"),
        row(Ending.CUT, "cut", DELIVERED, reported=NO_USAGE, case="delivered is the rule, so it is no estimate"),
        row(Ending.RESCUED, "rescued", DELIVERED, case="the input once and all that was delivered"),
        row(Ending.REFUSED, "refused", REPORTED, case="what the upstream reported"),
        row(Ending.REFUSED, "refused", DELIVERED, "estimated", reported=NO_USAGE, case="nothing reported"),
        row(Ending.BALANCE_CUT, "balance_cut", DELIVERED, case="what was delivered"),
    ],
)
def test_a_generation_is_charged_by_the_table(
    facts: dict[str, Any], rule: str, charged: TokenUsage, flags: tuple[str, ...]
) -> None:
    event = an_event(**({"reported": REPORTED, "delivered": DELIVERED} | facts))

    charge = charging.charge(event, PRICE, is_late=False)

    assert (rule, charged, cost_nano_usd(charged, PRICE), flags) == charge


@pytest.mark.parametrize(
    ("facts", "charged", "flags"),
    [
        pytest.param({"reported": TokenUsage(10, 99)}, TokenUsage(10), (), id="an embedding costs its input only"),
        pytest.param({"reported": NO_USAGE}, TokenUsage(11), ("estimated",), id="an embedding without a report"),
        pytest.param({"ending": Ending.CUT}, TokenUsage(11), (), id="an embedding that was cut"),
        pytest.param({"ending": Ending.FAILED_BEFORE_CONTENT}, NO_USAGE, (), id="an embedding that failed"),
    ],
)
def test_an_embedding_is_charged_its_input(facts: dict[str, Any], charged: TokenUsage, flags: tuple[str, ...]) -> None:
    event = an_event(**({"operation": "embed", "reported": TokenUsage(10), "delivered": TokenUsage(11, 0)} | facts))

    charge = charging.charge(event, PRICE, is_late=False)

    assert (charged, flags) == (charge.usage, charge.flags)


@pytest.mark.parametrize(
    ("facts", "charged", "flags"),
    [
        pytest.param(
            {"reported": UNITS._replace(input_tokens=500)}, UNITS, (), id="a rerank costs its search units only"
        ),
        pytest.param({"reported": NO_USAGE, "delivered": UNITS}, UNITS, ("estimated",), id="a rerank without a report"),
        pytest.param({"reported": UNITS, "ending": Ending.CUT}, UNITS, ("estimated",), id="a rerank that was cut"),
        pytest.param(
            {"reported": UNITS, "ending": Ending.CLIENT_LEFT_BEFORE_CONTENT}, UNITS, (), id="search units are input"
        ),
        pytest.param({"ending": Ending.FAILED_BEFORE_CONTENT}, NO_USAGE, (), id="a rerank that failed"),
    ],
)
def test_a_rerank_is_charged_its_search_units(
    facts: dict[str, Any], charged: TokenUsage, flags: tuple[str, ...]
) -> None:
    event = an_event(**({"operation": "rerank", "reported": NO_USAGE, "delivered": NO_USAGE} | facts))

    charge = charging.charge(event, PRICE, is_late=False)

    assert (charged, flags) == (charge.usage, charge.flags)


@pytest.mark.parametrize(
    ("held", "is_late", "flags"),
    [
        pytest.param(80, False, (), id="exactly the hold is not over it"),
        pytest.param(79, False, ("over_hold",), id="one more than the hold is flagged and charged"),
        pytest.param(80, True, ("late",), id="usage after a void marker is late"),
        pytest.param(0, True, ("late", "over_hold"), id="both"),
    ],
)
def test_remarks_never_change_the_charge(held: int, is_late: bool, flags: tuple[str, ...]) -> None:
    charge = charging.charge(an_event(held_nano_usd=held), PRICE, is_late=is_late)

    assert (80, flags) == (charge.nano_usd, charge.flags)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(an_event(reported=NO_USAGE, delivered=NO_USAGE), id="complete without any count"),
        pytest.param(an_event(reported=TokenUsage(1), delivered=TokenUsage(1)), id="no output anywhere"),
        pytest.param(an_event(ending=Ending.CUT, delivered=TokenUsage(1)), id="cut without a delivered output"),
        pytest.param(an_event(operation="rerank", delivered=TokenUsage(1, 2)), id="a rerank without search units"),
        pytest.param(an_event(reported=TokenUsage(10**12, 10**12), profile="dear"), id="beyond any sense"),
    ],
)
def test_an_event_without_what_its_rule_needs_is_not_charged(event: UsageEvent) -> None:
    price = ProfilePrice("dear", 10**9, 10**9) if event.profile == "dear" else PRICE

    with pytest.raises(UnchargeableError):
        charging.charge(event, price, is_late=False)


counts = st.none() | st.integers(min_value=0, max_value=10**7)
usages = st.builds(TokenUsage, counts, counts, counts, counts, counts, counts, counts)


@given(st.sampled_from(Ending), st.sampled_from(Operation), usages, usages, st.booleans(), st.booleans())
def test_every_event_has_one_whole_charge_or_none(
    ending: Ending, operation: Operation, reported: TokenUsage, delivered: TokenUsage, accepted: bool, is_late: bool
) -> None:
    event = an_event(
        ending=ending,
        operation=operation.value,
        reported=reported,
        delivered=delivered,
        upstream_accepted=accepted,
    )
    try:
        charge = charging.charge(event, PRICE, is_late=is_late)
    except UnchargeableError:
        return

    assert charge.nano_usd == cost_nano_usd(charge.usage, PRICE)
    assert 0 <= charge.nano_usd <= MAX_CHARGE_NANO_USD
    assert ("late" in charge.flags) is is_late
    assert all(count is None or count >= 0 for count in charge.usage)


def test_the_endings_are_those_of_the_contract() -> None:
    contract = {name.removeprefix("ENDING_"): number for name, number in pb.Ending.items() if number}

    assert contract == {ending.name: ending.value for ending in Ending}


def test_every_rule_stands_in_the_documentation_and_no_other() -> None:
    text = (Path(__file__).parents[3] / "docs" / "charging.md").read_text()
    table = text.split("## The charge rule")[1].split("###")[0]
    documented = set(re.findall(r"^\|[^|]*\|[^|]*\| `(\w+)` \|", table, re.MULTILINE))

    assert documented == {rule.name for rule in charging.RULES.values()}
