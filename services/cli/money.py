"""Dollars for people, nano-dollars inside.

Owns the two exact conversions; refuses floats.
"""

from decimal import Decimal, InvalidOperation

NANO_PER_USD = 1_000_000_000


def nano_from_usd(text: str) -> int:
    """`"12.5"` -> 12_500_000_000. Raises ValueError for what is not a positive amount of whole nano-dollars."""
    try:
        nano = Decimal(text) * NANO_PER_USD
        whole = int(nano)
    except (InvalidOperation, ValueError, OverflowError):
        raise ValueError(f"{text!r} is not an amount in dollars") from None
    if whole != nano:
        raise ValueError(f"{text!r} is finer than a nano-dollar")
    if whole <= 0:
        raise ValueError(f"{text!r} is not more than zero")
    return whole


def usd_from_nano(nano_usd: int) -> str:
    """12_500_000_000 -> `"12.50"`: exact, at least two decimals, no more than needed."""
    sign = "-" if nano_usd < 0 else ""
    dollars, nano = divmod(abs(nano_usd), NANO_PER_USD)
    cents = f"{nano:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{dollars:,}.{cents}"
