"""Calls that stay in the process: the two halves of a link, joined without a socket.

Owns the joint; everything that a caller or a handler could notice is the link's own code, so it is the same.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from mws.link.v1.link_service_pb2 import OpenRequest, OpenResponse

from services.link.channel import CallChannel, TraceContext, no_trace
from services.link.client_link import ClientLink
from services.link.frames import REQUEST_WINDOW_BYTES, RESPONSE_WINDOW_BYTES, Batch, Outbox
from services.link.server_link import ServerLink
from services.runtime.calls import Caller, CancelReason, Guard, MethodTable


class InProcessChannel(CallChannel):
    """Made in a running loop; calls the handlers of `table` as `caller`. Messages are serialized: nothing is shared."""

    def __init__(
        self, table: MethodTable, guard: Guard, caller: Caller, *, trace_context: TraceContext = no_trace
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._to_server = Outbox(OpenRequest, self._wake_server)
        self._to_client = Outbox(OpenResponse, self._wake_client)
        self._client = ClientLink(loop, self._to_server, REQUEST_WINDOW_BYTES)
        self._server = ServerLink(self._to_client, table, guard, caller, RESPONSE_WINDOW_BYTES)
        self._to_server.take()  # from now on, the first frame calls back
        self._to_client.take()
        super().__init__(self._client.start, trace_context)

    async def close(self) -> None:
        """Cancels what still runs, and returns once it has ended."""
        self._client.cancel_all(CancelReason.SHUTDOWN)
        self._server.close(CancelReason.SHUTDOWN)
        await self._server.ended()

    async def __aenter__(self) -> "InProcessChannel":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _wake_server(self) -> None:
        self._loop.call_soon(self._carry_requests)

    def _wake_client(self) -> None:
        self._loop.call_soon(self._carry_responses)

    def _carry_requests(self) -> None:
        self._carry(self._to_server.take(), self._server.on_batch, self._carry_requests)

    def _carry_responses(self) -> None:
        self._carry(self._to_client.take(), self._client.on_batch, self._carry_responses)

    def _carry(self, batch: Batch | None, deliver: Callable[[Batch], None], again: Callable[[], None]) -> None:
        if batch is not None:
            deliver(batch)
            self._loop.call_soon(again)
