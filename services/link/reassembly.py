"""What arrives on a link: pieces put together again, within windows and within a budget of memory for the whole link.

Owns the receiver's half of the windows. Pure: knows no loop, no socket and no generated stub.
"""

from collections import deque
from collections.abc import Callable

from services.link.frames import MESSAGE_BYTES, MESSAGE_OVERHEAD_BYTES

REASSEMBLY_BYTES = 128 * 1024 * 1024


class ProtocolViolationError(Exception):
    """The peer broke a rule of the protocol. The link cannot go on."""


class OversizedMessageError(Exception):
    """A message is larger than may be sent. Its call fails alone."""


class NoMemoryError(Exception):
    """So many large messages arrive at once that not even their beginnings fit. The call fails alone."""


class Budget:
    """The memory that large messages may take on one link, from their first piece until they are consumed."""

    __slots__ = ("capacity_bytes", "reserved_bytes", "waiting", "waiting_bytes")

    def __init__(self, capacity_bytes: int = REASSEMBLY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = 0
        self.waiting: deque[Receiver] = deque()
        self.waiting_bytes = 0  # at most what those that wait can hold of their messages

    def request(self, receiver: "Receiver") -> None:
        """Asks for room for the message that the receiver has begun; it is let through now or in its turn."""
        if self.waiting_bytes + receiver.initial_bytes > self.capacity_bytes:
            raise NoMemoryError
        self.waiting.append(receiver)
        self.waiting_bytes += receiver.initial_bytes
        self._let_through()

    def release(self, size_bytes: int) -> None:
        """Gives room back."""
        self.reserved_bytes -= size_bytes
        self._let_through()

    def forget(self, receiver: "Receiver") -> None:
        """Takes back a request that still waits."""
        self.waiting.remove(receiver)
        self.waiting_bytes -= receiver.initial_bytes
        self._let_through()

    def _let_through(self) -> None:
        while self.waiting and self.reserved_bytes + self.waiting[0].expected_bytes <= self.capacity_bytes:
            receiver = self.waiting.popleft()
            self.waiting_bytes -= receiver.initial_bytes
            self.reserved_bytes += receiver.expected_bytes
            receiver.let_through()


class Receiver:
    """One direction of one call, as its receiver sees it. `widen` sends a WINDOW frame."""

    __slots__ = (
        "_budget", "_owed_bytes", "_parts", "_received_bytes", "_reserved_bytes", "_unconsumed", "_waits", "_widen",
        "expected_bytes", "initial_bytes", "window_bytes",
    )  # fmt: skip

    def __init__(self, initial_bytes: int, budget: Budget, widen: Callable[[int], None]) -> None:
        self.initial_bytes = initial_bytes
        self.window_bytes = initial_bytes  # what the sender may still send
        self.expected_bytes = 0  # the size of the message that has begun
        self._budget = budget
        self._widen = widen
        self._owed_bytes = 0  # consumed, not given back yet
        self._parts: list[bytes] = []
        self._received_bytes = 0
        self._reserved_bytes = 0
        self._unconsumed = 0  # messages complete, but not consumed
        self._waits = False

    def take(self, payload: bytes, more: bool, message_bytes: int) -> bytes | None:
        """Takes a piece; returns the message if it is complete now. Call `consumed` once it is used."""
        if self._parts:
            self._charge(len(payload))
            return self._continue(payload, more)
        self._charge(len(payload) + MESSAGE_OVERHEAD_BYTES)
        if not more:
            self._unconsumed += 1
            return payload
        self._begin(payload, message_bytes)
        return None

    def consumed(self, size_bytes: int) -> None:
        """A message of this size was used: its window goes back to the sender, in good time and not for each."""
        self._unconsumed -= 1
        if self._reserved_bytes:  # this one was let through: see _is_let_through
            self._release()
        else:
            self._owed_bytes += size_bytes + MESSAGE_OVERHEAD_BYTES
            if self._owed_bytes >= self.initial_bytes >> 2:
                owed, self._owed_bytes = self._owed_bytes, 0
                self.window_bytes += owed
                self._widen(owed)
        if self._parts and not self._unconsumed:
            self._ask()

    def let_through(self) -> None:
        """The budget has room for the message that has begun."""
        self._waits = False
        self._reserved_bytes = self.expected_bytes
        cost = self.expected_bytes + MESSAGE_OVERHEAD_BYTES
        self.window_bytes += cost
        self._widen(cost)

    def close(self) -> None:
        """The call has ended; nothing more is consumed."""
        self._parts = []
        if self._waits:
            self._waits = False
            self._budget.forget(self)
        if self._reserved_bytes:
            self._release()

    def _release(self) -> None:
        released, self._reserved_bytes = self._reserved_bytes, 0
        self._budget.release(released)

    def _charge(self, cost: int) -> None:
        self.window_bytes -= cost
        if self.window_bytes < 0:
            raise ProtocolViolationError("a piece beyond its window")

    def _begin(self, payload: bytes, message_bytes: int) -> None:
        if message_bytes <= len(payload) or not payload:
            raise ProtocolViolationError("a first piece without the size of the whole")
        if message_bytes > MESSAGE_BYTES:
            raise OversizedMessageError
        self.expected_bytes = message_bytes
        self._parts.append(payload)
        self._received_bytes = len(payload)
        if not self._unconsumed:
            self._ask()

    def _ask(self) -> None:
        """A message over half the window may need window that only its own end would free: it is let through whole."""
        if self.expected_bytes > self.initial_bytes >> 1 and not self._waits and not self._is_let_through():
            self._waits = True
            try:
                self._budget.request(self)
            except NoMemoryError:
                self._waits = False
                raise

    def _is_let_through(self) -> bool:
        # Only the first message that is not consumed is ever let through, so there is at most one reservation.
        return self._reserved_bytes > 0

    def _continue(self, payload: bytes, more: bool) -> bytes | None:
        self._parts.append(payload)
        self._received_bytes += len(payload)
        if self._received_bytes > self.expected_bytes or (not more and self._received_bytes < self.expected_bytes):
            raise ProtocolViolationError("pieces that do not add up to the size of the whole")
        if more:
            return None
        message = b"".join(self._parts)
        self._parts = []
        self._unconsumed += 1
        if self._waits:  # it came whole within the window
            self._waits = False
            self._budget.forget(self)
        return message
