"""Use case: the answer of a call under an idempotency key is kept with its posting, for a day.

Owns how long and how much is kept, and for whom a key stands; refuses to know what an answer is.
"""

from typing import NamedTuple

from services.metering.ports import KeptAnswer, KeptAnswerRecord, LedgerTransaction
from services.runtime.errors import NotFoundError

KEEP_US = 86_400_000_000
MAX_MESSAGE_BYTES = 1 << 20
_SWEPT_AT_ONCE = 200


class Keeping(NamedTuple):
    """An answer on its way into a posting's transaction."""

    call_id: str
    account_id: str
    answer: KeptAnswer


def keep(transaction: LedgerTransaction, keeping: Keeping, now_us: int) -> str:
    """Keeps an answer, unless another call's is kept under its key; returns the call for which the key stands."""
    answer = keeping.answer
    if len(answer.message) > MAX_MESSAGE_BYTES:
        answer = answer._replace(message=b"")  # its key is taken all the same: nothing is charged twice
    record = KeptAnswerRecord(keeping.account_id, keeping.call_id, answer, now_us + KEEP_US)
    return transaction.keep_answer(record, now_us)


def find(transaction: LedgerTransaction, account_id: str, idempotency_key: str, now_us: int) -> KeptAnswerRecord:
    """What is kept under a key. Raises NotFoundError."""
    record = transaction.kept_answer(account_id, idempotency_key)
    if record is None or record.kept_until_us <= now_us:
        raise NotFoundError("no answer is kept under this idempotency key")
    return record


def sweep(transaction: LedgerTransaction, now_us: int) -> int:
    """Forgets answers that were kept long enough. Returns how many."""
    return transaction.forget_answers(now_us, _SWEPT_AT_ONCE)
