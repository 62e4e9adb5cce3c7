"""What leaves a link, and in which order: wire messages filled up to their limit, large messages cut and interleaved.

Owns cutting, the order of sending, and the sender's half of the windows. Pure: knows no loop, no socket, no stub.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

KIB = 1024
WIRE_BYTES = 64 * KIB
PIECE_BYTES = 16 * KIB
MESSAGE_BYTES = 48 * KIB * KIB
RESPONSE_WINDOW_BYTES = 32 * KIB
REQUEST_WINDOW_BYTES = 256 * KIB
MESSAGE_OVERHEAD_BYTES = 32
"""What a message costs beyond its length, so that empty messages fill a window too."""
METADATA_BYTES = 8 * KIB
DETAILS_BYTES = 32 * KIB
FRAME_BYTES = 64
"""At most what a frame's tags, lengths and numbers take on the wire."""

VERSION = 1

# FrameKind, as plain numbers: the stub's are the same, and slower to reach.
CALL, MESSAGE, STATUS, CANCEL, WINDOW, PING, PONG, GOAWAY, HELLO = range(1, 10)


class Batch(Protocol):
    """A wire message under construction: `OpenRequest` or `OpenResponse`."""

    @property
    def frames(self) -> Any: ...


class Sender:
    """One direction of one call, as its sender sees it."""

    __slots__ = ("backlog", "call_id", "offset", "on_drained", "scheduled", "window_bytes")

    def __init__(self, call_id: int, window_bytes: int) -> None:
        self.call_id = call_id
        self.window_bytes = window_bytes
        self.backlog: deque[tuple[bytes, bool]] = deque()  # messages not wholly sent, each with its `last`
        self.offset = 0  # how much of the first of them is sent
        self.scheduled = False  # stands in the outbox's turn order
        self.on_drained: Callable[[], None] | None = None

    def next_cost(self) -> int:
        """What the next piece costs; the backlog is not empty."""
        remaining = len(self.backlog[0][0]) - self.offset
        piece = PIECE_BYTES if remaining > PIECE_BYTES else remaining
        return piece if self.offset else piece + MESSAGE_OVERHEAD_BYTES

    def drop(self) -> None:
        """Forgets what is not sent: the call ended."""
        self.backlog.clear()
        self.on_drained = None


