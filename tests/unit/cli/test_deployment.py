"""What `mws up` is asked for becomes processes, ports and endpoint lists.

Owns the pure description; refuses to start anything.
"""

from pathlib import Path

from services.cli.deployment import Deployment

THREE = Deployment(
    "127.0.0.1",
    8080,
    50051,
    Path("/data"),
    postgres_url="postgresql://user:secret@db/mws",
    redis_url="redis://:secret@cache/0",
    replicas={"auth": 3, "inference": 2},
)


def test_a_replica_listens_ten_ports_above_the_one_before_it() -> None:
    assert THREE.endpoints("auth") == ["127.0.0.1:50051", "127.0.0.1:50061", "127.0.0.1:50071"]
    assert THREE.endpoints("inference") == ["127.0.0.1:50052", "127.0.0.1:50062"]
    assert THREE.endpoints("edge") == ["127.0.0.1:8080"]


def test_every_process_has_a_name_of_its_own() -> None:
    names = [spec.name for spec in THREE.processes()]

    assert names == ["edge-0", "inference-0", "inference-1", "metering-0", "auth-0", "auth-1", "auth-2"]


def test_no_two_listeners_share_a_port() -> None:
    ports = list(Deployment("h", 8080, 50051, Path("/d"), replicas=dict.fromkeys(("auth", "inference"), 10)).ports())

    assert len(set(ports)) == len(ports)


def test_callers_know_every_replica() -> None:
    [inference, *_] = [spec for spec in THREE.processes() if spec.service == "inference"]

    assert inference.environment["MWS_INFERENCE_AUTH_ENDPOINTS"] == ",".join(THREE.endpoints("auth"))


def test_a_store_is_told_to_the_services_that_use_it_and_to_nobody_else() -> None:
    told = {spec.name: {name for name in spec.environment if name.endswith("_URL")} for spec in THREE.processes()}

    assert told["auth-2"] == {"MWS_AUTH_POSTGRES_URL", "MWS_AUTH_REDIS_URL"}
    assert told["metering-0"] == {"MWS_METERING_POSTGRES_URL"}
    assert told["edge-0"] == told["inference-1"] == set()


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(THREE)
    assert "secret" not in repr(THREE.processes())
