"""The columns of FOCUS 1.1 for calls and credits. docs/billing.md explains every column.

Owns what a call and an entry are in those columns; refuses to write a format and to read a store.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

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

Value = str | int | Decimal | None
FocusRow = Mapping[str, Value]

_NAME = "MWS"
_NANO = Decimal(1_000_000_000)
_HOUR_US = 3_600_000_000
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
        "Tags": _tags({"application": event.application, "operation": event.operation}),
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
    hour_us = instant_us // _HOUR_US * _HOUR_US
    month = datetime.fromtimestamp(instant_us // 1_000_000, UTC).replace(day=1, hour=0, minute=0, second=0)
    following = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    row: dict[str, Value] = dict.fromkeys(COLUMNS)
    return row | {
        "BillingAccountId": _text(account_id),
        "BillingCurrency": "USD",
        "BillingPeriodStart": _iso(month),
        "BillingPeriodEnd": _iso(following),
        "ChargePeriodStart": _iso(datetime.fromtimestamp(hour_us // 1_000_000, UTC)),
        "ChargePeriodEnd": _iso(datetime.fromtimestamp((hour_us + _HOUR_US) // 1_000_000, UTC)),
        "InvoiceIssuerName": _NAME,
        "ProviderName": _NAME,
        "PublisherName": _NAME,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "MWS API",
        "ServiceSubcategory": "Generative AI",
        "x_PostedAt": datetime.fromtimestamp(instant_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        + f".{instant_us % 1_000_000:06d}Z",
    }


def _service(profile: str) -> dict[str, Value]:
    return {"ResourceId": _text(profile), "ResourceType": "Model profile"}


def _metered(profile: str, version: str, line: CostLine) -> dict[str, Value]:
    meter, unit = _METERS[line.token_class]
    unit_price = usd(line.unit_price_nano_usd)
    sku = f"{profile}/{line.token_class}"
    return _costs(line.cost_nano_usd) | {
        "ChargeDescription": _text(f"{meter} of {profile}"),
        "ConsumedQuantity": line.quantity,
        "ConsumedUnit": unit,
        "ContractedUnitPrice": unit_price,
        "ListUnitPrice": unit_price,
        "PricingQuantity": line.quantity,
        "PricingUnit": unit,
        "SkuId": _text(sku),
        "SkuMeter": meter,
        "SkuPriceId": _text(f"{sku}@{version}"),
    }


def _costs(nano_usd: int) -> dict[str, Value]:
    cost = usd(nano_usd)
    every = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost")
    return {**dict.fromkeys(every, cost), "x_BilledNanoUsd": nano_usd}


def usd(nano_usd: int) -> Decimal:
    """Nano-dollars in dollars, exactly."""
    return Decimal(nano_usd) / _NANO


def _iso(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


def _tags(tags: Mapping[str, str]) -> str:
    return json.dumps({name: _text(value) for name, value in tags.items() if value}, ensure_ascii=False)


def _text(text: str) -> str | None:
    """Text that a caller chose: whoever put a key there by mistake does not find it in a file."""
    return _SECRET.sub("[redacted]", text) or None


def nano_usd_of(rows: Sequence[FocusRow]) -> int:
    """What rows cost together."""
    return sum(amount for row in rows if isinstance(amount := row["x_BilledNanoUsd"], int))
