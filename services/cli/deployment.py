"""The four processes of one machine as values: names, ports, files, environment.

Pure: starts nothing, reads nothing. `manager.py` runs what this module describes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# In the order in which a drain stops them: whoever calls goes before whoever is called.
MODULES: Mapping[str, str] = {
    "edge": "edge",
    "inference": "services.routing_and_inference",
    "metering": "services.metering",
    "auth": "services.auth_and_limits",
}
GRPC_OFFSETS: Mapping[str, int] = {"auth": 0, "inference": 1, "metering": 2}
LINK_PORT_OFFSET = 100
METRICS_PORT_OFFSET = 200


@dataclass(frozen=True, slots=True)
class Deployment:
    """What `mws up` was asked for. Ports are TCP ports on `host`."""

    host: str
    port: int
    grpc_base_port: int
    data_dir: Path
    catalogue: Path | None = None
    plans: Path | None = None
    upstream_url: str | None = None
    upstream_dialect: str = "openai"

    @property
    def base_url(self) -> str:
        """Where SDK users point their client."""
        return f"http://{self.host}:{self.port}"

    @property
    def secrets_dir(self) -> Path:
        return self.data_dir / "secrets"

    def grpc_endpoint(self, service: str) -> str:
        """`host:port` of a service's plain gRPC listener."""
        return f"{self.host}:{self.grpc_base_port + GRPC_OFFSETS[service]}"

    def processes(self) -> list["ProcessSpec"]:
        """Every process, in drain order."""
        return [ProcessSpec(f"{service}-0", service, self._environment(service)) for service in MODULES]

    def ports(self) -> Iterator[int]:
        """Every port that must be free before the start."""
        yield self.port
        for offset in GRPC_OFFSETS.values():
            port = self.grpc_base_port + offset
            yield from (port, port + LINK_PORT_OFFSET, port + METRICS_PORT_OFFSET)

    def _environment(self, service: str) -> dict[str, str]:
        prefix = f"MWS_{service.upper()}_"
        port = self.port if service == "edge" else self.grpc_base_port + GRPC_OFFSETS[service]
        own = {
            "NAME": f"{service}-0",
            "HOST": self.host,
            "PORT": str(port),
            "SECRETS_DIR": str(self.secrets_dir),
            "DATA_DIR": str(self.data_dir),
            **{f"{callee.upper()}_ENDPOINTS": self.grpc_endpoint(callee) for callee in CALLEES[service]},
        }
        if service == "auth" and self.plans:
            own["PLANS"] = str(self.plans)
        if service in ("edge", "auth") and self.catalogue:  # who may use the company proxy, and from where
            own["CATALOGUE"] = str(self.catalogue)
        if service == "inference":
            own |= self._inference_environment()
        return {prefix + name: value for name, value in own.items()}

    def _inference_environment(self) -> dict[str, str]:
        own = {}
        if self.catalogue:
            own["CATALOGUE"] = str(self.catalogue)
        if self.upstream_url:
            own |= {"UPSTREAM_URL": self.upstream_url, "UPSTREAM_DIALECT": self.upstream_dialect}
        return own


CALLEES: Mapping[str, tuple[str, ...]] = {
    "edge": ("auth", "inference", "metering"),
    "inference": ("auth", "metering"),
    "metering": ("auth",),
    "auth": ("metering",),
}


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process: its name (`auth-0`), its service and the variables that it is given."""

    name: str
    service: str
    environment: Mapping[str, str]

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        return MODULES[self.service]
