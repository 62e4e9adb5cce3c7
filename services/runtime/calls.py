"""What a call is on the server side, whichever transport brought it: its caller, its method, its context.

Owns the shapes that servicers and transports share; refuses to move bytes and to decide who may call what.
"""

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

Metadata = Sequence[tuple[str, str | bytes]]


class CallerClass(enum.StrEnum):
    """Who calls: one of our own processes, an administrator, or a team acting for its account."""

    EDGE = "edge"
    AUTH = "auth"
    INFERENCE = "inference"
    METERING = "metering"
    ADMIN = "admin"
    TEAM = "team"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. `account_id` is set for a team only: the one account that it may act for.

    `key_sha256`: the digest of the API key that a team came with, where calls are admitted by it; empty for all others.
    """

    caller_class: CallerClass
    name: str
    account_id: str = ""
    key_sha256: bytes = field(default=b"", repr=False)


class CancelReason(enum.StrEnum):
    """Why a caller cancelled."""

    CLIENT_GONE = "client_gone"
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"


class Call:
    """The context that every servicer method receives, over plain gRPC, the link and in process alike.

    `facts` are fields that a handler adds to the call's one log line (ids and counts, never content or secrets).
    `cancel_reason` is None while a handler is being cancelled when its link was lost: nobody said that the call is not
    wanted, which is not the same as CLIENT_GONE. (Plain gRPC cannot tell the two apart and says CLIENT_GONE.)
    `observed` belongs to the guard: what it keeps between `admit` and `finish`.
    """

    __slots__ = (
        "caller",
        "cancel_reason",
        "deadline",
        "facts",
        "metadata",
        "observed",
        "path",
        "started",
        "trailing_metadata",
    )

    def __init__(self, path: str, caller: Caller, metadata: Metadata, started: float, deadline: float | None) -> None:
        self.path = path
        self.caller = caller
        self.metadata = metadata
        self.started = started  # loop time, seconds
        self.deadline = deadline  # loop time, seconds; None: no deadline
        self.cancel_reason: CancelReason | None = None
        self.trailing_metadata: Metadata = ()
        self.facts: dict[str, str | int | float] | None = None
        self.observed: Any = None

    def note(self, **facts: str | int | float) -> None:
        """Adds facts to the call's log line."""
        if self.facts is None:
            self.facts = facts
        else:
            self.facts.update(facts)


def call_of(context: object) -> Call:
    """The call behind the `context` argument of a servicer method."""
    assert isinstance(context, Call)
    return context


Serializer = Callable[[Any], bytes]
Deserializer = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class Method:
    """One registered RPC: how to read its request, run it and write its response."""

    path: str  # "/mws.admission.v1.AdmissionService/Admit"
    behavior: Callable[[Any, Any], Any]  # coroutine function (unary) or async generator function (streaming)
    read_request: Deserializer
    write_response: Serializer
    is_streaming: bool


@dataclass(slots=True)
class MethodTable:
    """Collects the handlers of generated `add_…Servicer_to_server(servicer, table)` functions, by path."""

    methods: dict[str, Method] = field(default_factory=dict)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Called by generated code: the handlers of one service."""
        for name, handler in method_handlers.items():
            if handler.request_streaming:
                raise ValueError(f"{service_name}/{name}: client streaming is reserved for the link")
            path = f"/{service_name}/{name}"
            behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary
            assert behavior is not None
            assert handler.request_deserializer is not None
            assert handler.response_serializer is not None
            self.methods[path] = Method(
                path, behavior, handler.request_deserializer, handler.response_serializer, handler.response_streaming
            )

    def add_generic_rpc_handlers(self, generic_rpc_handlers: object) -> None:
        """Called by generated code with the same handlers in another form; there is nothing to add."""


class Guard(Protocol):
    """What stands around every call of every transport: authorisation, errors, deadline, log line, metrics, span.

    A transport calls `admit` before the handler, in the task that runs the handler (the trace context is set there),
    and `finish` exactly once after it, whatever happened; also when `admit` raised, or was never reached.
    """

    def admit(self, method: Method, call: Call) -> None:
        """Checks who may call what and gives a call without a deadline its default. Raises GatewayError."""

    def finish(self, method: Method, call: Call, error: BaseException | None) -> Any:
        """Ends the call's log line, metrics and span. Returns None for success, else the GatewayError to send: an
        unexpected exception becomes INTERNAL without its text, a cancellation CANCELLED, DEADLINE_EXCEEDED or,
        for reason SHUTDOWN, SERVICE_UNAVAILABLE."""


UnaryHandler = Callable[[Any, Call], Awaitable[Any]]
