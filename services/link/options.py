"""The terms on which links are held: their timings.

Owns the defaults, which are the protocol's; refuses to be configured by the environment. Tests shorten them.
"""

from dataclasses import dataclass
from typing import Any, Final

import grpc

EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]
"""What a read returns at the end of a stream."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """Timings in seconds."""

    ping_every_s: float = 2.0
    dead_after_s: float = 6.0
    """Without anything received. A multiple of `ping_every_s`."""
    max_age_s: float = 600.0
    """The server asks for a new link after this, give or take a fifth."""
    connect_timeout_s: float = 5.0
    """From dialling to the peer's HELLO."""
    connect_grace_s: float = 5.0
    """How long a call waits for a link when there is none; its deadline may come first."""
    backoff_initial_s: float = 0.1
    backoff_max_s: float = 0.5
    """Small: a dial costs little, and a restarted peer should have its callers back within the second."""
    resolve_every_s: float = 2.0


WIRE_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # one connection for each link, never shared
    ("grpc.max_receive_message_length", 128 * 1024),
    ("grpc.max_send_message_length", 128 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)
"""A wire message has at most 64 KiB; gRPC's own limit is a second fence."""
