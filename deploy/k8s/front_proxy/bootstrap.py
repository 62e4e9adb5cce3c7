"""Builds the front proxy's Envoy bootstrap: public HTTP to the edge, teams' gRPC to the services.

Owns the proxy's routes, timeouts and health checks; links between our processes never pass through here.
Run `python -m deploy.k8s.front_proxy.bootstrap` to print the configuration that the manifests carry.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

from envoy_data_plane.envoy.config.bootstrap.v3 import Bootstrap

# Types that are packed into `Any` register themselves when their module is imported.
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as _router  # noqa: F401
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as _manager  # noqa: F401
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as _protocols  # noqa: F401

TYPE = "type.googleapis.com/"
PACKAGES = {"auth": "admission", "inference": "inference", "metering": "metering"}
LONGEST_CALL = "960s"
"""Above `Generate`'s own deadline of 900 s, which must be the one that ends a call."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address: a DNS name or an IP address, and a port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class FrontProxy:
    """Where the proxy listens and whom it reaches. `services` are those of PACKAGES."""

    http: Address
    grpc: Address
    admin: Address
    edge: Address
    services: dict[str, Address]


def bootstrap(proxy: FrontProxy) -> dict[str, Any]:
    """The bootstrap as JSON, checked field by field. Raises KeyError for a field that Envoy does not have."""
    tree = {
        "node": {"id": "front-proxy", "cluster": "front-proxy"},
        "admin": {"address": _address(proxy.admin)},
        "static_resources": {
            "listeners": [
                _listener("public-http", proxy.http, [_route("/", "edge")]),
                _listener(
                    "team-grpc",
                    proxy.grpc,
                    [_route(f"/mws.{package}.v1.", service) for service, package in PACKAGES.items()],
                ),
            ],
            "clusters": [
                _cluster("edge", proxy.edge, _HTTP1, {"http_health_check": {"path": "/readyz"}}),
                *(
                    _cluster(
                        service, proxy.services[service], _HTTP2, {"grpc_health_check": {"service_name": "readiness"}}
                    )
                    for service in PACKAGES
                ),
            ],
        },
    }
    return Bootstrap.from_dict(tree).to_dict()


_HTTP1: dict[str, Any] = {"http_protocol_options": {}}
_HTTP2: dict[str, Any] = {"http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "5s"}}}


def _address(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _route(prefix: str, cluster: str) -> dict[str, Any]:
    # A stream lives while it has something to say: the edge sends pings every 10 s, the call's own deadline ends it.
    route: dict[str, Any] = {"cluster": cluster, "timeout": "0s", "idle_timeout": "120s"}
    if cluster != "edge":
        route["max_stream_duration"] = {"grpc_timeout_header_max": "0s", "max_stream_duration": LONGEST_CALL}
    return {"match": {"prefix": prefix}, "route": route}


def _listener(name: str, address: Address, routes: list[dict[str, Any]]) -> dict[str, Any]:
    manager = {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name.replace("-", "_"),
        "codec_type": "AUTO",
        "use_remote_address": True,
        # Ids are minted by the edge; a caller's own is echoed there.
        "generate_request_id": False,
        "stream_idle_timeout": "120s",
        "request_headers_timeout": "10s",
        "normalize_path": True,
        "route_config": {
            "name": name,
            "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}],
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": name,
        "address": _address(address),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _cluster(name: str, address: Address, protocol: dict[str, Any], check: dict[str, Any]) -> dict[str, Any]:
    options = {
        "@type": TYPE + _OPTIONS,
        "explicit_http_config": protocol,
    }
    return {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "dns_refresh_rate": "2s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(address)}}]}],
        },
        "typed_extension_protocol_options": {_OPTIONS: options},
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "2s",
                "no_traffic_interval": "2s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                **check,
            }
        ],
        "circuit_breakers": {
            "thresholds": [
                {"max_connections": 10_000, "max_pending_requests": 10_000, "max_requests": 100_000, "max_retries": 10}
            ]
        },
        "outlier_detection": {"consecutive_gateway_failure": 5, "interval": "2s", "max_ejection_percent": 50},
    }


_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

KUBERNETES = FrontProxy(
    http=Address("0.0.0.0", 8080),  # noqa: S104 - the listener of a pod
    grpc=Address("0.0.0.0", 9090),  # noqa: S104
    admin=Address("127.0.0.1", 9901),
    edge=Address("edge-headless", 8080),
    services={
        "auth": Address("auth-and-limits", 50051),
        "inference": Address("routing-and-inference", 50052),
        "metering": Address("metering", 50053),
    },
)


def main() -> None:
    """Prints the configuration for Kubernetes as JSON, which is YAML too."""
    json.dump(bootstrap(KUBERNETES), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
