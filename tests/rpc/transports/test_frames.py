"""The arithmetic of links, for any sizes and any interleaving.

Owns properties of cutting, order, windows and the memory budget; no loop and no socket takes part.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mws.link.v1.link_service_pb2 import OpenResponse

from services.link.frames import (
    MESSAGE,
    MESSAGE_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    PIECE_BYTES,
    RESPONSE_WINDOW_BYTES,
    WIRE_BYTES,
    Outbox,
    Sender,
)
from services.link.reassembly import (
    Budget,
    NoMemoryError,
    OversizedMessageError,
    ProtocolViolationError,
    Receiver,
)

WINDOW = RESPONSE_WINDOW_BYTES
SIZES = st.one_of(
    st.integers(0, 200),
    st.sampled_from([PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, WINDOW // 2 + 1, WINDOW, WINDOW + 1]),
    st.integers(0, 200_000),
)


@dataclass
class Reader:
    """One call's consumer, and the window frames that go back."""

    receiver: Receiver
    arrived: deque[bytes] = field(default_factory=deque)
    consumed: list[bytes] = field(default_factory=list)


class Bench:
    """Senders of several calls on one outbox, their receivers on one budget, and no wire in between."""

    def __init__(self, calls: int, capacity_bytes: int) -> None:
        self.woken = 0
        self.outbox = Outbox(OpenResponse, self._wake)
        self.budget = Budget(capacity_bytes)
        self.senders = {call: Sender(call, WINDOW) for call in range(1, calls + 1)}
        self.window_frames: deque[tuple[int, int]] = deque()
        self.readers = {call: Reader(Receiver(WINDOW, self.budget, self._widener(call))) for call in self.senders}
        self.order: list[int] = []
        assert self.outbox.take() is None

    def _wake(self) -> None:
        self.woken += 1

    def _widener(self, call: int):  # type: ignore[no-untyped-def]
        return lambda size: self.window_frames.append((call, size))

    def carry(self) -> bool:
        """Carries one wire message; False if there was none."""
        batch = self.outbox.take()
        if batch is None:
            return False
        assert batch.SerializeToString().__len__() <= WIRE_BYTES  # type: ignore[attr-defined]
        for frame in batch.frames:
            assert frame.kind == MESSAGE
            self.order.append(frame.call)
            reader = self.readers[frame.call]
            message = reader.receiver.take(frame.payload, frame.more, frame.message_bytes)
            if message is not None:
                reader.arrived.append(message)
            assert self.senders[frame.call].window_bytes >= 0
            assert reader.receiver.window_bytes >= 0
        return True

    def consume(self, call: int) -> bool:
        """Uses one message of a call; False if there was none."""
        reader = self.readers[call]
        if not reader.arrived:
            return False
        message = reader.arrived.popleft()
        reader.receiver.consumed(len(message))
        reader.consumed.append(message)
        return True

    def widen(self) -> bool:
        """Carries one window frame back; False if there was none."""
        if not self.window_frames:
            return False
        call, size = self.window_frames.popleft()
        self.outbox.widen(self.senders[call], size)
        return True


@given(
    messages=st.lists(st.tuples(st.integers(1, 4), SIZES), max_size=30),
    steps=st.lists(st.integers(0, 9), max_size=200),
)
def test_whatever_the_interleaving_all_messages_arrive_whole_in_order_and_within_windows(
    messages: list[tuple[int, int]], steps: list[int]
) -> None:
    bench = Bench(calls=4, capacity_bytes=300_000)
    sent: dict[int, list[bytes]] = defaultdict(list)
    waiting = deque((call, bytes([number % 251]) * size) for number, (call, size) in enumerate(messages))

    def step(choice: int) -> bool:
        if choice == 0 and waiting:
            call, message = waiting.popleft()
            bench.outbox.send(bench.senders[call], message)
            sent[call].append(message)
            return True
        if choice <= 4:
            return bench.carry()
        return bench.consume(choice - 4) if choice <= 8 else bench.widen()

    for choice in steps:
        step(choice)
    while any(step(choice) for choice in range(10)):
        assert bench.budget.reserved_bytes <= bench.budget.capacity_bytes
    assert {call: reader.consumed for call, reader in bench.readers.items() if reader.consumed} == dict(sent)
    assert (bench.budget.reserved_bytes, bench.budget.waiting_bytes) == (0, 0)


@given(sizes=st.lists(SIZES, min_size=1, max_size=40))
def test_a_reader_that_consumes_nothing_holds_a_window_and_no_more(sizes: list[int]) -> None:
    bench = Bench(calls=1, capacity_bytes=10_000_000)
    for size in sizes:
        bench.outbox.send(bench.senders[1], b"x" * size)
    while bench.carry() or bench.widen():
        pass
    held = sum(map(len, bench.readers[1].arrived))
    first = sizes[0] if sizes[0] > WINDOW // 2 else 0  # a large message that stands first is let through whole
    assert held <= WINDOW + first


