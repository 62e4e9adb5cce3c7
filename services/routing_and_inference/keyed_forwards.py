"""Forwarded calls under an idempotency key: run once, and replayed in the upstream's own words.

Owns the form of a replay; how a keyed call outlives its caller is told by `keyed_calls`.
"""

from typing import Any, cast

from mws.inference.v1 import forward_service_pb2 as service_pb
from mws.inference.v1 import generation_pb2 as pb

from services.routing_and_inference.current import CurrentCatalogue
from services.routing_and_inference.forwarding import Forwarder
from services.routing_and_inference.keyed_calls import KeyedCalls
from services.routing_and_inference.ports import Kept
from services.routing_and_inference.replaying import KeptAnswers, read_kept


class KeyedForwards(KeyedCalls):
    """Stands before the Forwarder, which opens, runs and voids calls as the Generator does."""

    def __init__(self, current: CurrentCatalogue, forwarder: Forwarder, answers: KeptAnswers) -> None:
        super().__init__(current, cast("Any", forwarder), answers)
        self._forwarder = forwarder

    def _replay(self, request: Any, kept: Kept, admitted: pb.Admitted) -> Any:
        admitted.call_id = request.call_id
        admitted.replay_of = kept.call_id
        admitted.profile = self._forwarder.profile(request.model).slug
        response = service_pb.ForwardResponse(events=[pb.GenerationEvent(admitted=admitted)])
        response.events.extend(read_kept(kept, service_pb.ForwardResponse()).events)
        return response
