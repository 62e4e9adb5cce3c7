"""Fixtures of the runtime's tests over real sockets.

Owns the loop and the `serve` fixture; refuses to hold code (see dummies.py).
"""

import functools
from pathlib import Path

import pytest

from tests.rpc.runtime.dummies import Serve, serving


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(behave) as running`: a whole process in this loop."""
    return functools.partial(serving, tmp_path)