def test_pieces_of_different_calls_alternate() -> None:
    bench = Bench(calls=3, capacity_bytes=10_000_000)
    for sender in bench.senders.values():
        bench.outbox.send(sender, b"x" * (5 * PIECE_BYTES))
    while bench.widen() or bench.carry():
        pass
    assert bench.order == [1, 2, 3] * 5


def test_small_messages_pass_a_large_one() -> None:
    bench = Bench(calls=2, capacity_bytes=10_000_000)
    bench.outbox.send(bench.senders[1], b"x" * (10 * PIECE_BYTES))
    bench.outbox.send(bench.senders[2], b"small")
    bench.carry()
    assert bench.order[0] == 2


def test_small_messages_without_end_do_not_hold_up_a_large_one() -> None:
    bench = Bench(calls=9, capacity_bytes=10_000_000)
    bench.outbox.send(bench.senders[1], b"x" * (2 * PIECE_BYTES))
    while not bench.readers[1].arrived:
        for call in range(2, 10):
            bench.outbox.send(bench.senders[call], b"s" * 10_000)
            bench.consume(call)
        bench.carry()
        bench.widen()
        assert len(bench.order) < 100


def test_a_message_of_no_bytes_costs_window() -> None:
    bench = Bench(calls=1, capacity_bytes=10_000_000)
    sent = 0
    while bench.outbox.send(bench.senders[1], b""):
        sent += 1
    assert sent == WINDOW // MESSAGE_OVERHEAD_BYTES


def test_what_is_dropped_is_not_sent() -> None:
    bench = Bench(calls=2, capacity_bytes=10_000_000)
    for sender in bench.senders.values():
        bench.outbox.send(sender, b"x" * (2 * PIECE_BYTES))
    bench.senders[1].drop()
    while bench.carry() or bench.widen():
        pass
    assert (bench.order, len(bench.readers[2].arrived)) == ([2, 2], 1)


def test_a_drained_sender_says_so() -> None:
    bench = Bench(calls=1, capacity_bytes=10_000_000)
    drained: list[bool] = []
    bench.senders[1].on_drained = lambda: drained.append(True)
    assert not bench.outbox.send(bench.senders[1], b"x" * (2 * PIECE_BYTES))
    bench.carry()
    assert not drained
    while bench.carry() or bench.widen():
        pass
    assert drained == [True]


def test_the_first_frame_after_nothing_was_left_wakes_the_writer_once() -> None:
    bench = Bench(calls=2, capacity_bytes=10_000_000)
    bench.outbox.send(bench.senders[1], b"a")
    bench.outbox.send(bench.senders[2], b"b")
    assert bench.woken == 1
    while bench.carry():
        pass
    bench.outbox.send(bench.senders[1], b"x" * (2 * PIECE_BYTES))
    assert bench.woken == 2


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([(b"x", True, 0)], id="a first piece without a size"),
        pytest.param([(b"xx", True, 1)], id="a first piece over the size"),
        pytest.param([(b"", True, 9)], id="an empty first piece"),
        pytest.param([(b"xx", True, 3), (b"xx", True, 0)], id="more than the size"),
        pytest.param([(b"xx", True, 5), (b"xx", False, 0)], id="less than the size"),
        pytest.param([(b"x" * WINDOW, False, 0)], id="more than the window"),
    ],
)
def test_pieces_that_break_the_rules_are_noticed(pieces: list[tuple[bytes, bool, int]]) -> None:
    receiver = Receiver(WINDOW, Budget(), lambda _: None)
    for piece in pieces[:-1]:
        receiver.take(*piece)
    with pytest.raises(ProtocolViolationError):
        receiver.take(*pieces[-1])


def test_an_oversized_message_is_known_by_its_first_piece() -> None:
    receiver = Receiver(WINDOW, Budget(), lambda _: None)
    with pytest.raises(OversizedMessageError):
        receiver.take(b"x", True, MESSAGE_BYTES + 1)


def test_large_messages_wait_for_memory_in_turn_and_too_many_are_refused() -> None:
    budget = Budget(4 * WINDOW)
    let_through: list[int] = []
    receivers = [Receiver(WINDOW, budget, lambda _, n=number: let_through.append(n)) for number in range(6)]  # type: ignore[misc]
    for receiver in receivers[:5]:
        receiver.take(b"x" * PIECE_BYTES, True, 3 * WINDOW)
    assert let_through == [0]
    with pytest.raises(NoMemoryError):
        receivers[5].take(b"x" * PIECE_BYTES, True, 3 * WINDOW)
    receivers[2].close()
    receivers[0].close()
    assert let_through == [0, 1]
    for receiver in receivers:
        receiver.close()
    assert (budget.reserved_bytes, budget.waiting_bytes, len(budget.waiting)) == (0, 0, 0)
