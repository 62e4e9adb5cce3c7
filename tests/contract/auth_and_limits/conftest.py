"""Fixtures of the stores' suites.

Owns their opening and closing; refuses anything else.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.auth_and_limits.hold_store import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    it = Bench(tmp_path / "auth")
    await it.open()
    yield it
    await it.holds.close()
