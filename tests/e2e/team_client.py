"""An internal team's program: generated stubs, an API key, nothing else. Prints what it was told as one JSON document.

Run by the suite as a process of its own: `team_client.py TARGETS_JSON KEY FOREIGN_ACCOUNT`.
"""

import json
import sys
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from mws.admission.v1 import account_service_pb2, admission_service_pb2, audit_service_pb2, key_service_pb2
from mws.admission.v1.account_service_pb2_grpc import AccountServiceStub
from mws.admission.v1.admission_service_pb2_grpc import AdmissionServiceStub
from mws.admission.v1.audit_service_pb2_grpc import AuditServiceStub
from mws.admission.v1.key_service_pb2_grpc import KeyServiceStub
from mws.inference.v1 import catalog_service_pb2, generation_pb2, inference_service_pb2, routing_service_pb2
from mws.inference.v1.catalog_service_pb2_grpc import CatalogServiceStub
from mws.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from mws.inference.v1.routing_service_pb2_grpc import RoutingServiceStub
from mws.metering.v1 import ledger_service_pb2, metering_service_pb2, usage_service_pb2
from mws.metering.v1.ledger_service_pb2_grpc import LedgerServiceStub
from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceStub
from mws.metering.v1.usage_service_pb2_grpc import UsageServiceStub

from services.runtime.ids import new_id

TIMEOUT_S = 20.0


class Team:
    """Asks as the account of one key."""

    def __init__(self, targets: dict[str, str], api_key: str) -> None:
        self._metadata = (("authorization", f"Bearer {api_key}"),)
        self._channels = {service: grpc.insecure_channel(target) for service, target in targets.items()}

    def ask(self, stub: Any, service: str, method: str, request: Any) -> str:
        """`OK`, or the code and the reason."""
        try:
            getattr(stub(self._channels[service]), method)(request, metadata=self._metadata, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return said(error)
        return "OK"

    def generate(self) -> dict[str, Any]:
        """One whole call: the kinds of its events, its text, the account that paid."""
        block = generation_pb2.ContentBlock(text=generation_pb2.TextBlock(text="chunks=4"))
        message = generation_pb2.Message(role=generation_pb2.ROLE_USER, content=[block])
        generation = generation_pb2.Generation(messages=[message], max_output_tokens=50, stream=True)
        request = inference_service_pb2.GenerateRequest(call_id=new_id(), model="dragon", generation=generation)
        stub = InferenceServiceStub(self._channels["inference"])
        responses = stub.Generate(request, metadata=self._metadata, timeout=TIMEOUT_S)
        events = [event for response in responses for event in response.events]
        return {
            "kinds": [event.WhichOneof("kind") for event in events],
            "text": "".join(event.text_delta.text for event in events),
            "account_id": events[0].admitted.account_id,
            "charged_nano_usd": events[-1].finished.charged_nano_usd,
            "call_id": request.call_id,
        }


def said(error: Any) -> str:
    """`CODE/REASON@domain` of a failure."""
    details = dict(error.trailing_metadata()).get("grpc-status-details-bin")
    if details is None:
        return str(error.code().name)
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return f"{error.code().name}/{info.reason}@{info.domain}"


def main() -> None:
    """Speaks to every service, as itself and about a foreign account."""
    targets, api_key, foreign = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    team = Team(targets, api_key)
    own = team.generate()
    account = own["account_id"]
    rows = [
        (AdmissionServiceStub, "auth", "GetLimits", admission_service_pb2.GetLimitsRequest()),
        (AdmissionServiceStub, "auth", "Admit", admission_service_pb2.AdmitRequest()),
        (AccountServiceStub, "auth", "GetAccount", account_service_pb2.GetAccountRequest(account_id=account)),
        (AccountServiceStub, "auth", "ListAccounts", account_service_pb2.ListAccountsRequest()),
        (KeyServiceStub, "auth", "ListKeys", key_service_pb2.ListKeysRequest()),
        (AuditServiceStub, "auth", "ListAuditEvents", audit_service_pb2.ListAuditEventsRequest()),
        (CatalogServiceStub, "inference", "ListProfiles", catalog_service_pb2.ListProfilesRequest()),
        (RoutingServiceStub, "inference", "ListUpstreams", routing_service_pb2.ListUpstreamsRequest()),
        (LedgerServiceStub, "metering", "GetBalance", ledger_service_pb2.GetBalanceRequest()),
        (LedgerServiceStub, "metering", "GrantCredits", ledger_service_pb2.GrantCreditsRequest()),
        (UsageServiceStub, "metering", "ListUsage", usage_service_pb2.ListUsageRequest()),
        (MeteringServiceStub, "metering", "RecordUsage", metering_service_pb2.RecordUsageRequest()),
    ]
    abroad = [
        (AccountServiceStub, "auth", "GetAccount", account_service_pb2.GetAccountRequest(account_id=foreign)),
        (KeyServiceStub, "auth", "ListKeys", key_service_pb2.ListKeysRequest(account_id=foreign)),
        (LedgerServiceStub, "metering", "GetBalance", ledger_service_pb2.GetBalanceRequest(account_id=foreign)),
        (UsageServiceStub, "metering", "ListUsage", usage_service_pb2.ListUsageRequest(account_id=foreign)),
    ]
    answers = {
        "own": own,
        "said": {method: team.ask(*row) for row in rows for method in [row[2]]},
        "abroad": {method: team.ask(*row) for row in abroad for method in [row[2]]},
    }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
