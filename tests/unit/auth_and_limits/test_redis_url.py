"""Where Redis answers, as its URL says it.

Owns the forms that are read, and that no password is shown.
"""

import pytest

from services.auth_and_limits.adapters.redis_url import Node, RedisNodes, parse_redis_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("redis://cache", RedisNodes((Node("cache", 6379),)), id="a host"),
        pytest.param("redis://cache:7000/3", RedisNodes((Node("cache", 7000),), database=3), id="port and database"),
        pytest.param("redis://[::1]:7000", RedisNodes((Node("::1", 7000),)), id="an IPv6 address"),
        pytest.param("redis://:p%40ss@cache", RedisNodes((Node("cache"),), "", "p@ss"), id="a password"),
        pytest.param("valkey://me:x@cache", RedisNodes((Node("cache"),), "me", "x"), id="a user, and Valkey"),
        pytest.param("rediss://cache", RedisNodes((Node("cache"),), has_tls=True), id="TLS"),
        pytest.param("unix:///run/redis.sock", RedisNodes((Node(path="/run/redis.sock"),)), id="a socket"),
        pytest.param("redis://a:1,b:2/0", RedisNodes((Node("a", 1), Node("b", 2))), id="several, one the primary"),
    ],
)
def test_a_url_names_servers(url: str, expected: RedisNodes) -> None:
    assert parse_redis_url(url) == expected


@pytest.mark.parametrize(
    "url", ["", "cache:6379", "http://cache", "redis://", "redis://cache:x", "redis://cache/x", "redis://a,,b"]
)
def test_what_is_no_url_of_redis_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="Redis URL") as refused:
        parse_redis_url(url.replace("://", "://user:secret@"))
    assert "secret" not in str(refused.value)


def test_a_password_is_not_shown() -> None:
    assert "hush" not in repr(parse_redis_url("redis://user:hush@cache"))
