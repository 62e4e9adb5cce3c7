"""The RPC that forwards: decode, one use case, encode.

Owns nothing but that; refuses to decide anything.
"""

from collections.abc import AsyncIterator
from typing import Any

from mws.inference.v1 import forward_service_pb2 as pb
from mws.inference.v1.forward_service_pb2_grpc import ForwardServiceServicer

from services.routing_and_inference.forwarding import Forwarder
from services.runtime.calls import call_of


class ForwardServicer(ForwardServiceServicer):
    """Forwards."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def Forward(self, request: pb.ForwardRequest, context: Any) -> AsyncIterator[pb.ForwardResponse]:
        return self._forwarder.forward(request, call_of(context))
