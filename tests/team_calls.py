"""Any method of any service, called as a stranger would: a channel, a path, a bearer value.

Owns reading the one `ErrorInfo` of a failure; refuses to assert anything.
"""

from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Target:
    """A method and where it is served."""

    address: str
    service: str
    method: str


@dataclass(frozen=True, slots=True)
class Said:
    """How a call ended; two are alike if they ended alike."""

    code: grpc.StatusCode
    reason: str = ""
    responses: tuple[Any, ...] = field(default=(), compare=False)


def call(target: Target, request: Any, token: str) -> Said:
    """Calls it, streaming or not."""
    method = descriptor_pool.Default().FindServiceByName(target.service).methods_by_name[target.method]
    answer = message_factory.GetMessageClass(method.output_type)
    path = f"/{target.service}/{target.method}"
    metadata = (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(target.address) as channel:
        make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
        invoke = make(path, type(request).SerializeToString, answer.FromString)
        try:
            responses = invoke(request, metadata=metadata, timeout=TIMEOUT_S)
            return Said(grpc.StatusCode.OK, "", tuple(responses) if method.server_streaming else (responses,))
        except grpc.RpcError as error:
            return _said(error)


def _said(error: Any) -> Said:
    info = error_details_pb2.ErrorInfo()
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return Said(error.code(), info.reason)
