"""Where Redis answers: what `redis://`, `rediss://` and `unix://` addresses say, and of several hosts each one.

Pure: opens nothing.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

DEFAULT_PORT = 6379
_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")


@dataclass(frozen=True, slots=True)
class Node:
    """One server: a host and a port, or the path of a socket."""

    host: str = ""
    port: int = DEFAULT_PORT
    path: str = ""


@dataclass(frozen=True, slots=True)
class RedisNodes:
    """Servers of which one is the primary, and how to log in."""

    nodes: tuple[Node, ...]
    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    has_tls: bool = False


def parse_redis_url(url: str) -> RedisNodes:
    """Reads `redis://[user:password@]host[:port][,host…][/database]`. Raises ValueError, which repeats no secret."""
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise ValueError(f"a Redis URL begins with one of {', '.join(_SCHEMES)}, and `://`")
    login, _, place = rest.rpartition("@")
    username, _, password = login.partition(":")
    if scheme == "unix":
        nodes: tuple[Node, ...] = (Node(path=place.partition("?")[0]),)
        database = 0
    else:
        hosts, _, number = place.partition("/")
        number = number.partition("?")[0]
        if not re.fullmatch(r"\d*", number):
            raise ValueError("the path of a Redis URL is the number of a database")
        nodes, database = tuple(_node(host) for host in hosts.split(",")), int(number or 0)
    has_tls = scheme in ("rediss", "valkeys")
    return RedisNodes(nodes, unquote(username), unquote(password), database, has_tls)


def _node(text: str) -> Node:
    split = urlsplit(f"//{text}")
    try:
        port = split.port
    except ValueError:
        port = -1
    if not split.hostname or port == -1:
        raise ValueError("a host of a Redis URL is written host or host:port")
    return Node(split.hostname, port or DEFAULT_PORT)
