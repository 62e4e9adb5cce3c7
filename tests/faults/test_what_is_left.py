"""After the faults: nothing stays held for a call that is over.

Owns the last look at the accounts whose calls were hit; it stands last so that their leases ran out meanwhile.
"""

import pytest

from tests.breaking import nothing_is_held
from tests.gateway import Account
from tests.load import eventually
from tests.paced import Paced


@pytest.mark.timeout(120)
async def test_no_hold_outlives_its_call_by_more_than_its_lease(faulty: Paced, hit_accounts: list[Account]) -> None:
    for account in hit_accounts:
        await eventually(lambda: nothing_is_held(faulty, account), within_s=45, why="all holds settled")  # noqa: B023
