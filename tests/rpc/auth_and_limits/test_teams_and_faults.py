"""How teams prove who they are, and what callers see while a store is down.

Owns the way from a bearer value to a caller, and invariant: a store that is down is a 503, never a 401.
"""

import asyncio
import json
import sqlite3
import time
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from mws.admission.v1 import account_service_pb2 as pb
from mws.admission.v1 import key_service_pb2 as key_pb
from mws.common.v1 import credential_pb2

from services.auth_and_limits.adapters.sql_migrations import AccountSchemaError
from services.auth_and_limits.app import open_service
from services.auth_and_limits.plans import PlanFileError
from services.runtime.calls import Caller, CallerClass
from services.runtime.errors import InvalidCredentialError, StoreUnavailableError
from services.runtime.ids import new_id
from tests.rpc.auth_and_limits.serving import TIMEOUT_S, admit_request, by_key, serving, settings_for

ISSUER = "https://idp.example"
KEY = RSAKey.generate_key(2048, {"kid": "k"})


def token(subject: str) -> str:
    claims = {"iss": ISSUER, "aud": "mws", "sub": subject, "exp": int(time.time()) + 60}
    return jwt.encode({"alg": "RS256", "kid": "k"}, claims, KEY)


def issuers(folder: Path) -> tuple[dict[str, str], ...]:
    path = folder / "jwks.json"
    path.write_text(json.dumps({"keys": [KEY.as_dict(private=False)]}))
    return ({"issuer": ISSUER, "audience": "mws", "jwks_file": str(path)},)


async def test_an_access_token_acts_for_its_teams_account_until_the_team_is_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path, issuers=issuers(tmp_path)) as running:
        account_id = await running.new_account()
        stub = (await running.by(CallerClass.ADMIN)).accounts
        request = pb.CreateTeamRequest(account_id=account_id, issuer=ISSUER, subject="svc")
        team = (await stub.CreateTeam(request, timeout=TIMEOUT_S)).team
        credential = credential_pb2.Credential(access_token=token("svc"))

        answer = await running.admit(admit_request(credential))
        assert (answer.account_id, answer.key_id) == (account_id, "")
        caller = await running.service.teams.resolve(token("svc"))
        assert caller == Caller(CallerClass.TEAM, team.team_id, account_id)
        await stub.DeleteTeam(pb.DeleteTeamRequest(team_id=team.team_id), timeout=TIMEOUT_S)

        for bearer in (token("svc"), token("nobody"), "", "x", "a.b.c"):
            with pytest.raises(InvalidCredentialError):
                await running.service.teams.resolve(bearer)


async def test_an_api_key_acts_for_its_account_under_its_own_name(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        account_id = await running.new_account()
        key_id, key = await running.new_key(account_id)

        digest = by_key(key).api_key_sha256
        assert await running.service.teams.resolve(key) == Caller(CallerClass.TEAM, key_id, account_id, digest)
        stub = (await running.by(CallerClass.ADMIN)).keys
        await stub.RevokeKey(key_pb.RevokeKeyRequest(key_id=key_id), timeout=TIMEOUT_S)
        for bearer in (key, key[:-1] + ("a" if key[-1] != "a" else "b")):
            with pytest.raises(InvalidCredentialError):
                await running.service.teams.resolve(bearer)


async def test_while_accounts_cannot_be_read_a_known_key_works_and_an_unknown_one_is_not_called_invalid(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, store_timeout_s=1.0) as running:
        account_id = await running.new_account()
        _, known = await running.new_key(account_id)
        _, unused = await running.new_key(account_id)
        await running.admit(admit_request(by_key(known)))
        lock = sqlite3.connect(tmp_path / "auth" / "accounts.sqlite3", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        stuck = asyncio.ensure_future(running.new_account())
        await running.limits(by_key(known))  # the write has reached the store's thread by now
        with pytest.raises(StoreUnavailableError):
            await running.admit(admit_request(by_key(unused)))
        assert (await running.admit(admit_request(by_key(known)))).HasField("admitted")
        with pytest.raises(StoreUnavailableError):
            await stuck
        lock.execute("ROLLBACK")
        lock.close()

        assert (await running.admit(admit_request(by_key(unused)))).HasField("admitted")


async def test_a_lost_table_is_a_503_and_never_a_401(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        with sqlite3.connect(tmp_path / "auth" / "accounts.sqlite3") as other:
            other.execute("ALTER TABLE keys RENAME TO gone")
        other.close()

        with pytest.raises(StoreUnavailableError):
            await running.admit(admit_request(by_key("mws_live_x")))


async def test_everything_is_there_again_in_the_next_process(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        account_id = await running.new_account()
        key_id, key = await running.new_key(account_id)
        await running.fund(account_id, 100)
        await running.admit(admit_request(by_key(key), amount_nano_usd=60))

    async with serving(tmp_path) as running:
        answer = await running.admit(admit_request(by_key(key), amount_nano_usd=41))

    assert (answer.account_id, answer.key_id) == (account_id, key_id)
    assert answer.refused.available_nano_usd == 40


async def test_keys_are_worth_nothing_under_another_pepper(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        _, key = await running.new_key(await running.new_account())
    (tmp_path / "secrets" / "key_pepper").write_text("another")

    async with serving(tmp_path) as running:
        with pytest.raises(InvalidCredentialError):
            await running.limits(by_key(key))


async def test_no_secret_is_written_to_disk_or_log(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        _, key = await running.new_key(await running.new_account())
        await running.admit(admit_request(by_key(key)))
        written = running.log.getvalue()

    digest = by_key(key).api_key_sha256
    for path in (tmp_path / "auth").iterdir():
        written += path.read_bytes()
    assert key.encode() not in written
    assert key[13:].encode() not in written
    assert digest not in written
    assert digest.hex().encode() not in written


async def test_the_audit_log_cannot_be_rewritten(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        await running.new_account()
    database = sqlite3.connect(tmp_path / "auth" / "accounts.sqlite3")
    for statement in ("UPDATE audit_events SET actor = 'x'", "DELETE FROM audit_events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(statement)
    database.close()


async def test_an_unknown_schema_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "auth" / "accounts.sqlite3") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.execute("UPDATE schema_compatibility SET oldest_program = '9998'")
    database.close()

    with pytest.raises(AccountSchemaError, match="9998"):
        async with open_service(settings_for(tmp_path)):
            pass


async def test_a_file_that_holds_no_accounts_is_named(tmp_path: Path) -> None:
    (tmp_path / "auth").mkdir()
    (tmp_path / "auth" / "accounts.sqlite3").write_bytes(b"no database " * 1000)

    with pytest.raises(AccountSchemaError, match=r"accounts\.sqlite3"):
        async with serving(tmp_path):
            pass


async def test_a_broken_plan_file_stops_the_start(tmp_path: Path) -> None:
    async with serving(tmp_path):
        pass
    (tmp_path / "plans.yaml").write_text("default_plan: p")

    with pytest.raises(PlanFileError, match=r"plans\.yaml: the file: plans is missing"):
        async with open_service(settings_for(tmp_path, plans=tmp_path / "plans.yaml")):
            pass


async def test_a_foreign_call_id_is_not_a_hold(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        assert await running.service.holds.renew("r", []) == []
        await running.service.holds.void(new_id(), new_id())
