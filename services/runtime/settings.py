"""The settings that every process has: its name, addresses, folders and limits.

Owns what is common to all of them and how an endpoint list is written; refuses to know what a single service needs.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, NonNegativeFloat
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LINK_PORT_OFFSET = 100
METRICS_PORT_OFFSET = 200

Port = Annotated[int, Field(ge=0, le=65535)]


def _parse_endpoints(value: Any) -> Any:
    """Reads `a:1,b:2` or `["a:1", "b:2"]`; every entry is `host:port` or `dns:host:port`."""
    if isinstance(value, str):
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(",") if part.strip()]
    for endpoint in value:
        host, _, port = str(endpoint).removeprefix("dns:").rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError("an endpoint is written host:port or dns:host:port")
    return value


Endpoints = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_endpoints)]
"""Where replicas of a service answer plain gRPC: a list, or names that are resolved again and again (`dns:`)."""


def _offset_from_port(offset: int) -> Any:
    """A default that lies `offset` above the process's own port; port 0 (any free one) stays 0."""

    def default(fields: dict[str, Any]) -> int:
        port: int = fields.get("port", 0)
        return port + offset if port else 0

    return default


def _secrets_below_data(fields: dict[str, Any]) -> Path:
    data_dir: Path = fields.get("data_dir", Path())
    return data_dir / "secrets"


class ProcessSettings(BaseSettings):
    """What every process reads from its environment, once, when it starts.

    A service subclasses it with its own prefix; a missing or malformed value ends the start with the field's name.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True, hide_input_in_errors=True
    )

    name: str = Field(min_length=1, max_length=64)
    """Name of this process among its siblings, such as `auth-0`; stands in log lines and traces."""

    host: str = "127.0.0.1"
    """Address to listen on, for every listener."""

    port: Port
    """Port of plain gRPC (services) or HTTP (edge); 0 takes a free one."""

    link_port: Port = Field(default_factory=_offset_from_port(LINK_PORT_OFFSET))
    """Port of the link; callers expect it 100 above `port`."""

    metrics_port: Port = Field(default_factory=_offset_from_port(METRICS_PORT_OFFSET))
    """Port of `/metrics` over HTTP; 200 above `port`. The edge does not open it: it serves `/metrics` itself."""

    data_dir: Path
    """Folder of everything that this process keeps."""

    secrets_dir: Path = Field(default_factory=_secrets_below_data)
    """Folder of `<class>.token` and `callers.json`; below `data_dir` unless set."""

    transport: Literal["link", "grpc"] = Field(
        default="link", validation_alias=AliasChoices("MWS_TRANSPORT", "transport")
    )
    """How this process calls the others. Both are served. `MWS_TRANSPORT`, without a prefix: one choice for all."""

    drain_s: NonNegativeFloat = 20.0
    """Seconds that running calls get to end after SIGTERM; below the pod's termination grace less its preStop sleep."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written; `info` has one line per call."""

    trace_endpoint: str | None = None
    """OTLP/gRPC address for spans, such as `http://collector:4317`. None: no spans; trace context still passes."""

    trace_file: Path | None = None
    """File that spans are appended to as JSON lines, beside or instead of `trace_endpoint`."""
