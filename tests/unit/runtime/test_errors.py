"""The mapping reason <-> class <-> status.

Owns totality and the round trip; refuses sockets.
"""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from mws.common.v1 import error_reason_pb2 as reasons
from mws.common.v1 import limits_pb2

from services.runtime.errors import (
    BY_REASON,
    AlreadyExistsError,
    CallCancelledError,
    GatewayError,
    NotFoundError,
    RateLimitedError,
    ServiceUnavailableError,
    from_status,
    reason_name,
    to_status,
)

REASONS = [value for value in reasons.ErrorReason.values() if value != reasons.ERROR_REASON_UNSPECIFIED]


def test_every_reason_has_a_class_and_every_class_a_reason() -> None:
    assert set(BY_REASON) == set(REASONS)


def test_every_class_is_named_after_what_it_says() -> None:
    assert all(cls.__name__.endswith("Error") for cls in BY_REASON.values())


def documented_codes() -> dict[str, str]:
    """What error_reason.proto says: the first word of each value's comment is its gRPC code."""
    text = (Path(__file__).parents[3] / "proto/mws/common/v1/error_reason.proto").read_text()
    found = re.findall(r"\n\n  // ([A-Z_]+)[ .].*(?:\n  //.*)*\n  (ERROR_REASON_\w+) =", text)
    return {name: code for code, name in found}


def test_the_codes_are_those_that_the_contract_documents() -> None:
    assert {reasons.ErrorReason.Name(reason): cls.code.name for reason, cls in BY_REASON.items()} == documented_codes()


def test_a_status_has_exactly_one_error_info_and_only_the_details_that_apply() -> None:
    bare = to_status(NotFoundError("text", metadata={"resource": "account"}))
    assert [detail.TypeName() for detail in bare.details] == ["google.rpc.ErrorInfo"]
    limits = limits_pb2.LimitsSnapshot()
    full = to_status(RateLimitedError("text", retry_in=timedelta(milliseconds=1), details=[limits]))
    names = [detail.TypeName() for detail in full.details]
    assert names == ["google.rpc.ErrorInfo", "google.rpc.RetryInfo", "mws.common.v1.LimitsSnapshot"]


def test_the_reason_travels_without_its_prefix() -> None:
    assert reason_name(RateLimitedError("text")) == "RATE_LIMITED"


def info(reason: str, domain: str = "mws") -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    return packed


BROKEN = AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(status_pb2.Status(code=14), ServiceUnavailableError, id="no details: by code"),
        pytest.param(status_pb2.Status(code=1), CallCancelledError, id="cancelled by a proxy"),
        pytest.param(status_pb2.Status(code=2), GatewayError, id="unknown code is internal"),
        pytest.param(status_pb2.Status(code=77), GatewayError, id="a code that does not exist"),
        pytest.param(
            status_pb2.Status(code=6, details=[info("OF_THE_FUTURE")]), AlreadyExistsError, id="newer reason: by code"
        ),
        pytest.param(
            status_pb2.Status(code=5, details=[info("RATE_LIMITED", "other")]), NotFoundError, id="foreign domain"
        ),
        pytest.param(status_pb2.Status(code=5, details=[BROKEN]), NotFoundError, id="broken detail"),
        pytest.param(status_pb2.Status(code=8, details=[info("RATE_LIMITED")]), RateLimitedError, id="ours"),
    ],
)
def test_any_status_is_readable(status: status_pb2.Status, expected: type[GatewayError]) -> None:
    assert type(from_status(status)) is expected
