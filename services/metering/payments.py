"""How money comes in and goes back: the port to payment providers, and the manual one.

Owns what a provider promises; refuses to know accounts' balances and the ledger.
"""

from typing import NamedTuple, Protocol


class Payment(NamedTuple):
    """Money to collect or to pay back."""

    account_id: str
    idempotency_key: str
    amount_nano_usd: int


class PaymentProvider(Protocol):
    """Moves real money. Each method is idempotent by (account, key): a repeat returns the first receipt.

    Raises InvalidRequestError when the provider refuses for good, another GatewayError when trying again may help.
    """

    async def collect(self, payment: Payment) -> str:
        """Takes the money; returns the receipt once it is certain."""

    async def pay_back(self, payment: Payment) -> str:
        """Gives money back; returns the receipt once the provider has taken the order."""


class ManualPayments:
    """Money that people move: whoever grants a purchase says that it arrived, whoever refunds sends it back."""

    async def collect(self, payment: Payment) -> str:
        return _receipt(payment)

    async def pay_back(self, payment: Payment) -> str:
        return _receipt(payment)


def _receipt(payment: Payment) -> str:
    return f"manual:{payment.idempotency_key}"
