"""Three replicas of auth-and-limits on a real PostgreSQL and a real Redis, as separate processes.

Owns that what one replica was told holds on all of them, and that the loss of PostgreSQL is felt by strangers alone.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from mws.admission.v1 import account_service_pb2, admission_service_pb2, key_service_pb2

from tests.gateway import Account, Gateway
from tests.load import eventually
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer
from tests.team_calls import Said, Target, call

REPLICAS = 3
LIMITS = "mws.admission.v1.AdmissionService", "GetLimits"
OK = grpc.StatusCode.OK
UNKNOWN = Said(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_INVALID")

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def gateway(postgres_session: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    postgres_session.start()
    url = postgres_session.create_database()
    folder = tmp_path_factory.mktemp("scale")
    redis = RedisServer(folder / "redis")
    redis.start()
    options = ["--postgres-url", url, "--redis-url", redis.url, "--replicas", f"auth={REPLICAS}"]
    try:
        with Gateway(folder / "data", *options, environment={"MWS_INFERENCE_SIMULATED_PACE": "instant"}) as running:
            yield running
    finally:
        redis.stop()
        postgres_session.start()


def decisions(gateway: Gateway, api_key: str) -> list[Said]:
    """What each replica decides now about a key."""
    return [
        call(Target(address(gateway, index), *LIMITS), admission_service_pb2.GetLimitsRequest(), api_key)
        for index in range(REPLICAS)
    ]


def address(gateway: Gateway, index: int) -> str:
    return f"{gateway.host}:{gateway.grpc_base_port + 10 * index}"


def ask(gateway: Gateway, index: int, service: str, method: str, request: Any) -> Any:
    """An administrator's call to one replica."""
    said = call(Target(address(gateway, index), f"mws.admission.v1.{service}", method), request, gateway.token("admin"))
    assert said.code is OK, said
    return said.responses[0]


def new_key(gateway: Gateway, index: int, account: Account) -> tuple[str, str]:
    made = ask(
        gateway, index, "KeyService", "CreateKey", key_service_pb2.CreateKeyRequest(account_id=account.account_id)
    )
    return made.key.key_id, made.api_key


def test_a_key_made_by_one_replica_works_on_all_and_one_revoked_by_another_on_none(gateway: Gateway) -> None:
    account = gateway.account("everywhere")
    for index in range(REPLICAS):
        key_id, text = new_key(gateway, index, account)
        assert [said.code for said in decisions(gateway, text)] == [OK] * REPLICAS
        revoke = key_service_pb2.RevokeKeyRequest(key_id=key_id)
        ask(gateway, (index + 1) % REPLICAS, "KeyService", "RevokeKey", revoke)
        assert decisions(gateway, text) == [UNKNOWN] * REPLICAS


def test_a_plan_and_a_payment_act_at_the_next_decision_of_every_replica(gateway: Gateway) -> None:
    made = gateway.mws("account", "create", "--name", "moving up")

    def ceilings() -> list[int]:
        return [said.responses[0].limits.requests.limit for said in decisions(gateway, made["api_key"])]

    seen = [ceilings()]
    gateway.mws("credit", "grant", "--account", made["account_id"], "--usd", "25", "--idempotency-key", "p")
    seen.append(ceilings())
    wanted = account_service_pb2.Account(account_id=made["account_id"], plan="enterprise")
    update = account_service_pb2.UpdateAccountRequest(account=wanted, update_mask=FieldMask(paths=["plan"]))
    ask(gateway, 2, "AccountService", "UpdateAccount", update)
    seen.append(ceilings())

    assert seen == [[1000] * REPLICAS, [3000] * REPLICAS, [150_000] * REPLICAS]


async def test_while_postgresql_is_killed_known_keys_go_on_and_no_process_has_to_restart(
    gateway: Gateway, postgres: PostgresServer
) -> None:
    account = gateway.account("goes on")
    pids = [(gateway.data_dir / "run" / f"auth-{index}.pid").read_text() for index in range(REPLICAS)]
    key_id, unused = new_key(gateway, 0, account)
    assert [said.code for said in decisions(gateway, account.api_key)] == [OK] * REPLICAS
    async with killed(postgres):
        assert [said.code for said in decisions(gateway, account.api_key)] == [OK] * REPLICAS
        away = Said(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert decisions(gateway, unused) == [away] * REPLICAS
    await eventually(
        lambda: [said.code for said in decisions(gateway, unused)] == [OK] * REPLICAS,
        within_s=15,
        why="all replicas read accounts again",
    )
    ask(gateway, 1, "KeyService", "RevokeKey", key_service_pb2.RevokeKeyRequest(key_id=key_id))

    assert decisions(gateway, unused) == [UNKNOWN] * REPLICAS
    assert pids == [(gateway.data_dir / "run" / f"auth-{index}.pid").read_text() for index in range(REPLICAS)]


@asynccontextmanager
async def killed(postgres: PostgresServer) -> AsyncIterator[None]:
    await asyncio.to_thread(postgres.kill)
    try:
        yield
    finally:
        await asyncio.to_thread(postgres.start)


def test_the_data_directory_holds_no_accounts(gateway: Gateway) -> None:
    found: list[Path] = list(gateway.data_dir.rglob("accounts.sqlite3*"))
    assert found == []
