"""Registers the catalogue's price book with metering.

Owns the registration; refuses to price anything. Until it was accepted once, this process is not ready.
"""

import asyncio
from typing import TYPE_CHECKING

import structlog
from mws.metering.v1 import metering_service_pb2 as pb

from services.routing_and_inference.price_book import PriceBook
from services.runtime.errors import GatewayError

if TYPE_CHECKING:
    from mws.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub

log = structlog.get_logger()

_TIMEOUT_S = 5.0
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 2.0


class PriceRegistration:
    """The price books as metering gets them."""

    def __init__(self, metering: "MeteringServiceAsyncStub", book: PriceBook) -> None:
        self._metering = metering
        self._requests = {book.version: _request_of(book)}

    def add(self, book: PriceBook) -> None:
        """A further book. Earlier ones stay: calls that began with them may still have to be priced."""
        self._requests.setdefault(book.version, _request_of(book))

    async def register(self) -> None:
        """Registers them, again and again until metering accepts. A repeat changes nothing."""
        retry_s = _FIRST_RETRY_S
        while not await self.is_registered():
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, _LAST_RETRY_S)

    async def is_registered(self) -> bool:
        """Registers each once; false: metering did not accept."""
        for version, request in list(self._requests.items()):
            try:
                await self._metering.RegisterPriceBook(request, timeout=_TIMEOUT_S)
            except GatewayError as error:
                log.warning("prices.not_registered", version=version, code=error.code.name)
                return False
        return True


def _request_of(book: PriceBook) -> pb.RegisterPriceBookRequest:
    request = pb.RegisterPriceBookRequest(version=book.version)
    for slug, price in sorted(book.prices.items()):
        request.prices.add(
            profile=slug,
            input_nano_usd=price.input_nano_usd,
            output_nano_usd=price.output_nano_usd,
            cache_read_nano_usd=price.cache_read_nano_usd,
            cache_write_5m_nano_usd=price.cache_write_5m_nano_usd,
            cache_write_1h_nano_usd=price.cache_write_1h_nano_usd,
            search_unit_nano_usd=price.search_unit_nano_usd,
        )
    return request
