"""The settings of the metering process.

Owns what only metering needs; the rest is every process's. Read once, at start.
"""

from decimal import Decimal

from pydantic import PositiveFloat, SecretStr
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Endpoints, ProcessSettings

NANO_PER_USD = 1_000_000_000


class Settings(ProcessSettings):
    """`MWS_METERING_*`."""

    model_config = SettingsConfigDict(env_prefix="MWS_METERING_")

    auth_endpoints: Endpoints
    """Where auth-and-limits answers: it hears of every balance change, and identifies teams."""

    postgres_url: SecretStr | None = None
    """PostgreSQL for the ledger, shared by all replicas: `postgresql://user:password@host:port/name`. Unset: a SQLite
    file of this process alone."""

    migrate: bool = True
    """Whether a start may bring the schema in PostgreSQL up. False: refuse to start until somebody else did."""

    store_timeout_s: PositiveFloat = 0.25
    """After this many seconds a ledger that did not answer counts as down, on the path of a call."""

    low_balance_usd: tuple[Decimal, ...] = (Decimal(10), Decimal(1), Decimal(0))
    """A balance that falls below one of these, in dollars, is told of: a log line, a metric and a balance event."""

    sweep_interval_s: PositiveFloat = 2.0
    """Seconds between looks for promotions that have expired."""

    @property
    def low_balance_nano_usd(self) -> tuple[int, ...]:
        """The thresholds in nano-USD, the highest first."""
        return tuple(sorted({int(each * NANO_PER_USD) for each in self.low_balance_usd}, reverse=True))
