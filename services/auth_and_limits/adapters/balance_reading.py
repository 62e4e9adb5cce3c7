"""Asks metering for balances that the hold store does not know: one question for all who wait at the same time.

Owns the gathering of questions; refuses to keep an answer.
"""

import asyncio
from datetime import timedelta
from itertools import islice

from services.auth_and_limits.ports import BalanceSource
from services.auth_and_limits.records import Balance
from services.runtime.errors import GatewayError, StoreUnavailableError

_BATCH = 1_000
_RETRY_IN = timedelta(seconds=1)


class BalanceReader:
    """Reads balances in batches."""

    def __init__(self, source: BalanceSource) -> None:
        self._source = source
        self._wanted: dict[str, asyncio.Future[Balance]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def read(self, account_id: str) -> Balance:
        """What the account has. Raises StoreUnavailableError when metering cannot tell."""
        wanted = self._wanted.get(account_id)
        if wanted is None:
            wanted = self._wanted[account_id] = asyncio.get_running_loop().create_future()
            if self._asking is None:
                # A task of its own: the first who asks may leave while others still wait.
                self._asking = asyncio.get_running_loop().create_task(self._ask(), name="balances")
        return await asyncio.shield(wanted)

    async def close(self) -> None:
        """Stops asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        try:
            await asyncio.sleep(0)  # whoever else asks in this turn is asked for as well
            while self._wanted:
                account_ids = list(islice(self._wanted, _BATCH))
                waiting = {account_id: self._wanted.pop(account_id) for account_id in account_ids}
                await self._answer(waiting)
        finally:
            self._asking = None
            for wanted in self._wanted.values():
                wanted.cancel()
            self._wanted.clear()

    async def _answer(self, waiting: dict[str, asyncio.Future[Balance]]) -> None:
        try:
            found = {balance.account_id: balance for balance in await self._source.balances(list(waiting))}
        except GatewayError as error:
            for wanted in waiting.values():
                unknown = StoreUnavailableError("the balance is not known here, nor could it be asked")
                unknown.retry_in, unknown.__cause__ = _RETRY_IN, error
                wanted.set_exception(unknown)
                wanted.exception()  # whoever asked may have left
            return
        except asyncio.CancelledError:
            for wanted in waiting.values():
                wanted.cancel()
            raise
        for account_id, wanted in waiting.items():
            wanted.set_result(found.get(account_id) or Balance(account_id, 0, 0, 0))
