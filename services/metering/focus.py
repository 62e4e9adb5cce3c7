"""The columns of FOCUS 1.1 for calls and credits. docs/billing.md explains every column.

Owns what a call and an entry are in those columns; refuses to write a format and to read a store.
"""

import functools
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from services.metering.ledger import (
    CHARGE_CORRECTION,
    CREDIT_CORRECTIONS,
    EXPIRY_RULE,
    REFUND_CORRECTION,
    REFUND_RULE,
    CreditKind,
    Transfer,
)
from services.metering.ports import UsageRecord
from services.metering.pricing import ProfilePrice
from services.metering.queries import CostLine, cost_lines

COLUMNS = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "Tags",
    "x_BilledNanoUsd",
    "x_CallId",
    "x_EntryId",
    "x_Flags",
    "x_PostedAt",
    "x_RequestedModel",
    "x_Rule",
    "x_Upstream",
)
"""In this order, in every format."""


class Number(str):
    """A decimal number with all its digits."""

    __slots__ = ()


Value = str | int | None
FocusRow = Mapping[str, Value]

_NAME = "MWS"
_NANO = 1_000_000_000
_HOUR_S = 3_600
_HOUR_US = _HOUR_S * 1_000_000
_METERS = {
    "input": ("Input tokens", "Tokens"),
    "output": ("Output tokens", "Tokens"),
    "cache_read": ("Cache read tokens", "Tokens"),
    "cache_write_5m": ("Cache write tokens, 5 minutes", "Tokens"),
    "cache_write_1h": ("Cache write tokens, 1 hour", "Tokens"),
    "search_units": ("Search units", "Search Units"),
}
_NOTHING = CostLine("input", 0, 0)  # stands for a call that used nothing
_REVENUE = "revenue:"
# Money that comes in or goes back pays for costs and is none.
_PAYMENT_RULES = {CreditKind.PURCHASE.rule, REFUND_RULE, REFUND_CORRECTION, "correct.purchase"}
_DESCRIPTIONS = {
    CreditKind.PROMOTION.rule: "Promotional credit",
    CreditKind.REFUND.rule: "Credit given back",
    EXPIRY_RULE: "End of a promotional credit",
    "correct.promotion": "Correction of a promotional credit",
    "correct.credit": "Correction of a credit",
    CHARGE_CORRECTION: "Correction of a charge",
}
_SECRET = re.compile(r"\b(?:mws_(?:live|service)_|sk-)[\w-]{8,}")
_SHORT_VERSION = 12


def call_rows(record: UsageRecord, price: ProfilePrice) -> list[FocusRow]:
    """A row per class of tokens that was charged; a call that used nothing has one row of zero."""
    event, charge = record.event, record.charge
    lines = cost_lines(charge.usage, price) or [_NOTHING]
    shared = _shared(event.account_id, record.recorded_at_us) | {
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "PricingCategory": "Standard",
        "SubAccountId": _text(event.key_id),
        "Tags": _tags(event.application, event.operation),
        "x_CallId": event.call_id,
        "x_Flags": ",".join(charge.flags) or None,
        "x_RequestedModel": _text(event.requested_model),
        "x_Rule": charge.rule,
        "x_Upstream": _text(event.upstream),
    }
    version = event.price_book_version[:_SHORT_VERSION]
    return [shared | _service(event.profile) | _metered(event.profile, version, line) for line in lines]


def entry_rows(transfer: Transfer, account_id: str, own_account: str) -> list[FocusRow]:
    """An entry that is no call: a credit or a correction. Payments have no row."""
    if transfer.rule in _PAYMENT_RULES:
        return []
    is_credit = transfer.credit == own_account
    cost_nano_usd = -transfer.amount_nano_usd if is_credit else transfer.amount_nano_usd
    row = _shared(account_id, transfer.posted_at_us) | _costs(cost_nano_usd)
    row |= {
        "ChargeCategory": "Credit",
        "ChargeFrequency": "One-Time",
        "ChargeDescription": _DESCRIPTIONS.get(transfer.rule, transfer.rule),
        "x_EntryId": transfer.transfer_id,
        "x_Rule": transfer.rule,
    }
    if transfer.rule in CREDIT_CORRECTIONS:
        row["ChargeClass"] = "Correction"
    if transfer.rule == CHARGE_CORRECTION:
        row |= _service(transfer.debit.removeprefix(_REVENUE))
        row |= {"ChargeCategory": "Usage", "ChargeClass": "Correction"}
    return [row]


