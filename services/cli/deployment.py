"""The processes of one machine as values: names, ports, files, environment.

Pure: starts nothing, reads nothing. `manager.py` runs what this module describes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
REPLICA_PORT_OFFSET = 10
MOST_REPLICAS = 10
"""Of one service: the next one's ports would be those of the links."""


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
    postgres_url: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    replicas: Mapping[str, int] = field(default_factory=dict)
    """How many processes of a service; one of each that is not named."""

    @property
    def base_url(self) -> str:
        """Where SDK users point their client."""
        return f"http://{self.host}:{self.port}"

    @property
    def secrets_dir(self) -> Path:
        return self.data_dir / "secrets"

    def endpoints(self, service: str) -> list[str]:
        """`host:port` of the HTTP (edge) or plain gRPC listener of each of a service's processes."""
        return [f"{self.host}:{self.port_of(service, index)}" for index in range(self.replicas.get(service, 1))]

    def port_of(self, service: str, index: int) -> int:
        """The port of one process."""
        first = self.port if service == "edge" else self.grpc_base_port + GRPC_OFFSETS[service]
        return first + REPLICA_PORT_OFFSET * index

    def processes(self) -> list["ProcessSpec"]:
        """Every process, in drain order."""
        return [
            ProcessSpec(f"{service}-{index}", service, endpoint, self._environment(service, index))
            for service in MODULES
            for index, endpoint in enumerate(self.endpoints(service))
        ]

    def ports(self) -> Iterator[int]:
        """Every port that must be free before the start."""
        for service in MODULES:
            for index in range(self.replicas.get(service, 1)):
                port = self.port_of(service, index)
                yield port
                if service != "edge":
                    yield from (port + LINK_PORT_OFFSET, port + METRICS_PORT_OFFSET)

    def _environment(self, service: str, index: int) -> dict[str, str]:
        prefix = f"MWS_{service.upper()}_"
        own = {
            "NAME": f"{service}-{index}",
            "HOST": self.host,
            "PORT": str(self.port_of(service, index)),
            "SECRETS_DIR": str(self.secrets_dir),
            "DATA_DIR": str(self.data_dir),
            **{f"{callee.upper()}_ENDPOINTS": ",".join(self.endpoints(callee)) for callee in CALLEES[service]},
        }
        if service in ("auth", "metering") and self.postgres_url:
            own["POSTGRES_URL"] = self.postgres_url
        if service == "auth" and self.redis_url:
            own["REDIS_URL"] = self.redis_url
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
    """One process: its name (`auth-0`), its service, where it answers and the variables that it is given."""

    name: str
    service: str
    endpoint: str
    environment: Mapping[str, str] = field(repr=False)

    @property
    def module(self) -> str:
        """What `python -m` runs."""
        return MODULES[self.service]
