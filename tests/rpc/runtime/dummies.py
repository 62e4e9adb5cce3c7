"""A process with every RPC of proto/mws behind it, and what callers need to reach it.

Owns the dummy servicers and the running process of these tests; refuses to assert anything.
"""

import importlib
import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from services.runtime.callers import mint_secrets, read_token
from services.runtime.calls import Call, Caller, CallerClass, Method, MethodTable
from services.runtime.channel import connect
from services.runtime.errors import InvalidCredentialError
from services.runtime.process import Ports, Process
from services.runtime.settings import METRICS_PORT_OFFSET, ProcessSettings

PROTO = Path(__file__).parents[3] / "proto"
TEAM_KEY = "mws_live_team_of_account_7"
TEAM = Caller(CallerClass.TEAM, "team-7", account_id="account-7")


def all_rpcs() -> dict[str, MethodDescriptor]:
    """Every RPC of proto/mws by path, from the descriptors; the link's is served by the link listener itself."""
    found: dict[str, MethodDescriptor] = {}
    for path in sorted(PROTO.glob("mws/*/v1/*_service.proto")):
        module = ".".join(path.relative_to(PROTO).with_suffix("").parts) + "_pb2"
        for service in importlib.import_module(module).DESCRIPTOR.services_by_name.values():
            if service.full_name != "mws.link.v1.LinkService":
                found |= {f"/{service.full_name}/{method.name}": method for method in service.methods}
    return found


Behavior = Callable[[Any, Call], Any]
"""What a dummy does with a call: returns, raises or waits. A streaming one answers with one message after it."""


def dummy_table(behave: Behavior) -> MethodTable:
    """All RPCs, each running `behave` and answering with an empty message."""
    table = MethodTable()
    for path, rpc in all_rpcs().items():
        request = message_factory.GetMessageClass(rpc.input_type)
        response = message_factory.GetMessageClass(rpc.output_type)

        async def unary(message: Any, call: Call, response: Any = response) -> Any:
            return await behave(message, call) or response()

        async def stream(message: Any, call: Call, response: Any = response) -> AsyncIterator[Any]:
            yield await behave(message, call) or response()

        behavior = stream if rpc.server_streaming else unary
        table.methods[path] = Method(
            path, behavior, request.FromString, response.SerializeToString, rpc.server_streaming
        )
    return table


async def resolve_team(token: str) -> Caller:
    """Knows one team."""
    if token != TEAM_KEY:
        raise InvalidCredentialError("the credential is not valid")
    return TEAM


@dataclass
class Running:
    """A process that serves the dummies."""

    process: Process
    ports: Ports
    log: io.BytesIO
    data_dir: Path
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    def channel(self, caller: CallerClass, transport: Any = "grpc", *, token: str | None = None) -> grpc.aio.Channel:
        """A channel as a caller of this class has it."""
        if token is None:
            token = TEAM_KEY if caller is CallerClass.TEAM else read_token(self.data_dir / "secrets", caller)
        channel = connect([self.address], transport=transport, token=token)
        self.channels.append(channel)
        return channel

    def lines(self) -> list[dict[str, Any]]:
        """Everything that was logged so far."""
        self.process.log.flush()
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def calls_logged(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == "rpc.finished"]


Serve = Callable[..., AbstractAsyncContextManager[Running]]


def free_port() -> int:
    """A port that is free together with its link and metrics neighbours, which callers find by their offsets."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            if port + METRICS_PORT_OFFSET < 65_536 and all(map(_is_free, (port + 100, port + METRICS_PORT_OFFSET))):
                return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def settings_for(data_dir: Path, **changes: Any) -> ProcessSettings:
    """Settings of a process on free ports."""
    return ProcessSettings(**{"name": "probe-0", "port": free_port(), "data_dir": data_dir, "drain_s": 5.0, **changes})


@asynccontextmanager
async def serving(
    data_dir: Path, behave: Behavior, *, table: MethodTable | None = None, **changes: Any
) -> AsyncIterator[Running]:
    """A whole process in this loop, drained at the end."""
    mint_secrets(data_dir / "secrets")
    log = io.BytesIO()
    async with Process(settings_for(data_dir, **changes), CallerClass.EDGE, log_stream=log) as process:
        ports = await process.start(table or dummy_table(behave), resolve_caller=resolve_team)
        running = Running(process, ports, log, data_dir)
        try:
            yield running
        finally:
            for channel in running.channels:
                await channel.close(None)
            await process.drain()


async def do_nothing(_request: Any, _call: Call) -> None:
    """A handler that succeeds at once."""
