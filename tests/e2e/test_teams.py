"""Internal teams with credentials of their own: an API key, or an access token of their realm.

Owns that both are admitted by the same code, reach their own account alone, and are written nowhere.
"""

import base64
import hashlib
import importlib
import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from joserfc import jwt
from joserfc.jwk import RSAKey
from mws.admission.v1 import admission_service_pb2, key_service_pb2
from mws.common.v1 import credential_pb2
from mws.inference.v1 import inference_service_pb2

from services.runtime.callers import ALLOWED
from services.runtime.calls import CallerClass
from services.runtime.ids import new_id
from tests.gateway import ROOT, Account, Gateway
from tests.load import Caller, messages
from tests.plain_grpc import generate_request
from tests.team_calls import Said, Target, call

ISSUER = "https://idp.test"
SIGNING_KEY = RSAKey.generate_key(2048, {"kid": "k"})
PROMPT = "xylophone"
PROCESSES = ("edge", "auth", "inference", "metering")


@dataclass(frozen=True, slots=True)
class Teams:
    """A running gateway, the account of a team with both its credentials, and a foreign account."""

    gateway: Gateway
    own: Account
    access_token: str
    foreign: Account

    def target(self, service: str) -> str:
        return self.gateway.grpc_target(service)

    def credential(self, kind: str) -> str:
        return self.own.api_key if kind == "key" else self.access_token


@pytest.fixture(scope="module", params=["link", pytest.param("grpc", marks=pytest.mark.long)])
def teams(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teams]:
    folder = tmp_path_factory.mktemp(f"teams-{request.param}")
    jwks = folder / "jwks.json"
    jwks.write_text(json.dumps({"keys": [SIGNING_KEY.as_dict(private=False)]}))
    data_dir = folder / "data"
    environment = {
        "MWS_TRANSPORT": request.param,
        "MWS_INFERENCE_SIMULATED_PACE": "instant",
        "MWS_AUTH_ISSUERS": json.dumps([{"issuer": ISSUER, "audience": "mws", "jwks_file": str(jwks)}]),
        **{f"MWS_{name.upper()}_TRACE_FILE": str(data_dir / "log" / f"{name}.spans") for name in PROCESSES},
    }
    with Gateway(data_dir, environment=environment) as gateway:
        own, foreign = gateway.account("own"), gateway.account("foreign")
        gateway.mws("team", "create", "--account", own.account_id, "--issuer", ISSUER, "--subject", "svc")
        claims = {"iss": ISSUER, "aud": "mws", "sub": "svc", "exp": int(time.time()) + 3600}
        yield Teams(gateway, own, jwt.encode({"alg": "RS256", "kid": "k"}, claims, SIGNING_KEY), foreign)


INFERENCE = [
    pytest.param("Generate", generate_request(PROMPT), id="generate"),
    pytest.param(
        "Embed",
        inference_service_pb2.EmbedRequest(inputs=[inference_service_pb2.EmbedInput(text=PROMPT)]),
        id="embed",
    ),
    pytest.param("Rerank", inference_service_pb2.RerankRequest(query="q", documents=[PROMPT, "b"]), id="rerank"),
]


@pytest.mark.parametrize("kind", ["key", "token"])
@pytest.mark.parametrize(("method", "request_"), INFERENCE)
def test_a_team_calls_models_with_its_own_credential_and_pays_itself(
    teams: Teams, kind: str, method: str, request_: Any
) -> None:
    target = Target(teams.target("inference"), "mws.inference.v1.InferenceService", method)
    request_.call_id = new_id()

    said = call(target, request_, teams.credential(kind))

    assert said.code is grpc.StatusCode.OK, said
    entries = teams.gateway.mws("ledger", "entries", "--account", teams.own.account_id)["entries"]
    assert request_.call_id in [entry["call_id"] for entry in entries]


@pytest.mark.parametrize("kind", ["key", "token"])
@pytest.mark.parametrize(("method", "request_"), INFERENCE)
def test_a_team_lets_nobody_else_pay(teams: Teams, kind: str, method: str, request_: Any) -> None:
    target = Target(teams.target("inference"), "mws.inference.v1.InferenceService", method)
    for credential in (
        credential_pb2.Credential(account_id=teams.foreign.account_id),
        credential_pb2.Credential(api_key_sha256=hashlib.sha256(teams.foreign.api_key.encode()).digest()),
    ):
        asked = type(request_).FromString(request_.SerializeToString())
        asked.call_id = new_id()
        asked.credential.CopyFrom(credential)

        assert call(target, asked, teams.credential(kind)) == Said(grpc.StatusCode.PERMISSION_DENIED, "ACCOUNT_FOREIGN")


def methods_about_an_account() -> list[Any]:
    """Every method that a team may call and that names an account."""
    for proto in (ROOT / "proto" / "mws").rglob("*_service.proto"):  # the pool knows what was imported
        importlib.import_module(".".join(proto.relative_to(ROOT / "proto").with_suffix("").parts) + "_pb2")
    pool, found = descriptor_pool.Default(), []
    for path in sorted(path for path, classes in ALLOWED.items() if CallerClass.TEAM in classes):
        service, method = path.removeprefix("/").split("/")
        asked = pool.FindServiceByName(service).methods_by_name[method].input_type
        if "account_id" in asked.fields_by_name:
            found.append(pytest.param(service, method, message_factory.GetMessageClass(asked), id=method))
    assert len(found) > 10
    return found


