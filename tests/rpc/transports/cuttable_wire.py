"""A wire between a channel and a listener that tests can cut or hush.

Owns a TCP relay; refuses to know what it carries.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.link.client import LinkChannel
from services.link.connection import Identity
from services.link.options import LinkOptions
from services.link.server import LinkListener
from tests.rpc.transports.probe_service import TOKEN, ProbeService, Stub, background, identify

QUICK = LinkOptions(ping_every_s=0.1, dead_after_s=0.3, connect_grace_s=0.3, resolve_every_s=0.05)


class CuttableWire:
    """A TCP relay between a channel and a listener, that can be cut or go silent."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []
        self._flows = asyncio.Event()
        self._flows.set()

    async def open(self) -> int:
        """Returns the port to connect to."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def cut(self) -> None:
        """Breaks every connection, and takes no more."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._flows.set()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def hush(self) -> None:
        """Carries nothing any more, and breaks nothing."""
        self._flows.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, back]
        self._pumps += [background(self._pump(reader, back)), background(self._pump(there, writer))]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
        writer.close()


@asynccontextmanager
async def over_wire(service: ProbeService, options: LinkOptions = QUICK) -> AsyncIterator[tuple[Stub, CuttableWire]]:
    listener = LinkListener(service.table, service.guard(), identify, options=options)
    wire = CuttableWire(await listener.start("127.0.0.1:0"))
    channel = LinkChannel([f"127.0.0.1:{await wire.open()}"], Identity(TOKEN, "edge-0"), options=options)
    try:
        await channel.wait_for_links()
        yield Stub(channel), wire
    finally:
        await channel.close()
        await wire.cut()
        await listener.drain(0)