class Outbox:
    """Everything that waits to leave on one link.

    Small frames go straight into the wire message that leaves next, in the order of their making. Pieces of messages
    that are large, or that found their window used up, are put in when a wire message is taken, call after call.
    """

    __slots__ = (
        "_batch",
        "_batch_bytes",
        "_frames",
        "_full",
        "_idle",
        "_new_batch",
        "_on_ready",
        "_pieces_next",
        "_turns",
    )

    def __init__(self, new_batch: Callable[[], Batch], on_ready: Callable[[], None]) -> None:
        """`on_ready` is called when there is something to take for the first time since `take` returned None."""
        self._new_batch = new_batch
        self._on_ready = on_ready
        self._full: deque[Batch] = deque()
        self._turns: deque[Sender] = deque()
        self._idle = True
        self._pieces_next = False
        self._batch = new_batch()
        self._frames = self._batch.frames
        self._batch_bytes = 0

    def add(self, size_bytes: int) -> Any:
        """A new frame to be filled at once, that takes no more than this on the wire."""
        self._batch_bytes += size_bytes
        if self._batch_bytes > WIRE_BYTES:
            self._full.append(self._batch)
            self._begin_batch(size_bytes)
        if self._idle:
            self._idle = False
            self._on_ready()
        return self._frames.add()

    def add_simple(self, call_id: int, kind: int) -> Any:
        """A new frame without payload or text."""
        frame = self.add(FRAME_BYTES)
        frame.call = call_id
        frame.kind = kind
        return frame

    def open_call(self, call_id: int, request: bytes, text_bytes: int, window_bytes: int) -> tuple[Any, Sender | None]:
        """The CALL frame, to which the caller adds method and the like (`text_bytes` of them).

        With it the sender of what is to follow, if the request does not fit into one piece.
        """
        size = len(request)
        frame = self.add((size if size <= PIECE_BYTES else PIECE_BYTES) + text_bytes + FRAME_BYTES)
        frame.call = call_id
        frame.kind = CALL
        if size <= PIECE_BYTES:
            frame.payload = request
            return frame, None
        frame.payload = request[:PIECE_BYTES]
        frame.more = True
        frame.message_bytes = size
        sender = Sender(call_id, window_bytes - PIECE_BYTES - MESSAGE_OVERHEAD_BYTES)
        sender.backlog.append((request, False))
        sender.offset = PIECE_BYTES
        self._schedule(sender)
        return frame, sender

    def send(self, sender: Sender, message: bytes, *, last: bool = False) -> bool:
        """Sends a message, or as much of it as may go now. False: wait for `on_drained` before the next."""
        size = len(message)
        window_bytes = sender.window_bytes - size - MESSAGE_OVERHEAD_BYTES
        if size > PIECE_BYTES or window_bytes < 0 or sender.backlog:
            sender.backlog.append((message, last))
            self._schedule(sender)
            return False
        sender.window_bytes = window_bytes
        frame = self.add(size + FRAME_BYTES)
        frame.call = sender.call_id
        frame.kind = MESSAGE
        frame.payload = message
        if last:
            frame.last = True
        return True

    def widen(self, sender: Sender, window_bytes: int) -> None:
        """The receiver widened the window."""
        sender.window_bytes += window_bytes
        if sender.backlog:
            self._schedule(sender)

    def take(self) -> Batch | None:
        """The next wire message; None if there is nothing to send.

        Small frames that fill a wire message alone take turns with pieces.
        """
        if self._full and not (self._pieces_next and self._turns):
            self._pieces_next = True
            return self._full.popleft()
        self._pieces_next = False
        if self._full:
            waiting, waiting_bytes = self._batch, self._batch_bytes
            self._begin_batch(0)
            self._fill()
            batch, self._batch, self._frames, self._batch_bytes = self._batch, waiting, waiting.frames, waiting_bytes
            return batch
        self._fill()
        if not self._batch_bytes:
            self._idle = True
            return None
        batch = self._batch
        self._begin_batch(0)
        return batch

    def _begin_batch(self, size_bytes: int) -> None:
        self._batch = self._new_batch()
        self._frames = self._batch.frames
        self._batch_bytes = size_bytes

    def _schedule(self, sender: Sender) -> None:
        if sender.scheduled or sender.next_cost() > sender.window_bytes:
            return
        sender.scheduled = True
        self._turns.append(sender)
        if self._idle:
            self._idle = False
            self._on_ready()

    def _fill(self) -> None:
        turns = self._turns
        while turns and self._batch_bytes + PIECE_BYTES + FRAME_BYTES <= WIRE_BYTES:
            sender = turns.popleft()
            sender.scheduled = False
            if not sender.backlog:
                continue  # dropped meanwhile
            self._add_piece(sender)
            if sender.backlog:
                self._schedule(sender)
            elif sender.on_drained is not None:
                sender.on_drained()

    def _add_piece(self, sender: Sender) -> None:
        message, last = sender.backlog[0]
        sender.window_bytes -= sender.next_cost()
        start = sender.offset
        end = min(start + PIECE_BYTES, len(message))
        self._batch_bytes += end - start + FRAME_BYTES
        frame = self._frames.add()
        frame.call = sender.call_id
        frame.kind = MESSAGE
        frame.payload = message[start:end]
        if start == 0 and end < len(message):
            frame.message_bytes = len(message)
        if end < len(message):
            frame.more = True
            sender.offset = end
            return
        if last:
            frame.last = True
        sender.backlog.popleft()
        sender.offset = 0
