"""The path of a generating call through the edge: credential, body, parse, Generate, relay; the same for every shape.

Owns the order of those steps and which failure wins; refuses to know either dialect and to decide who may call.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mws.common.v1 import token_usage_pb2
from mws.inference.v1 import generation_pb2 as pb
from mws.inference.v1 import inference_service_pb2 as inference_pb

from edge.answer import Head
from edge.ask import Ask
from edge.bodies import read_body
from edge.clients import Admission, GenerateCall, Inference, UnaryCall
from edge.exchange import Exchange, Spawn
from edge.gate import Gate
from edge.metrics import EdgeMetrics
from edge.problems import BadFieldError
from edge.relay import Relays, StreamRelay, StreamTimes, collect
from edge.shapes import Shape
from services.runtime.errors import (
    CallCancelledError,
    GatewayError,
    InvalidCredentialError,
    MessageTooLargeError,
    RateLimitedError,
    reason_name,
)

T = TypeVar("T")
LARGE_BODY_BYTES = 1 << 20
_IDEMPOTENCY_KEY_MAX = 255


@dataclass(frozen=True, slots=True)
class PipelineRules:
    """Sizes and times of the public surface."""

    body_limit_bytes: int
    stream_times: StreamTimes
    base64_embeddings: bool = True


class Pipeline:
    """One per process; every request of a hot route passes through it."""

    def __init__(  # the collaborators of the one pipeline, wired once in app.py
        self,
        rules: PipelineRules,
        gate: Gate,
        admission: Admission,
        inference: Inference,
        *,
        spawn: Spawn,
        metrics: EdgeMetrics,
    ) -> None:
        self.rules = rules
        self.gate = gate
        self.admission = admission
        self.inference = inference
        self.relays = Relays()
        self._spawn = spawn
        self._metrics = metrics
        self._large_body = asyncio.Lock()

    # ---- what every authenticated route does ----

    async def serve(self, exchange: Exchange, shape: Shape, work: Callable[[bytes], Awaitable[None]]) -> None:
        """Runs the work of a route with the key's digest, and answers whatever failure comes out of it."""
        digest: bytes | None = None
        try:
            digest = self.gate.admit(exchange, shape.door)
            await work(digest)
            self.gate.welcome(digest)
        except GatewayError as error:
            await self._fail(exchange, shape, error, digest)

    async def look_up(self, exchange: Exchange, digest: bytes) -> None:
        """Notes who pays, and the limits for the answer's headers."""
        answer = await self.admission.get_limits(digest)
        self.gate.welcome(digest)
        exchange.account_id = answer.account_id
        exchange.limits = answer.limits

    async def read_body(self, exchange: Exchange, digest: bytes) -> bytes:
        """The request's body. When it is refused, a bad key is worse news, and the limits are still told."""
        try:
            return await read_body(exchange, self.rules.body_limit_bytes)
        except (BadFieldError, MessageTooLargeError):
            await self.look_up(exchange, digest)
            raise

    async def parse(self, exchange: Exchange, digest: bytes, parse: Callable[[], T]) -> T:
        """What a parser makes of the body; its complaints are treated as those of `read_body`."""
        try:
            return parse()
        except BadFieldError:
            await self.look_up(exchange, digest)
            raise

    async def ask(self, exchange: Exchange, digest: bytes, read: Callable[[bytes], Ask]) -> tuple[Ask, bytes]:
        """The request, read; and its body."""
        body = await self.read_body(exchange, digest)
        if len(body) <= LARGE_BODY_BYTES:
            return await self.parse(exchange, digest, lambda: read(body)), body
        async with self._large_body:  # one at a time, and in a thread, so that streams go on meanwhile
            outcome = await asyncio.to_thread(_read_ahead, read, body)
        return await self.parse(exchange, digest, outcome), body

    async def follow(self, exchange: Exchange, call: "UnaryCall[T]") -> T:
        """A call's response; the call is cancelled when the client leaves."""
        exchange.watch(call.cancel, self._spawn)
        return await call

    async def idempotency(self, exchange: Exchange, digest: bytes, body: bytes) -> tuple[str, bytes]:
        """The caller's `Idempotency-Key` and the body's digest; both empty without one."""
        key = exchange.header(b"idempotency-key")
        if not key:
            return "", b""
        if len(key) > _IDEMPOTENCY_KEY_MAX:
            await self.look_up(exchange, digest)
            raise BadFieldError((), "value", f"Idempotency-Key may have at most {_IDEMPOTENCY_KEY_MAX} characters")
        return key.decode("latin-1"), hashlib.sha256(body).digest()

    async def _fail(self, exchange: Exchange, shape: Shape, error: GatewayError, digest: bytes | None = None) -> None:
        """Answers a failure: as a status while the head is here, else as the stream's last event."""
        if isinstance(error, InvalidCredentialError) and digest is not None:
            try:
                self.gate.refuse(digest, exchange)
            except RateLimitedError as limited:
                error = limited
        exchange.reason = reason_name(error)
        if exchange.is_gone:
            return
        if exchange.has_started:
            await exchange.send_frames(shape.render_event(error, exchange.call_id), is_last=True)
            return
        exchange.limits = error.limits or exchange.limits
        reply = shape.render(error, exchange.call_id)
        await exchange.respond(reply.status, reply.body, reply.headers)

    # ---- generating ----

    async def generate(self, exchange: Exchange, shape: Shape) -> None:
        """Serves POST /v1/messages or /v1/chat/completions."""

        async def work(digest: bytes) -> None:
            ask, body = await self.ask(exchange, digest, shape.read)
            if ask.generates_nothing:
                await self._answer_nothing(exchange, shape, ask, digest)
            else:
                request = await self._request(exchange, ask, digest, body)
                await self.relay(exchange, shape, ask, self.inference.generate(request))

        await self.serve(exchange, shape, work)

    async def _request(self, exchange: Exchange, ask: Ask, digest: bytes, body: bytes) -> inference_pb.GenerateRequest:
        request = inference_pb.GenerateRequest(
            call_id=exchange.call_id, model=ask.model, generation=ask.generation, dialect=ask.dialect
        )
        request.credential.api_key_sha256 = digest
        request.idempotency_key, request.body_sha256 = await self.idempotency(exchange, digest, body)
        return request

    async def relay(self, exchange: Exchange, shape: Shape, ask: Ask, call: GenerateCall) -> None:
        """Answers with the events of a running call, streamed or folded; the call ends when the client leaves."""
        with self.relays.running(call):
            exchange.watch(call.cancel, self._spawn)
            try:
                if ask.generation.stream:
                    relay = StreamRelay(exchange, shape, ask, self.rules.stream_times, self._spawn)
                    await relay.run(call)
                else:
                    body = await collect(call, exchange, shape, ask)
                    await exchange.respond(200, body, [])
            except CallCancelledError:
                if exchange.is_gone:
                    exchange.reason = "CLIENT_GONE"
                    return
                raise
            finally:
                call.cancel()  # nothing happens to a call that has ended

    async def _answer_nothing(self, exchange: Exchange, shape: Shape, ask: Ask, digest: bytes) -> None:
        """`max_tokens: 0` asks for an answer without a single token: there is nothing to run, nor to charge."""
        await self.look_up(exchange, digest)
        head = Head(exchange.call_id, int(time.time()), ask.model, await self.inference.count_tokens(ask))
        usage = token_usage_pb2.TokenUsage(input_tokens=head.estimated_input_tokens, output_tokens=0)
        end = pb.GenerationEvent(finished=pb.Finished(reason=pb.FINISH_REASON_LENGTH, usage=usage))
        if ask.generation.stream:
            stream = shape.stream(head, ask)
            await exchange.start_stream()
            await exchange.send_frames(stream.start() + stream.feed([end]), is_last=True)
            return
        fold = shape.fold(head, ask)
        fold.feed([end])
        await exchange.respond(200, fold.reply(), [])


def _read_ahead(read: Callable[[bytes], Ask], body: bytes) -> Callable[[], Ask]:
    """What reading the body comes to, for whoever asks later."""
    try:
        ask = read(body)
    except BadFieldError as error:
        return partial(_refuse, error)
    return lambda: ask


def _refuse(error: BadFieldError) -> Ask:
    raise error
