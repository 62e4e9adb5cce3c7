"""Relays the events of a running call to its client: frames as they come, pings in the silence, or one reply.

Owns when the head leaves and when a ping does; refuses to know what frames look like.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mws.inference.v1 import generation_pb2 as pb

from edge.answer import AnswerStream, Head
from edge.ask import Ask
from edge.clients import GenerateCall
from edge.exchange import Exchange, Spawn
from edge.shapes import Shape
from services.runtime.calls import CancelReason
from services.runtime.errors import GatewayError, UpstreamBrokenError
from services.runtime.ids import unix_ms_of


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """`commit_after_s`: the head is held for content no longer than this. `ping_every_s`: the longest silence."""

    commit_after_s: float
    ping_every_s: float


class Relays:
    """The calls that are being relayed, so that a drain can end them at its deadline."""

    def __init__(self) -> None:
        self._calls: set[GenerateCall] = set()

    def __len__(self) -> int:
        return len(self._calls)

    @contextmanager
    def running(self, call: GenerateCall) -> Iterator[None]:
        """Counts a call while it is relayed."""
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)

    def cut(self) -> None:
        """Ends all calls; their clients get a typed error."""
        for call in list(self._calls):
            call.cancel(CancelReason.SHUTDOWN)


def note_admitted(exchange: Exchange, admitted: pb.Admitted, ask: Ask) -> Head:
    """Keeps what the answer's head needs from the admission."""
    exchange.account_id = admitted.account_id
    exchange.profile = admitted.profile
    exchange.dropped_images = admitted.dropped_images
    exchange.limits = admitted.limits
    exchange.is_replay = bool(admitted.replay_of)
    call_id = admitted.replay_of or exchange.call_id  # a replay is the earlier answer, its id and date included
    return Head(call_id, unix_ms_of(call_id) // 1_000, ask.model, max(1, admitted.estimated_input_tokens))


def note_finished(exchange: Exchange, finished: pb.Finished) -> None:
    """Keeps the counts for the log line."""
    exchange.input_tokens = finished.usage.input_tokens
    exchange.output_tokens = finished.usage.output_tokens


async def collect(call: GenerateCall, exchange: Exchange, shape: Shape, ask: Ask) -> bytes:
    """Reads a whole answer and folds it into one reply body."""
    fold = None
    is_finished = False
    async for response in call:
        events = response.events
        if fold is None:
            fold = shape.fold(note_admitted(exchange, _admitted(events[0]), ask), ask)
        fold.feed(events)
        if events[-1].HasField("finished"):
            note_finished(exchange, events[-1].finished)
            is_finished = True
    if fold is None or not is_finished:
        raise UpstreamBrokenError("the answer ended without its last event")
    return fold.reply()


def _admitted(event: pb.GenerationEvent) -> pb.Admitted:
    if not event.HasField("admitted"):
        raise GatewayError("the answer did not begin with its admission")
    return event.admitted


def _note_started(stream: AnswerStream, events: Iterable[pb.GenerationEvent]) -> None:
    for event in events:
        if event.HasField("message_started"):
            stream.note_started(event.message_started)


class StreamRelay:
    """One stream. The head leaves with the first frames that hold content, or when it was held long enough."""

    def __init__(self, exchange: Exchange, shape: Shape, ask: Ask, times: StreamTimes, spawn: Spawn) -> None:
        self._exchange = exchange
        self._shape = shape
        self._ask = ask
        self._times = times
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._stream: AnswerStream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_sent = self._loop.time()  # seconds
        # The timer's task and the relay itself both write; frames must not get between a head and its first frames.
        self._writing = asyncio.Lock()

    async def run(self, call: GenerateCall) -> None:
        """Relays until the last event has left. Raises GatewayError, before or after the head."""
        self._arm(self._times.commit_after_s)
        try:
            is_finished = await self._relay(call)
        except GatewayError:
            async with self._writing:  # whoever words this failure must not get between a head and its first frames
                raise
        finally:
            if self._timer is not None:
                self._timer.cancel()
        if not is_finished:
            raise UpstreamBrokenError("the answer ended without its last event")

    async def _relay(self, call: GenerateCall) -> bool:
        """Whether the last event was among those that came."""
        is_finished = False
        async for response in call:
            events = response.events
            stream = self._stream or self._begin(events)
            if not self._exchange.has_started:
                _note_started(stream, events)
            frames = stream.feed(events)
            if events[-1].HasField("finished"):
                note_finished(self._exchange, events[-1].finished)
                is_finished = True
            if not frames:
                continue
            if self._exchange.has_started and not self._writing.locked():  # the plain case, for nearly every frame
                self._last_sent = self._loop.time()
                await self._exchange.send_frames(frames, is_last=is_finished)
            else:
                await self._write(frames, is_last=is_finished)
        return is_finished

    def _begin(self, events: Sequence[pb.GenerationEvent]) -> AnswerStream:
        head = note_admitted(self._exchange, _admitted(events[0]), self._ask)
        self._stream = self._shape.stream(head, self._ask)
        return self._stream

    async def _write(self, frames: bytes, *, is_last: bool = False) -> None:
        async with self._writing:
            if self._exchange.is_complete:
                return
            self._last_sent = self._loop.time()
            if not self._exchange.has_started:
                assert self._stream is not None
                await self._exchange.start_stream()
                frames = self._stream.start() + frames
            await self._exchange.send_frames(frames, is_last=is_last)

    # ---- silence ----

    def _arm(self, delay_s: float) -> None:
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        if self._exchange.is_complete or self._exchange.is_gone:
            return
        silence_s = self._loop.time() - self._last_sent
        allowed_s = self._times.ping_every_s if self._exchange.has_started else self._times.commit_after_s
        if silence_s < allowed_s - 0.001:
            self._arm(allowed_s - silence_s)
        elif self._stream is None:  # not admitted yet: there is nothing true to say
            self._arm(min(1.0, self._times.ping_every_s))
        else:
            self._spawn(self._break_silence())
            self._arm(self._times.ping_every_s)

    async def _break_silence(self) -> None:
        if not self._exchange.is_complete and not self._writing.locked():
            await self._write(self._shape.ping)
