"""The RPC that forwards: decode, one use case, encode.

Owns nothing but that; refuses to decide anything.
"""

from collections.abc import AsyncIterator
from typing import Any

from mws.inference.v1 import forward_service_pb2 as pb
from mws.inference.v1.forward_service_pb2_grpc import ForwardServiceServicer

from services.routing_and_inference.forwarding import Forwarder
from services.routing_and_inference.keyed_forwards import KeyedForwards
from services.runtime.calls import call_of


class ForwardServicer(ForwardServiceServicer):
    """Forwards."""

    def __init__(self, forwarder: Forwarder, keyed: KeyedForwards) -> None:
        self._forwarder = forwarder
        self._keyed: Any = keyed

    def Forward(self, request: pb.ForwardRequest, context: Any) -> AsyncIterator[pb.ForwardResponse]:
        answer: AsyncIterator[pb.ForwardResponse]
        if request.idempotency_key:
            answer = self._keyed.generate(request, call_of(context))
        else:
            answer = self._forwarder.forward(request, call_of(context))
        return answer
