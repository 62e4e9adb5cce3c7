"""The upstream adapters of this process, one per dialect that a catalogue may name.

Owns which adapter speaks which dialect; refuses to know how.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.routing_and_inference.catalog import Catalogue
from services.routing_and_inference.ports import Dialects


@asynccontextmanager
async def open_dialects(catalogue: Catalogue, *, is_instant: bool) -> AsyncIterator[Dialects]:
    """Opens the adapters and closes them in the end. `is_instant`: the simulated upstream does not pace itself."""
    yield Dialects({}, {}, {})
