"""The catalogue in force, and what it takes to replace it while calls run.

Owns the moment of the change: new calls see the new catalogue, running ones end by the one they began with; refuses to
read files. A catalogue comes into force once metering knows its prices, and not before.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from services.routing_and_inference.catalog import Catalogue, Profile
from services.routing_and_inference.catalog_file import CatalogError
from services.routing_and_inference.price_book import PriceBook, price_book_of

log = structlog.get_logger()

_LOOK_EVERY_S: Final = 1.0

Stamp = tuple[int, int, int]
"""Of a file: inode, size, time of the last change in nanoseconds."""


class CurrentCatalogue:
    """What everybody asks who needs the catalogue; never kept across an `await` but as the values of a call."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.replace(catalogue)

    def replace(self, catalogue: Catalogue) -> None:
        """From now on this one is in force."""
        self.catalogue = catalogue
        self.book: PriceBook = price_book_of(profiles_of(catalogue))


def profiles_of(catalogue: Catalogue) -> tuple[Profile, ...]:
    """All that can be called, the company proxy's models included."""
    return (*catalogue.profiles, *catalogue.company_proxy.models)


class CatalogueWatch:
    """Reads the file again whenever it changes. `load` raises CatalogError for a bad one: the old one then stays."""

    def __init__(
        self,
        stamp: Callable[[], Stamp | None],
        load: Callable[[], Catalogue],
        adopt: Callable[[Catalogue], Awaitable[None]],
    ) -> None:
        self._stamp = stamp
        self._load = load
        self._adopt = adopt
        self._seen = stamp()

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.look()

    async def look(self) -> CatalogError | None:
        """Looks once. Returns what a changed file was refused for."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:  # a file that is being replaced may be missing for a moment
            return None
        self._seen = stamp
        try:
            catalogue = await asyncio.to_thread(self._load)
        except CatalogError as error:
            log.warning("catalogue.refused", problems=str(error))
            return error
        await self._adopt(catalogue)
        log.info("catalogue.in_force", profiles=len(catalogue.profiles))
        return None
