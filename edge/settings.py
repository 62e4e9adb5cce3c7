"""What the edge reads from its environment, once, when it starts.

Owns names, units and defaults; refuses to be read anywhere but in `app.py`.
"""

import ipaddress
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import NoDecode, SettingsConfigDict

from services.runtime.settings import Endpoints, Port, ProcessSettings


def _parse_networks(value: Any) -> Any:
    """Reads `10.0.0.0/8,::1` or the same as a JSON list."""
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(",") if part.strip()]
    return value


Networks = Annotated[
    tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...], NoDecode, BeforeValidator(_parse_networks)
]


class Settings(ProcessSettings):
    """Settings of one edge process, `MWS_EDGE_*`."""

    model_config = SettingsConfigDict(env_prefix="MWS_EDGE_", extra="forbid", frozen=True)

    name: str = "edge-0"
    port: Port = 8080

    auth_endpoints: Endpoints
    """Where auth-and-limits answers."""

    inference_endpoints: Endpoints
    """Where routing-and-inference answers."""

    metering_endpoints: Endpoints = ()
    """Where metering answers; the edge asks it nothing on the API routes."""

    body_limit_bytes: PositiveInt = 32 << 20
    """Largest request body, decompressed. Below the 48 MiB that a message between processes may have."""

    commit_after_s: PositiveFloat = 10.0
    """How long the head of a stream is held for its first content, so that a failure before it is a true status."""

    ping_every_s: PositiveFloat = 10.0
    """Longest silence on a stream; below every idle timeout of proxies in front."""

    generate_timeout_s: PositiveFloat = 900.0
    """Deadline of one answer; what inference allows at most."""

    catalog_ttl_s: PositiveFloat = 5.0
    """How old a list of profiles may be."""

    strangers_per_minute: PositiveInt = 120
    """Requests without a valid key that one address may send per minute."""

    catalogue: Path | None = None
    """The catalogue file, for `company_proxy`: what is discontinued there, and which origins may ask from a browser."""

    docs_assets_url: str = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5"
    """Where the company proxy's page finds `swagger-ui.css` and `swagger-ui-bundle.js`; one's own host will do."""

    trusted_proxies: Networks = Field(default=())
    """Networks of proxies in front whose X-Forwarded-For is believed."""

    base64_embeddings: bool = True
    """Vectors are sent as base64 to who asks for it. False: as numbers always, which every SDK takes as well, at four
    times the size: OpenAI's for Python asks for base64 unasked, and refuses it where it validates answers strictly."""

    test_keys: dict[str, SecretStr] = Field(default_factory=dict)
    """Fixed texts that are taken for an API key of an account: text -> that key, as a JSON object. For suites that
    cannot be told another key; never where strangers reach the edge."""
