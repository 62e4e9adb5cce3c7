"""Internal teams: ordinary gRPC from another process, by reflection and by generated stubs.

Owns what a stranger to our code base can do with nothing but an address and a token.
"""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from mws.admission.v1 import admission_service_pb2
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub
from mws.inference.v1 import catalog_service_pb2, routing_service_pb2
from mws.inference.v1.catalog_service_pb2_grpc import CatalogServiceStub
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from mws.inference.v1.routing_service_pb2_grpc import RoutingServiceStub
from mws.metering.v1 import ledger_service_pb2, metering_service_pb2
from mws.metering.v1.ledger_service_pb2_grpc import LedgerServiceStub
from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceStub

from services.runtime.ids import new_id
from tests.gateway import Account
from tests.paced import Paced, price_nano_usd
from tests.plain_grpc import Failure, attempt, bearer, generate, generate_request, kinds, stub
from tests.provider import words

BUF = Path(sys.executable).with_name("buf")
TEAM_CLIENT = Path(__file__).with_name("team_client.py")
pytestmark = pytest.mark.parametrize("paced", ["link"], indirect=True)


@pytest.fixture(scope="module")
def account(paced: Paced) -> Account:
    return paced.account("team")


def _curl(target: str, method: str, body: dict[str, Any], token: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(BUF), "curl", "--http2-prior-knowledge", "--protocol", "grpc", "--reflect-protocol", "grpc-v1alpha"]
    command += ["-H", f"authorization: Bearer {token}"] if token else []
    command += ["-d", json.dumps(body), f"http://{target}/{method}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


READS = [
    ("auth", "mws.admission.v1.AdmissionService/GetLimits", {}, "limits"),
    ("auth", "mws.admission.v1.AccountService/GetAccount", {"accountId": "OWN"}, "account"),
    ("auth", "mws.admission.v1.KeyService/ListKeys", {}, "keys"),
    ("auth", "mws.admission.v1.AuditService/ListAuditEvents", {}, "events"),
    ("inference", "mws.inference.v1.CatalogService/ListProfiles", {}, "profiles"),
    ("metering", "mws.metering.v1.LedgerService/GetBalance", {}, "balanceNanoUsd"),
    ("metering", "mws.metering.v1.UsageService/SummarizeUsage", {}, "total"),
]


@pytest.mark.parametrize(("service", "method", "body", "field"), [pytest.param(*row, id=row[1]) for row in READS])
def test_a_team_reads_through_reflection(
    paced: Paced, account: Account, service: str, method: str, body: dict[str, Any], field: str
) -> None:
    asked = json.loads(json.dumps(body).replace("OWN", account.account_id))

    done = _curl(paced.gateway.grpc_target(service), method, asked, account.api_key)

    assert done.returncode == 0, done.stderr
    assert field in json.loads(done.stdout)


def test_a_team_generates_through_reflection(paced: Paced, account: Account) -> None:
    message = {"role": "ROLE_USER", "content": [{"text": {"text": "chunks=3"}}]}
    body = {"callId": new_id(), "generation": {"messages": [message], "maxOutputTokens": 20, "stream": True}}
    target = paced.gateway.grpc_target("inference")

    done = _curl(target, "mws.inference.v1.InferenceService/Generate", body, account.api_key)

    assert done.returncode == 0, done.stderr
    said = json.JSONDecoder()
    first, _ = said.raw_decode(done.stdout)
    assert "admitted" in first["events"][0]
    assert '"finished"' in done.stdout


@pytest.mark.parametrize(
    ("service", "method", "caller"),
    [
        ("inference", "mws.inference.v1.RoutingService/ListUpstreams", "admin"),
        ("metering", "mws.metering.v1.LedgerService/CheckLedger", "admin"),
        ("auth", "mws.admission.v1.AccountService/ListAccounts", "admin"),
    ],
)
def test_an_administrator_reads_through_reflection(paced: Paced, service: str, method: str, caller: str) -> None:
    done = _curl(paced.gateway.grpc_target(service), method, {}, paced.gateway.token(caller))

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("service", ["auth", "inference", "metering"])
@pytest.mark.parametrize("part", ["liveness", "readiness", "startup"])
def test_health_answers_anyone(paced: Paced, service: str, part: str) -> None:
    done = _curl(paced.gateway.grpc_target(service), "grpc.health.v1.Health/Check", {"service": part})

    assert json.loads(done.stdout) == {"status": "SERVING"}, done.stderr


def test_a_refusal_shows_its_error_info_to_other_tools(paced: Paced) -> None:
    done = _curl(paced.gateway.grpc_target("metering"), "mws.metering.v1.LedgerService/GetBalance", {}, "mws_live_no")

    assert done.returncode != 0
    failure = json.loads(done.stderr)
    assert failure["code"] == "unauthenticated"
    (packed,) = [detail["value"] for detail in failure["details"] if detail["type"].endswith("google.rpc.ErrorInfo")]
    info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(packed + "=="))
    assert (info.reason, info.domain) == ("CREDENTIAL_INVALID", "mws")


