"""The settings of the metering process.

Owns what only metering needs; the rest is every process's. Read once, at start.
"""

from pydantic import PositiveFloat
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Endpoints, ProcessSettings


class Settings(ProcessSettings):
    """`MWS_METERING_*`."""

    model_config = SettingsConfigDict(env_prefix="MWS_METERING_")

    auth_endpoints: Endpoints
    """Where auth-and-limits answers: it hears of every balance change, and identifies teams."""

    store_timeout_s: PositiveFloat = 0.25
    """After this many seconds a ledger that did not answer counts as down, on the path of a call."""

    sweep_interval_s: PositiveFloat = 2.0
    """Seconds between looks for promotions that have expired."""
