"""What the `mws` command takes from the environment.

Owns reading it, once; refuses to hold defaults that belong to the command's own options.
"""

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CliSettings(BaseSettings):
    """`MWS_…` variables of the command line."""

    model_config = SettingsConfigDict(env_prefix="MWS_", frozen=True, extra="ignore")

    admin_token: SecretStr | None = None
    """Service token of the `admin` class. Absent: `admin.token` under the data directory's secrets."""
