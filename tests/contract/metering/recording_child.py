"""A process that records usage as fast as it can and prints the ids that were acknowledged, until it is killed.

Owns nothing; it exists to die.
"""

import asyncio
import sys
from pathlib import Path

from tests.contract.metering.building import Bookkeeper, a_credit, an_event
from tests.contract.metering.places import Database, File, Place


async def main(place: Place) -> None:
    """Eight writers at once, so that groups form."""
    async with place.open() as store:
        books = Bookkeeper(store)
        await books.register()

        async def write(account_id: str) -> None:
            while True:
                await books.grant(a_credit(account_id=account_id))
                outcomes = await books.record(*(an_event(account_id=account_id) for _ in range(3)))
                sys.stdout.write("".join(f"{outcome.call_id}\n" for outcome in outcomes))
                sys.stdout.flush()

        await asyncio.gather(*(write(f"account-{index}") for index in range(8)))


if __name__ == "__main__":
    where = sys.argv[1]
    asyncio.run(main(Database(where) if "://" in where else File(Path(where))))
