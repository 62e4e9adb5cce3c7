"""A catalogue that changes while calls run: new calls see the new one, running ones end by the one they began with."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from mws.inference.v1 import catalog_service_pb2 as catalog_pb
from mws.inference.v1.generation_pb2 import GenerationEvent

from services.routing_and_inference import catalog_file
from services.routing_and_inference.catalog import Catalogue, Kind, Price
from services.routing_and_inference.current import CatalogueWatch, Stamp
from services.routing_and_inference.ports import UpstreamRequest
from tests.rpc.routing_and_inference.world import a_request, a_world, finished, small_catalogue, started, text, until


def dearer() -> Catalogue:
    """The small catalogue with another price for `plain`, and a further profile."""
    old = small_catalogue()
    plain = replace(old.profiles[0], price=Price(20, 200))
    return Catalogue([plain, replace(plain, slug="further"), *old.profiles[1:]], defaults=old.defaults)


async def test_new_calls_see_the_new_catalogue_and_its_prices(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        before = a_request()
        await world.generate(before)
        await world.service.adopt(dearer())
        after = a_request("further")
        await world.generate(after)

        assert world.admission.asked[-1].profile == "further"
        assert world.event_of(before).price_book_version != world.event_of(after).price_book_version
        assert world.metering.books == {world.event_of(e).price_book_version for e in (before, after)}
        shown = await world.catalog.GetProfile(catalog_pb.GetProfileRequest(model="further"), timeout=5.0)
        assert shown.profile.price.input_nano_usd == 20


async def test_a_running_call_ends_by_the_prices_it_began_with(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def held_back(request: UpstreamRequest) -> AsyncIterator[Sequence[GenerationEvent]]:
        yield [started(request), text("Hi")]
        await gate.wait()
        yield [finished()]

    async with a_world(tmp_path, held_back) as world:
        version = world.service.current.book.version
        request = a_request()
        running = asyncio.ensure_future(world.generate(request))
        await until(lambda: len(world.upstream.requests) == 1)
        await world.service.adopt(dearer())
        gate.set()
        await running

        assert world.event_of(request).price_book_version == version


async def test_what_is_known_of_an_upstream_outlives_the_change(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.service.fleet.states("plain")[0].is_drained = True
        await world.service.adopt(dearer())

        assert [state.is_drained for state in world.service.fleet.states("plain")] == [True, False]
        assert world.service.fleet.states("plain")[0].profile.price.input_nano_usd == 20


async def test_a_catalogue_whose_prices_metering_does_not_take_is_not_served(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.metering.refuses_books = True
        adopting = asyncio.ensure_future(world.service.adopt(dearer()))
        await world.generate(a_request("further"))

        assert world.admission.asked[-1].profile == "plain"  # the default, since the name is not known yet
        world.metering.refuses_books = False
        await adopting
        assert world.service.current.catalogue.resolve("further", Kind.GENERATION) is not None


GOOD = """
default_profile: one
profiles:
  one:
    display_name: One
    context_tokens: 1000
    max_output_tokens: 100
    price: {input_nano_usd: 1, output_nano_usd: 1}
    upstreams: [{dialect: simulated}]
"""


async def test_a_bad_file_is_refused_by_path_and_rule_and_the_old_catalogue_stays(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text(GOOD)
    taken: list[Catalogue] = []

    async def adopt(catalogue: Catalogue) -> None:
        taken.append(catalogue)

    def stamp() -> Stamp | None:
        found = file.stat() if file.exists() else None
        return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)

    watch = CatalogueWatch(stamp, lambda: catalog_file.load(file, lambda name: None), adopt)
    assert await watch.look() is None  # nothing has changed
    file.write_text(GOOD.replace("output_nano_usd: 1", "output_nano_usd: -1"))
    refused = await watch.look()
    assert refused is not None
    assert str(refused).startswith(f"{file}: profiles.one.price.output_nano_usd: ")
    assert await watch.look() is None  # said once
    assert taken == []

    file.unlink()
    await watch.look()
    file.write_text(GOOD.replace("One", "Uno"))
    await watch.look()
    assert [catalogue.profiles[0].display_name for catalogue in taken] == ["Uno"]
