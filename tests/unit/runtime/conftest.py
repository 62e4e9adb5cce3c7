"""The loop of the runtime's unit tests.

Owns the backend; refuses to hold anything else.
"""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
