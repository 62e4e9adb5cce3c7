"""What stands under an idempotency key: an answer that metering has kept, found by whoever asks with the key again.

Owns the form in which answers are kept; refuses to decide who runs (auth-and-limits does) and to keep anything itself.
"""

from typing import TYPE_CHECKING, Final, TypeVar

from google.protobuf.message import DecodeError, Message
from mws.inference.v1.generation_pb2 import GenerationEvent
from mws.metering.v1 import metering_service_pb2 as metering_pb

from services.routing_and_inference.ports import Kept
from services.runtime.errors import IdempotencyKeyReusedError, NotFoundError

if TYPE_CHECKING:
    from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub

M = TypeVar("M", bound=Message)

MOST_BYTES: Final = 1024 * 1024  # of an answer that is kept
_TIMEOUT_S = 2.0
_DELTAS: Final = {"text_delta": "text", "thinking_delta": "text", "tool_call_delta": "arguments_json"}


class KeptAnswers:
    """Answers under idempotency keys, as metering keeps them: in the transaction of their posting, for 24 hours."""

    def __init__(self, metering: "MeteringServiceAsyncStub") -> None:
        self._metering = metering

    async def find(self, account_id: str, idempotency_key: str, body_sha256: bytes) -> Kept | None:
        """The answer under a key; None: there is none. Raises IdempotencyKeyReusedError and what metering raises."""
        request = metering_pb.GetKeptAnswerRequest(account_id=account_id, idempotency_key=idempotency_key)
        try:
            found = await self._metering.GetKeptAnswer(request, timeout=_TIMEOUT_S)
        except NotFoundError:
            return None
        if found.answer.body_sha256 != body_sha256:
            raise IdempotencyKeyReusedError("the idempotency key stands for a request with another body")
        if not found.answer.message:
            raise IdempotencyKeyReusedError("the answer under the idempotency key was too large to be kept")
        return Kept(found.call_id, found.answer.form, found.answer.message)


def kept_form(message: Message) -> tuple[str, bytes]:
    """An answer as it is kept; without its bytes if it is too large."""
    content = message.SerializeToString()
    return message.DESCRIPTOR.full_name, content if len(content) <= MOST_BYTES else b""


def read_kept(kept: Kept, message: M) -> M:
    """Fills `message` with a kept answer. Raises IdempotencyKeyReusedError: it is that of another kind of call."""
    if kept.form != message.DESCRIPTOR.full_name:
        raise IdempotencyKeyReusedError("the idempotency key stands for a call of another kind")
    try:
        message.ParseFromString(kept.message)
    except DecodeError as error:
        raise IdempotencyKeyReusedError("the answer under the idempotency key cannot be read") from error
    return message


class Fold:
    """Collects the events of an answer into as few as say the same."""

    def __init__(self) -> None:
        self._events: list[GenerationEvent] = []
        self._kind = ""
        self._pieces: list[str] = []

    def add(self, event: GenerationEvent) -> None:
        """More of the answer, in order."""
        kind = event.WhichOneof("kind") or ""
        field = _DELTAS.get(kind)
        if kind != self._kind or field is None:
            self._close()
            self._kind = kind
        if field is None:
            self._events.append(event)
        else:
            self._pieces.append(getattr(getattr(event, kind), field))

    def whole(self) -> list[GenerationEvent]:
        """All of it."""
        self._close()
        return self._events

    def _close(self) -> None:
        if not self._pieces:
            return
        event = GenerationEvent()
        setattr(getattr(event, self._kind), _DELTAS[self._kind], "".join(self._pieces))
        self._pieces.clear()
        self._events.append(event)
