"""Which profile a model name means, and under which version its prices go."""

import json
from pathlib import Path

import pytest

from services.routing_and_inference import catalog_file, price_book
from services.routing_and_inference.catalog import Catalogue, Kind, Price, Profile, UpstreamTarget


def no_secret(variable: str) -> None:
    """An environment in which nothing is set."""


CATALOGUE = catalog_file.load(catalog_file.PACKAGED, no_secret)
VECTORS = Path(__file__).parents[2] / "contract" / "price_book_vectors.json"


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        pytest.param("dragon-seer", "dragon-seer", id="a slug"),
        pytest.param("Dragon-Seer", "dragon-seer", id="a slug in another case"),
        pytest.param(" dragon-pro ", "dragon-pro", id="a slug between spaces"),
        pytest.param("dragon-pro[1m]", "dragon-pro", id="a slug with the mark of a large context"),
        pytest.param("claude-sonnet-4-6", "dragon", id="sonnet"),
        pytest.param("claude-haiku-4", "dragon-flash", id="haiku"),
        pytest.param("claude-3-5-haiku-20241022", "dragon-flash", id="haiku with a date"),
        pytest.param("claude-opus-4", "dragon-nova", id="opus"),
        pytest.param("claude-opus-4-1@20250805", "dragon-nova", id="opus with a date behind an at sign"),
        pytest.param("CLAUDE-OPUS-4-6[1m]", "dragon-nova", id="opus in capitals with a large context"),
        pytest.param("us.anthropic.claude-sonnet-4-20250514-v1:0", "dragon", id="sonnet under a cloud's name"),
        pytest.param("gpt-4o", "dragon", id="a stranger"),
        pytest.param("", "dragon", id="nothing"),
        pytest.param("dragon-embed", "dragon", id="a profile of another kind"),
    ],
)
def test_a_model_name_means_a_profile(model: str, slug: str) -> None:
    profile = CATALOGUE.resolve(model)

    assert profile is not None
    assert profile.slug == slug


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        pytest.param("dragon", "dragon", id="a slug"),
        pytest.param("claude-sonnet-4-6-20260101", "dragon", id="an alias with a date"),
        pytest.param("dragon-embed", "dragon-embed", id="an embedding profile"),
        pytest.param("gpt-4o", None, id="a stranger names nothing, though the default would serve it"),
    ],
)
def test_a_name_is_found_or_not(model: str, slug: str | None) -> None:
    found = CATALOGUE.find(model)

    assert (found.slug if found else None) == slug


def _profile(slug: str) -> Profile:
    return Profile(slug, Kind.GENERATION, Price(1, 1), (UpstreamTarget("a", "simulated"),))


def test_exact_names_win_over_globs_and_earlier_globs_over_later_ones() -> None:
    catalogue = Catalogue(
        [_profile("a"), _profile("b"), _profile("c"), _profile("claude-a")],
        defaults={Kind.GENERATION: "a"},
        aliases={"claude-*": "b", "*-haiku": "c", "claude-haiku": "c", "claude-*-20250101": "c"},
    )

    names = ["claude-haiku", "claude-x-haiku", "x-haiku", "claude-a", "claude-q-20250101", "claude-haiku-20250101"]
    found = [catalogue.find(name) for name in names]
    # A dated name that is listed without its date is that name; globs come after all exact names.
    assert [profile.slug for profile in found if profile] == ["c", "b", "c", "claude-a", "b", "c"]


def test_one_upstream_can_serve_every_generation_profile() -> None:
    served = CATALOGUE.served_by(UpstreamTarget("upstream", "openai", "http://here"))

    assert {p.upstreams[0].base_url for p in served.profiles if p.kind is Kind.GENERATION} == {"http://here"}
    assert {p.upstreams[0].dialect for p in served.profiles if p.kind is not Kind.GENERATION} == {"simulated"}
    assert [p.upstreams[0].model for p in served.profiles[:2]] == ["dragon", "dragon-flash"]


def test_the_version_is_the_digest_of_the_canonical_text() -> None:
    profiles = [_profile("b"), Profile("a", Kind.RERANK, Price(search_unit_nano_usd=5, cache_read_nano_usd=0), ())]

    text = price_book.canonical_json(price_book.price_book_of(profiles).prices)

    assert text == (
        '[{"cache_read_nano_usd":0,"input_nano_usd":0,"output_nano_usd":0,"profile":"a","search_unit_nano_usd":5},'
        '{"input_nano_usd":1,"output_nano_usd":1,"profile":"b","search_unit_nano_usd":0}]'
    )
    assert price_book.price_book_of(profiles).version == price_book.price_book_of(profiles[::-1]).version


def test_metering_computes_the_same_versions() -> None:
    for vector in json.loads(VECTORS.read_text()):
        prices = {row["profile"]: Price(**{k: v for k, v in row.items() if k != "profile"}) for row in vector["prices"]}
        profiles = [Profile(slug, Kind.GENERATION, price, ()) for slug, price in prices.items()]

        assert price_book.price_book_of(profiles).version == vector["version"]