def test_a_teams_own_program_uses_every_service_for_itself_alone(paced: Paced, account: Account) -> None:
    targets = {service: paced.gateway.grpc_target(service) for service in ("auth", "inference", "metering")}
    foreign = paced.account("foreign")

    done = subprocess.run(
        [sys.executable, TEAM_CLIENT, json.dumps(targets), account.api_key, foreign.account_id],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    refused = "PERMISSION_DENIED/CALLER_NOT_ALLOWED@mws"
    assert found["said"] == {
        "GetLimits": "OK",
        "Admit": refused,
        "GetAccount": "OK",
        "ListAccounts": refused,
        "ListKeys": "OK",
        "ListAuditEvents": "OK",
        "ListProfiles": "OK",
        "ListUpstreams": refused,
        "GetBalance": "OK",
        "GrantCredits": refused,
        "ListUsage": "OK",
        "RecordUsage": refused,
    }
    assert set(found["abroad"].values()) == {"PERMISSION_DENIED/ACCOUNT_FOREIGN@mws"}
    own = found["own"]
    assert own["account_id"] == account.account_id
    assert own["text"] == words(4)
    assert own["charged_nano_usd"] == price_nano_usd(paced.provider.served(own["call_id"])[0])


async def test_events_come_in_the_promised_order(paced: Paced, account: Account) -> None:
    async with stub(InferenceServiceStub, paced.gateway.grpc_target("inference")) as inference:
        events: Any = await generate(inference, generate_request("chunks=5"), account.api_key)

    assert kinds(events) == ["admitted", "message_started", "text_delta", "finished"]


async def test_a_team_cannot_let_another_account_pay(paced: Paced, account: Account) -> None:
    foreign = paced.account("payer")
    request = generate_request("chunks=1", account_id=foreign.account_id)
    async with stub(InferenceServiceStub, paced.gateway.grpc_target("inference")) as inference:
        failed = await generate(inference, request, account.api_key)

    assert isinstance(failed, Failure)
    assert (failed.code, failed.reason, failed.domain) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "ACCOUNT_FOREIGN",
        "mws",
    )
    assert paced.provider.served(request.call_id) == []


async def test_a_refused_call_carries_the_limits_and_when_to_come_back(paced: Paced) -> None:
    slow = paced.account("slow-team", rpm=1)
    async with stub(InferenceServiceStub, paced.gateway.grpc_target("inference")) as inference:
        await generate(inference, generate_request("chunks=1"), slow.api_key)
        failed = await generate(inference, generate_request("chunks=1"), slow.api_key)

    assert isinstance(failed, Failure)
    assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.reason == "RATE_LIMITED"
    assert failed.metadata["limit"] == "requests"
    assert {"google.rpc.RetryInfo", "mws.common.v1.LimitsSnapshot"} <= set(failed.detail_types)


CLASSES = ("edge", "auth", "inference", "metering", "admin", "team", "nobody")
SAMPLE = [
    (
        "auth",
        AdmissionServiceStub,
        "GetLimits",
        admission_service_pb2.GetLimitsRequest(),
        "edge inference metering admin team",
    ),
    ("auth", AdmissionServiceStub, "Renew", admission_service_pb2.RenewRequest(runner="x"), "inference"),
    ("auth", AdmissionServiceStub, "BalanceChanged", admission_service_pb2.BalanceChangedRequest(), "metering"),
    ("inference", CatalogServiceStub, "ListProfiles", catalog_service_pb2.ListProfilesRequest(), "edge team admin"),
    ("inference", RoutingServiceStub, "ListUpstreams", routing_service_pb2.ListUpstreamsRequest(), "admin"),
    ("metering", MeteringServiceStub, "RecordUsage", metering_service_pb2.RecordUsageRequest(), "inference"),
    ("metering", MeteringServiceStub, "ResolveOutcomes", metering_service_pb2.ResolveOutcomesRequest(), "auth"),
    ("metering", LedgerServiceStub, "GetBalance", ledger_service_pb2.GetBalanceRequest(), "edge team admin"),
]


@pytest.mark.parametrize("caller", CLASSES)
async def test_each_class_may_call_what_the_table_says(paced: Paced, account: Account, caller: str) -> None:
    token = {"team": account.api_key, "nobody": ""}.get(caller) if caller in ("team", "nobody") else None
    token = paced.gateway.token(caller) if token is None else token
    for service, make, method, request, allowed in SAMPLE:
        async with stub(make, paced.gateway.grpc_target(service)) as service_stub:
            result = await attempt(getattr(service_stub, method)(request, metadata=bearer(token), timeout=10))

        reason = result.reason if isinstance(result, Failure) else ""
        if caller == "nobody":
            assert reason == "CREDENTIAL_MISSING", method
        elif caller in allowed.split():
            # Past the table an empty request may still be wrong; what counts is that the class was let in.
            assert reason != "CALLER_NOT_ALLOWED", method
        else:
            assert reason == "CALLER_NOT_ALLOWED", method
