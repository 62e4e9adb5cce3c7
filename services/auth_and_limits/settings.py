"""The settings of the auth-and-limits process.

Owns what only this service needs; the rest is every process's. Read once, at start.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.auth_and_limits.plans import PACKAGED_PLANS
from services.runtime.settings import Endpoints, ProcessSettings


class IssuerSettings(BaseModel):
    """An OIDC issuer whose tokens teams may use."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    issuer: str = Field(min_length=1)
    """The tokens' `iss`, compared to the letter."""

    audience: str = Field(min_length=1)
    """What must be among the tokens' `aud`."""

    jwks_url: str = ""
    """Where the issuer publishes its keys."""

    jwks_file: Path | None = None
    """A file with its keys, instead of `jwks_url`."""

    @model_validator(mode="after")
    def _names_one_source(self) -> "IssuerSettings":
        if bool(self.jwks_url) == bool(self.jwks_file):
            raise ValueError("either jwks_url or jwks_file must be set")
        return self


class Settings(ProcessSettings):
    """`MWS_AUTH_*`."""

    model_config = SettingsConfigDict(env_prefix="MWS_AUTH_")

    metering_endpoints: Endpoints
    """Where metering answers: it is asked how calls ended whose runner is gone."""

    plans: Path = PACKAGED_PLANS
    """The plan file; the packaged one unless set."""

    key_pepper_file: Path | None = None
    """File with the secret under which API keys are digested; `key_pepper` below `secrets_dir` unless set."""

    postgres_url: SecretStr | None = None
    """PostgreSQL for accounts, keys, teams and the audit log, shared by all replicas: `postgresql://user@host:port/name`.
    Unset: a SQLite file of this process alone."""

    migrate: bool = True
    """Whether a start may bring the schema of accounts up. False: refuse to start until somebody else did."""

    store_timeout_s: float = Field(default=0.25, gt=0)
    """After this many seconds a hold journal that did not answer counts as down; below the runners' 2 s for `Admit`."""

    redis_url: SecretStr | None = None
    """Redis or Valkey for holds, buckets and balances, shared by all replicas: `redis://[user:password@]host:port[,…]`,
    `rediss://…`, or `unix:///path`. Of several hosts, the primary is used. Unset: the embedded store."""

    learning_s: float = Field(default=6.0, ge=0)
    """After the shared store was lost nobody is admitted for so long, while runners renew their holds (every 5 s)."""

    issuers: tuple[IssuerSettings, ...] = ()
    """OIDC issuers of teams, as a JSON list."""

    catalogue: Path | None = None
    """The catalogue file, whose `company_proxy.issuers` are the realms of staff. None: no staff may call."""

    @property
    def key_pepper(self) -> bytes:
        """The secret itself. Raises OSError."""
        return (self.key_pepper_file or self.secrets_dir / "key_pepper").read_text().strip().encode()


class MigrationSettings(BaseSettings):
    """The few of `MWS_AUTH_*` that say where accounts are kept."""

    model_config = SettingsConfigDict(
        env_prefix="MWS_AUTH_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    postgres_url: SecretStr | None = None
    """As of the service."""

    data_dir: Path | None = None
    """As of the service; for the SQLite file."""
