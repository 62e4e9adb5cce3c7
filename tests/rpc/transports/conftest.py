"""Fixtures of the transports' suite.

Owns the parametrisation over transports; refuses to hold code (see probe_service.py).
"""

import pytest

from tests.rpc.transports.probe_service import TRANSPORTS, Opener


@pytest.fixture(params=["plain", "link", "in_process"])
def open_channel(request: pytest.FixtureRequest) -> Opener:
    """Opens a channel to a probe service, over each transport in turn."""
    return TRANSPORTS[request.param]