def _shared(account_id: str, instant_us: int) -> dict[str, Value]:
    """What every row says: who, in which month and hour, and nothing about the rest."""
    seconds, micros = divmod(instant_us, 1_000_000)
    posted_at = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return _of_hour(account_id, instant_us // _HOUR_US) | {"x_PostedAt": f"{posted_at}.{micros:06d}Z"}


@functools.lru_cache(maxsize=64)
def _of_hour(account_id: str, hour: int) -> dict[str, Value]:
    start = datetime.fromtimestamp(hour * _HOUR_S, UTC)
    month = start.replace(day=1, hour=0)
    following = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    row: dict[str, Value] = dict.fromkeys(COLUMNS)
    return row | {
        "BillingAccountId": _text(account_id),
        "BillingCurrency": "USD",
        "BillingPeriodStart": _iso(month),
        "BillingPeriodEnd": _iso(following),
        "ChargePeriodStart": _iso(start),
        "ChargePeriodEnd": _iso(start + timedelta(hours=1)),
        "InvoiceIssuerName": _NAME,
        "ProviderName": _NAME,
        "PublisherName": _NAME,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "MWS API",
        "ServiceSubcategory": "Generative AI",
    }


def _service(profile: str) -> dict[str, Value]:
    return {"ResourceId": _text(profile), "ResourceType": "Model profile"}


def _metered(profile: str, version: str, line: CostLine) -> dict[str, Value]:
    sku = _sku(profile, version, line.token_class, line.unit_price_nano_usd)
    return sku | _costs(line.cost_nano_usd) | {"ConsumedQuantity": line.quantity, "PricingQuantity": line.quantity}


@functools.lru_cache(maxsize=1_024)
def _sku(profile: str, version: str, token_class: str, unit_price_nano_usd: int) -> dict[str, Value]:
    meter, unit = _METERS[token_class]
    unit_price = usd(unit_price_nano_usd)
    sku = f"{profile}/{token_class}"
    return {
        "ChargeDescription": _text(f"{meter} of {profile}"),
        "ConsumedUnit": unit,
        "ContractedUnitPrice": unit_price,
        "ListUnitPrice": unit_price,
        "PricingUnit": unit,
        "SkuId": _text(sku),
        "SkuMeter": meter,
        "SkuPriceId": _text(f"{sku}@{version}"),
    }


def _costs(nano_usd: int) -> dict[str, Value]:
    cost = usd(nano_usd)
    every = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")
    return {**dict.fromkeys(every, cost), "x_BilledNanoUsd": nano_usd}


@functools.lru_cache(maxsize=4_096)
def usd(nano_usd: int) -> Number:
    """Nano-dollars in dollars, exactly: no more digits than needed."""
    dollars, nano = divmod(abs(nano_usd), _NANO)
    fraction = f".{nano:09d}".rstrip("0") if nano else ""
    return Number(f"{'-' if nano_usd < 0 else ''}{dollars}{fraction}")


def _iso(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


@functools.lru_cache(maxsize=1_024)
def _tags(application: str, operation: str) -> str:
    tags = {"application": application, "operation": operation}
    return json.dumps({name: _text(value) for name, value in tags.items() if value}, ensure_ascii=False)


@functools.lru_cache(maxsize=4_096)
def _text(text: str) -> str | None:
    """Text that a caller chose: whoever put a key there by mistake does not find it in a file."""
    return _SECRET.sub("[redacted]", text) or None
