"""Fixtures of auth-and-limits as callers see it.

Owns their opening and closing; refuses anything else.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.rpc.auth_and_limits.serving import Running, serving


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as it:
        yield it
