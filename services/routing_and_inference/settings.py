"""The settings of the inference process.

Owns what only inference needs, and the look-up of the secrets that a catalogue names; the rest is every process's.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.routing_and_inference.catalog_file import PACKAGED
from services.runtime.settings import Endpoints, ProcessSettings


class Settings(ProcessSettings):
    """`MWS_INFERENCE_*`."""

    model_config = SettingsConfigDict(env_prefix="MWS_INFERENCE_")

    auth_endpoints: Endpoints
    """Where auth-and-limits answers: it admits every call."""

    metering_endpoints: Endpoints
    """Where metering answers: it records the usage of every call."""

    catalogue: Path = PACKAGED
    """The catalogue file; replaces the packaged one as a whole."""

    upstream_url: Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+[^\s?#@]*$")] | None = None
    """One upstream for every generation profile, instead of the catalogue's; goes with `upstream_dialect`."""

    upstream_dialect: Literal["openai", "anthropic", "simulated"] | None = None
    """The dialect of `upstream_url`; `simulated` needs none."""

    upstream_model: str = ""
    """The model name that `upstream_url` knows. Empty: the profile's slug."""

    upstream_api_key: SecretStr = SecretStr("")
    """The key for `upstream_url`. Empty: none is sent."""

    simulated_pace: Literal["profile", "instant"] = "profile"
    """Whether the simulated upstream streams at the profile's tokens per second, or at once."""

    spool_max_bytes: PositiveInt = 256 * 1024 * 1024
    """Size of the spool. When it is reached and metering does not answer, calls are refused."""

    @model_validator(mode="after")
    def _one_upstream_is_whole(self) -> Self:
        if self.upstream_url is not None and self.upstream_dialect is None:
            raise ValueError("upstream_dialect is required with upstream_url")
        if self.upstream_url is None and self.upstream_dialect in ("openai", "anthropic"):
            raise ValueError("upstream_url is required with this upstream_dialect")
        return self


def secret_of(variable: str) -> str | None:
    """The value of an environment variable that the catalogue names for an upstream's key."""
    return os.environ.get(variable)  # noqa: TID251 - this is the settings module; the names are the catalogue's
