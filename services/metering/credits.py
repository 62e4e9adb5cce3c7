"""Use case: credits, refunds and corrections from the payment provider to what auth-and-limits knows.

Owns the order of provider, ledger and acknowledgement; refuses to know the rules inside one transaction.
"""

from collections.abc import Callable
from typing import NamedTuple

from services.metering import granting, reversals
from services.metering.granting import Credit
from services.metering.ledger import CreditKind
from services.metering.outbox import Outbox
from services.metering.payments import Payment, PaymentProvider
from services.metering.ports import Footprint, GrantRecord, LedgerStore, LedgerTransaction
from services.metering.reversals import Correction, Refund
from services.metering.usage import Moment
from services.runtime.errors import InvalidRequestError

COMMIT_TIMEOUT_S = 5.0
ACKNOWLEDGE_WAIT_S = 2.0


class Booked(NamedTuple):
    """What was posted, and whether auth-and-limits knows the new balance."""

    record: GrantRecord
    is_known: bool


class Credits:
    """Everything that moves an account's money but calls."""

    def __init__(
        self, store: LedgerStore, outbox: Outbox, payments: PaymentProvider, moment: Callable[[], Moment]
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._payments = payments
        self._moment = moment

    async def grant(self, credit: Credit) -> Booked:
        """Grants a credit; a purchase is collected first. A repeat collects nothing: it finds the first grant."""
        receipt = await self._collect(credit) if credit.kind is CreditKind.PURCHASE else None
        moment = self._moment()
        return await self._booked(
            credit.account_id,
            await self._store.commit(
                lambda transaction: granting.grant(transaction, credit, *moment, receipt),
                COMMIT_TIMEOUT_S,
                Footprint([credit.account_id]),
            ),
        )

    async def refund(self, account_id: str, idempotency_key: str, amount_nano_usd: int) -> Booked:
        """Takes the money off the account, so that nobody can spend it, then pays it back.

        If the provider refuses, a correction gives it back to the account, and the refusal is raised.
        """
        payment = Payment(account_id, idempotency_key, amount_nano_usd)
        moment = self._moment()
        request = Refund(account_id, idempotency_key, amount_nano_usd, f"payback:{idempotency_key}")
        granted = await self._store.commit(
            lambda transaction: reversals.refund(transaction, request, moment),
            COMMIT_TIMEOUT_S,
            Footprint([account_id]),
        )
        try:
            await self._payments.pay_back(payment)
        except InvalidRequestError:
            await self.correct(
                Correction(account_id, f"payback-refused:{granted.record.transfer.transfer_id}", _id_of(granted), 0)
            )
            raise
        return await self._booked(account_id, granted)

    async def correct(self, correction: Correction) -> Booked:
        """Takes an entry back."""
        moment = self._moment()
        granted = await self._store.commit(
            lambda transaction: reversals.correct(transaction, correction, moment),
            COMMIT_TIMEOUT_S,
            Footprint([correction.account_id]),
        )
        return await self._booked(correction.account_id, granted)

    async def _collect(self, credit: Credit) -> str | None:
        """The receipt of a new purchase; None if it was granted before. Nothing that cannot be granted is collected."""
        now_us = self._moment().now_us

        def look(transaction: LedgerTransaction) -> bool:
            if granting.granted_before(transaction, credit) is not None:
                return False
            granting.check_grant(transaction, credit, now_us)
            return True

        if not await self._store.commit(look, COMMIT_TIMEOUT_S, Footprint([credit.account_id])):
            return None
        return await self._payments.collect(Payment(credit.account_id, credit.idempotency_key, credit.amount_nano_usd))

    async def _booked(self, account_id: str, granted: granting.Granted) -> Booked:
        is_known = await self._outbox.acknowledged(granted.notice_mark, timeout_s=ACKNOWLEDGE_WAIT_S)
        return Booked(granted.record, is_known)


def _id_of(granted: granting.Granted) -> str:
    return granted.record.transfer.transfer_id
