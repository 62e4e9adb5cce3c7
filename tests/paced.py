"""A gateway in front of the logging provider, and the reconciliation of one with the other.

Owns what must be true between the provider's log and the ledger; refuses to know how calls were made.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.gateway import Account, Gateway
from tests.load import Answer, Caller, eventually
from tests.provider import Provider, Served

INPUT_NANO_USD, OUTPUT_NANO_USD = 480, 1080
"""What a token of the profile `dragon` costs."""


@dataclass(frozen=True, slots=True)
class Paced:
    """Both ends of the system under test."""

    gateway: Gateway
    provider: Provider

    def account(self, name: str = "test", *, credit_usd: str | None = "100", **ceilings: int) -> Account:
        """A new account."""
        return self.gateway.account(name, credit_usd=credit_usd, **ceilings)

    def caller(self, account: Account, *, may_be_cut: bool = False) -> Caller:
        """A caller with the account's key."""
        return Caller(self.gateway.base_url, account.api_key, may_be_cut=may_be_cut)

    def entries(self, account: Account) -> dict[str, list[dict[str, Any]]]:
        """The account's newest ledger entries of calls, by call id."""
        found = self._all_entries(account) or {"entries": []}
        by_call: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in found["entries"]:
            if entry["call_id"]:
                by_call[entry["call_id"]].append(entry)
        return dict(by_call)

    def _all_entries(self, account: Account) -> Any:
        # Nothing, rather than a failure, while metering is away: whoever asks then asks again.
        return self.gateway.mws("ledger", "entries", "--account", account.account_id, "--most", "100000", check=False)

    async def reconciled(self, account: Account, answers: Iterable[Answer], *, within_s: float = 15.0) -> None:
        """Waits until every complete answer is posted (its usage may wait in the spool), then reconciles."""
        complete = {answer.call_id for answer in answers if answer.ok}
        missing = f"entries of {len(complete)} complete answers"
        await eventually(lambda: complete <= self.entries(account).keys(), within_s=within_s, why=missing)
        reconcile(answers, self.provider.log(), self.entries(account))

    def balance_nano_usd(self, account: Account) -> int:
        """The account's balance."""
        return int(self.gateway.mws("balance", "--account", account.account_id)["balance_nano_usd"])


def price_nano_usd(served: Served) -> int:
    """What the provider's own count costs."""
    return served.input_tokens * INPUT_NANO_USD + served.output_tokens * OUTPUT_NANO_USD


def reconcile(answers: Iterable[Answer], log: Iterable[Served], entries: dict[str, list[dict[str, Any]]]) -> None:
    """Every complete answer has one entry, for exactly the tokens that the provider reported; no call has two."""
    by_call: dict[str, list[Served]] = defaultdict(list)
    for served in log:
        by_call[served.call_id].append(served)
    doubled = [call_id for call_id, posted in entries.items() if len(posted) != 1]
    assert not doubled, f"more than one entry: {doubled}"
    strange = entries.keys() - by_call.keys()
    assert not strange, f"entries of calls that never reached the provider: {strange}"
    for answer in answers:
        if not answer.ok:
            continue
        assert answer.call_id in entries, f"answered and never posted: {answer.call_id}"
        (served,) = [served for served in by_call[answer.call_id] if served.finished and served.status == 200]
        (entry,) = entries[answer.call_id]
        assert entry["rule"] == "complete", entry
        assert entry["amount_nano_usd"] == -price_nano_usd(served), (entry, served)
        assert answer.usage == (served.input_tokens, served.output_tokens)
