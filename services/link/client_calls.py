"""The client's side of one call: what a stub hands out, and what the link's reader fills.

Owns a call's single end and the delivery of its messages; refuses to choose links and to know how frames travel.
"""

import asyncio
from collections import deque
from collections.abc import Generator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import grpc

from services.link.frames import MESSAGE_BYTES, Sender
from services.link.reassembly import NoMemoryError, OversizedMessageError, Receiver
from services.runtime.calls import CancelReason, Deserializer, Metadata
from services.runtime.errors import (
    CallCancelledError,
    DeadlineExceededError,
    GatewayError,
    MessageTooLargeError,
    ServiceUnavailableError,
)

if TYPE_CHECKING:
    from services.link.client_link import ClientLink

_NO_METADATA: Metadata = ()


def too_large() -> MessageTooLargeError:
    """The failure of a call one of whose messages is over the limit."""
    return MessageTooLargeError("the message is too large", metadata={"limit_bytes": str(MESSAGE_BYTES)})


def unreachable(text: str) -> ServiceUnavailableError:
    """The failure of a call that found no link, or lost it."""
    return ServiceUnavailableError(text, retry_in=timedelta(seconds=1))


class ClientCall:
    """A call on its way. Ends exactly once, by `end`; what happens to it later is ignored."""

    __slots__ = (
        "call_id", "deadline", "deadline_slot", "ended", "error", "link", "loop", "metadata", "path", "receiver",
        "request", "sender", "traceparent", "trailing_metadata",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, request: bytes, deadline: float | None) -> None:
        self.loop = loop
        self.path = path
        self.request = request
        self.deadline = deadline  # loop time, seconds
        self.metadata: Metadata = _NO_METADATA
        self.traceparent = ""
        self.link: ClientLink | None = None
        self.call_id = 0
        self.deadline_slot = 0
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        self.ended = False
        self.error: GatewayError | None = None
        self.trailing_metadata: Metadata = _NO_METADATA

    keeps_window: ClassVar[bool] = False  # more than one message may come

    def take(self, message: bytes) -> None:
        """A whole message arrived."""
        raise NotImplementedError

    def wake(self) -> None:
        """The call ended; whoever waits is to look."""
        raise NotImplementedError

    def take_piece(self, receiver: Receiver, payload: bytes, more: bool, message_bytes: int) -> None:
        """A piece arrived, or a message on a call that keeps a window."""
        try:
            message = receiver.take(payload, more, message_bytes)
        except OversizedMessageError:
            self.give_up(CancelReason.CLIENT_GONE, too_large())
            return
        except NoMemoryError:
            self.give_up(CancelReason.CLIENT_GONE, unreachable("too many large messages at once"))
            return
        if message is not None:
            self.take(message)

    def end(self, error: GatewayError | None) -> None:
        """Ends the call, if it has not ended yet."""
        if self.ended:
            return
        self.ended = True
        self.error = error
        if self.link is not None:
            self.link.forget(self)
        self.wake()

    def give_up(self, reason: CancelReason, error: GatewayError) -> None:
        """Ends the call from here and tells the server."""
        if self.ended:
            return
        if self.link is not None:
            self.link.send_cancel(self, reason)
        self.end(error)

    def expire(self) -> None:
        """The deadline passed."""
        self.give_up(CancelReason.DEADLINE, DeadlineExceededError("the deadline passed"))

    def cancel(self, reason: CancelReason) -> bool:
        """Cancels; False if the call had ended before."""
        if self.ended:
            return False
        self.give_up(reason, CallCancelledError("the call was cancelled", metadata={"cancel_reason": str(reason)}))
        return True

    def code(self) -> grpc.StatusCode | None:
        """How the call ended; None while it runs."""
        if not self.ended:
            return None
        return grpc.StatusCode.OK if self.error is None else self.error.code


class UnaryCall(ClientCall):
    """Awaitable for its one response. Cancelling the task that awaits it cancels the call."""

    __slots__ = ("_done", "_read", "_response")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, path: str, request: bytes, deadline: float | None, read: Deserializer
    ) -> None:
        super().__init__(loop, path, request, deadline)
        self._read = read
        self._response: bytes | None = None
        self._done: asyncio.Future[None] | None = None

    def take(self, message: bytes) -> None:
        self._response = message

    def wake(self) -> None:
        done = self._done
        if done is not None and not done.done():
            done.set_result(None)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.ended:
            if self._done is None:
                self._done = self.loop.create_future()
            try:
                yield from self._done
            except asyncio.CancelledError:
                self.cancel(CancelReason.CLIENT_GONE)
                raise
        if self.error is not None:
            raise self.error
        if self._response is None:
            raise GatewayError("the service answered nothing")
        return self._read(self._response)


class StreamState(ClientCall):
    """A streaming call as its link knows it. Messages wait here until the consumer comes, within the call's window."""

    __slots__ = ("messages", "waiter")
    keeps_window = True

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, request: bytes, deadline: float | None) -> None:
        super().__init__(loop, path, request, deadline)
        self.messages: deque[bytes] = deque()
        self.waiter: asyncio.Future[None] | None = None

    def take(self, message: bytes) -> None:
        self.messages.append(message)
        if self.waiter is not None:
            self.wake()

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)


class StreamCall:
    """Async iterator over a call's responses. Leaving it unfinished, by break or by losing it, cancels the call."""

    __slots__ = ("_read", "_state")

    def __init__(self, state: StreamState, read: Deserializer) -> None:
        self._state = state
        self._read = read

    def __aiter__(self) -> "StreamCall":
        return self

    async def __anext__(self) -> Any:
        state = self._state
        while not state.messages:
            if state.ended:
                if state.error is not None:
                    raise state.error
                raise StopAsyncIteration
            state.waiter = state.loop.create_future()
            try:
                await state.waiter
            except asyncio.CancelledError:
                state.cancel(CancelReason.CLIENT_GONE)
                raise
        message = state.messages.popleft()
        if state.receiver is not None:
            self._return_window(state, len(message))
        return self._read(message)

    def _return_window(self, state: StreamState, size_bytes: int) -> None:
        assert state.receiver is not None
        try:
            state.receiver.consumed(size_bytes)
        except NoMemoryError:
            state.give_up(CancelReason.CLIENT_GONE, unreachable("too many large messages at once"))

    def cancel(self, reason: CancelReason = CancelReason.CLIENT_GONE) -> bool:
        """Cancels; False if the call had ended before. Messages that have arrived can still be read."""
        return self._state.cancel(reason)

    def code(self) -> grpc.StatusCode | None:
        """How the call ended; None while it runs."""
        return self._state.code()

    @property
    def trailing_metadata(self) -> Metadata:
        """What came with the call's end."""
        return self._state.trailing_metadata

    async def aclose(self) -> None:
        """Ends the call if it still runs, so that `aclosing(call)` works."""
        self._state.cancel(CancelReason.CLIENT_GONE)

    def __del__(self) -> None:
        state = self._state
        if not state.ended and not state.loop.is_closed():
            state.cancel(CancelReason.CLIENT_GONE)