@pytest.mark.parametrize("kind", ["key", "token"])
@pytest.mark.parametrize(("service", "method", "request_class"), methods_about_an_account())
def test_a_team_sees_its_own_account_alone(
    teams: Teams, kind: str, service: str, method: str, request_class: Any
) -> None:
    name = {"admission": "auth", "inference": "inference", "metering": "metering"}[service.split(".")[1]]
    target = Target(teams.target(name), service, method)

    request = request_class(account_id=teams.foreign.account_id)
    if "call_id" in request.DESCRIPTOR.fields_by_name:
        request.call_id = new_id()
    said = call(target, request, teams.credential(kind))

    assert said == Said(grpc.StatusCode.PERMISSION_DENIED, "ACCOUNT_FOREIGN")


@pytest.mark.parametrize("kind", ["key", "token"])
def test_a_team_cannot_touch_or_use_what_belongs_to_others(teams: Teams, kind: str) -> None:
    (foreign_key,) = teams.gateway.mws("key", "list", "--account", teams.foreign.account_id)["keys"]
    key = key_service_pb2.Key(key_id=foreign_key["key_id"], name="mine now")
    update = key_service_pb2.UpdateKeyRequest(key=key)
    update.update_mask.paths.append("name")
    revoke = key_service_pb2.RevokeKeyRequest(key_id=foreign_key["key_id"])
    foreign = credential_pb2.Credential(api_key_sha256=hashlib.sha256(teams.foreign.api_key.encode()).digest())
    limits = admission_service_pb2.GetLimitsRequest(credential=foreign)
    keys = "mws.admission.v1.KeyService"

    said = [
        call(Target(teams.target("auth"), keys, "UpdateKey"), update, teams.credential(kind)),
        call(Target(teams.target("auth"), keys, "RevokeKey"), revoke, teams.credential(kind)),
        call(
            Target(teams.target("auth"), "mws.admission.v1.AdmissionService", "GetLimits"),
            limits,
            teams.credential(kind),
        ),
    ]

    reason = "CALLER_NOT_ALLOWED" if kind == "key" else "ACCOUNT_FOREIGN"
    assert [answer.reason for answer in said] == [reason, reason, "ACCOUNT_FOREIGN"]
    assert {answer.code for answer in said} == {grpc.StatusCode.PERMISSION_DENIED}


def test_an_access_token_makes_and_ends_keys_and_an_api_key_does_not(teams: Teams) -> None:
    target = Target(teams.target("auth"), "mws.admission.v1.KeyService", "CreateKey")
    request = key_service_pb2.CreateKeyRequest(name="by the team")

    refused = call(target, request, teams.own.api_key)
    made = call(target, request, teams.access_token)

    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    revoke = key_service_pb2.RevokeKeyRequest(key_id=made.responses[0].key.key_id)
    ended = call(Target(target.address, target.service, "RevokeKey"), revoke, teams.access_token)
    assert ended.responses[0].key.HasField("revoked_at")
    said = call(
        Target(teams.target("inference"), "mws.inference.v1.InferenceService", "Generate"),
        generate_request(PROMPT),
        made.responses[0].api_key,
    )
    assert said == Said(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_INVALID")


async def test_no_credential_is_written_said_or_counted_anywhere(teams: Teams) -> None:
    gateway, own = teams.gateway, teams.own
    mistyped = own.api_key[:-3] + "abc"
    secrets = {own.api_key, own.api_key[13:], mistyped, teams.access_token, teams.access_token.rsplit(".", 1)[1]}
    secrets |= {gateway.token(name) for name in (*PROCESSES, "admin")}
    secrets.add((gateway.data_dir / "secrets" / "key_pepper").read_text().strip())
    digests = [hashlib.sha256(key.encode()).digest() for key in (own.api_key, mistyped, teams.access_token)]
    secrets |= {digest.hex() for digest in digests} | {base64.b64encode(digest).decode() for digest in digests}
    said = b""
    for key in (own.api_key, mistyped, teams.access_token):
        for text in (PROMPT, f"{PROMPT} status=500"):
            said += (await Caller(gateway.base_url, key).send(messages(text))).body
    said += gateway.run("key", "list", "--account", own.account_id, "--json").output.encode()
    said += gateway.run("audit", "list", "--json").output.encode()
    said += "".join(gateway.output).encode()
    for number in range(3):
        said += scrape(f"http://{gateway.host}:{gateway.grpc_base_port + 200 + number}/metrics")
    said += scrape(f"{gateway.base_url}/metrics")

    written = {path: path.read_bytes() for path in files_of(gateway.data_dir)}
    assert any(path.suffix == ".spans" and content for path, content in written.items())
    for secret in secrets:
        assert secret.encode() not in said
        for path, content in written.items():
            assert secret.encode() not in content, path.relative_to(gateway.data_dir)
    for digest in digests:
        for path, content in written.items():
            assert digest not in content, path.relative_to(gateway.data_dir)


def files_of(data_dir: Path) -> Iterator[Path]:
    return (path for path in data_dir.rglob("*") if path.is_file() and path.parent.name != "secrets")


def scrape(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        content: bytes = answer.read()
        return content
