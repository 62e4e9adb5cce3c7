"""The catalogue file: the packaged one says what the product promises, broken ones say what is wrong and where."""

import re
from pathlib import Path

import pytest

from services.routing_and_inference import catalog_file
from services.routing_and_inference.catalog import Kind, UpstreamTarget

BROKEN = sorted((Path(__file__).parent / "broken_catalogues").glob("*.yaml"))

# name, slug, context, tokens per second, price in and out in dollars per million: the product's table.
PROFILES = [
    ("Dragon", "dragon", 262_144, 189, 0.48, 1.08),
    ("Flash", "dragon-flash", 131_072, 1400, 1.20, 2.40),
    ("Flash 2", "dragon-blitz", 131_072, 698, 0.30, 1.20),
    ("Flash 3", "dragon-pro", 128_000, 447, 0.22, 0.68),
    ("Flash 4", "dragon-spark", 163_840, 143, 0.60, 0.90),
    ("Think", "dragon-think", 131_072, 383, 0.30, 2.40),
    ("Think 2", "dragon-thinkmaxing", 1_048_576, 178, 3.48, 6.96),
    ("Think 3", "dragon-reason", 262_144, 172, 0.40, 1.20),
    ("Vision", "dragon-seer", 262_144, 383, 1.00, 5.00),
    ("Code", "dragon-coder", 262_144, 189, 0.48, 1.08),
    ("Big", "dragon-nova", 262_144, 310, 1.20, 7.20),
]

WHOLE = """
default_profile: dragon
aliases: {claude-sonnet-4-6: dragon, "claude-*haiku*": dragon}
profiles:
  dragon:
    display_name: Dragon
    context_tokens: 262144
    max_output_tokens: 65536
    price: {input_nano_usd: 480, output_nano_usd: 1080, cache_read_nano_usd: 48, cache_write_1h_nano_usd: 960}
    capabilities: {vision: false, tools: true, thinking: false, prefill: true}
    upstreams:
      - {name: primary, dialect: openai, base_url: "https://one.test/v1/", model: m, api_key_env: A_KEY, weight: 2}
      - {dialect: anthropic, base_url: "https://two.test", priority: 1, options: {forward_fields: [top_k, seed]}}
embeddings:
  default: vectors
  profiles: {vectors: {price: {input_nano_usd: 20}, upstreams: [{dialect: tei, base_url: "http://t"}]}}
rerank: {default: ranks, profiles: {ranks: {price: {search_unit_nano_usd: 7}, upstreams: [{dialect: simulated}]}}}
company_proxy:
  issuers:
    - {issuer: "https://sso.test/s", audience: API, jwks_url: "https://sso.test/jwks", roles: [USER], account: staff}
  models:
    claude-opus-4-6:
      upstreams: [{dialect: anthropic, base_url: "https://two.test"}]
      price: {input_nano_usd: 1, output_nano_usd: 2}
  discontinued: [claude-2]
  cors_origins: ["https://docs.test"]
"""


def no_secret(variable: str) -> None:
    """An environment in which nothing is set."""


def test_the_packaged_catalogue_has_the_products_table() -> None:
    profiles = [
        profile
        for profile in catalog_file.load(catalog_file.PACKAGED, no_secret).profiles
        if profile.kind is Kind.GENERATION
    ]

    assert [
        (
            profile.display_name,
            profile.slug,
            profile.context_tokens,
            profile.tokens_per_second,
            profile.price.input_nano_usd / 1_000,
            profile.price.output_nano_usd / 1_000,
        )
        for profile in profiles
    ] == PROFILES
    assert [profile.slug for profile in profiles if profile.capabilities.vision] == ["dragon-seer"]


def test_the_packaged_catalogue_needs_no_provider() -> None:
    catalogue = catalog_file.load(catalog_file.PACKAGED, no_secret)

    assert {t.dialect for profile in catalogue.profiles for t in profile.upstreams} == {"simulated"}
    assert {profile.kind for profile in catalogue.profiles} == set(Kind)


@pytest.mark.parametrize("file", BROKEN, ids=lambda file: file.stem.replace("_", " "))
def test_a_broken_file_names_itself_the_path_and_the_rule(file: Path) -> None:
    expected = file.read_text().splitlines()[0].removeprefix("# expect: ")

    with pytest.raises(catalog_file.CatalogError) as caught:
        catalog_file.load(file, no_secret)

    lines = str(caught.value).splitlines()
    plain, pattern = f"{file}: {expected}", rf"{re.escape(str(file))}: {expected}"
    assert any(line.startswith(plain) or re.match(pattern, line) for line in lines), lines


def test_every_broken_rule_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text("default_profile: 1\nprofiles: {a: {}}\n")

    with pytest.raises(catalog_file.CatalogError) as caught:
        catalog_file.load(file, no_secret)

    assert len(caught.value.problems) >= 5


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(catalog_file.CatalogError, match=r"nowhere\.yaml: the file: cannot be read"):
        catalog_file.load(Path("nowhere.yaml"), no_secret)


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text(WHOLE)
    catalogue = catalog_file.load(file, lambda name: {"A_KEY": "s3cret"}.get(name))

    dragon, vectors, ranks = catalogue.profiles
    assert dragon.upstreams == (
        UpstreamTarget("primary", "openai", "https://one.test/v1", "m", "s3cret", {}, 0, 2),
        UpstreamTarget(
            "anthropic",
            "anthropic",
            "https://two.test",
            "dragon",
            options={"forward_fields": ("top_k", "seed")},
            priority=1,
        ),
    )
    assert "s3cret" not in repr(catalogue.profiles)
    assert (dragon.price.cache_read_nano_usd, dragon.price.cache_write_5m_nano_usd) == (48, None)
    assert (vectors.kind, vectors.price.input_nano_usd) == (Kind.EMBEDDING, 20)
    assert (ranks.kind, ranks.price.search_unit_nano_usd) == (Kind.RERANK, 7)
    proxy = catalogue.company_proxy
    assert (proxy.issuers[0].roles, proxy.models[0].slug, proxy.discontinued) == (
        ("USER",),
        "claude-opus-4-6",
        ("claude-2",),
    )
    assert catalogue.find("claude-opus-4-6") is None  # the company's models are not the public's
