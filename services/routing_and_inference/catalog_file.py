"""Reads the catalogue file: YAML in, a checked `Catalogue` out, or one error that lists every broken rule by its path.

Owns the file's schema; refuses to read the environment (the caller looks up secrets) and to guess what was meant.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from services.routing_and_inference.catalog import (
    Capabilities,
    Catalogue,
    CompanyProxy,
    Issuer,
    Kind,
    Limits,
    Option,
    Price,
    Profile,
    UpstreamTarget,
)
from services.routing_and_inference.upstream_options import OPTIONS, PROVIDERS

PACKAGED = Path(__file__).with_name("catalog.yaml")

FindSecret = Callable[[str], str | None]
"""The value of an environment variable that the catalogue names, or None."""

_SLUG = r"^[a-z0-9][a-z0-9._/-]{0,127}$"
_MAX_TOKENS = 100_000_000
_MAX_PRICE = 1_000_000_000  # a dollar per token: above it, somebody confused the unit


class CatalogError(Exception):
    """The file breaks rules; the text names file, path and rule of each, one per line."""

    def __init__(self, file: Path, problems: Iterable[tuple[str, str]]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{file}: {path or 'the file'}: {rule}" for path, rule in self.problems))


Slug = Annotated[str, pydantic.Field(pattern=_SLUG)]
Name = Annotated[str, pydantic.Field(min_length=1, max_length=128)]
Count = Annotated[int, pydantic.Field(ge=1, le=_MAX_TOKENS)]
NanoUsd = Annotated[int, pydantic.Field(ge=0, le=_MAX_PRICE)]
Url = Annotated[str, pydantic.Field(pattern=r"^https?://[^\s/?#@]+[^\s?#@]*$", max_length=2048)]

Origin = Annotated[str, pydantic.Field(pattern=r"^https?://[^\s/?#@*]+$", max_length=256)]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class _InputPrice(_Strict):
    input_nano_usd: NanoUsd


class _RerankPrice(_Strict):
    search_unit_nano_usd: NanoUsd


class _GenerationPrice(_Strict):
    input_nano_usd: NanoUsd
    output_nano_usd: NanoUsd
    cache_read_nano_usd: NanoUsd | None = None
    cache_write_5m_nano_usd: NanoUsd | None = None
    cache_write_1h_nano_usd: NanoUsd | None = None


class _Capabilities(_Strict):
    vision: bool = False
    tools: bool = True
    thinking: bool = False
    prefill: bool = True


class _Limits(_Strict):
    concurrency: Annotated[int, pydantic.Field(ge=1, le=100_000)] | None = None
    requests_per_minute: Annotated[int, pydantic.Field(ge=1, le=100_000_000)] | None = None
    tokens_per_minute: Annotated[int, pydantic.Field(ge=1, le=100_000_000_000)] | None = None


class _Upstream(_Strict):
    dialect: str
    name: Name | None = None
    base_url: Url | None = None
    model: Annotated[str, pydantic.Field(max_length=256)] = ""
    api_key_env: Annotated[str, pydantic.Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = None
    priority: Annotated[int, pydantic.Field(ge=0, le=1000)] = 0
    weight: Annotated[int, pydantic.Field(ge=1, le=1000)] = 1
    limits: _Limits = _Limits()
    options: dict[str, Any] = {}
    provider: str | None = None

    @pydantic.field_validator("provider")
    @classmethod
    def _provider_is_known(cls, provider: str | None) -> str | None:
        if provider is not None and provider not in PROVIDERS:
            raise ValueError(f"unknown provider {provider!r}; known are {', '.join(PROVIDERS)}")
        return provider

    @pydantic.field_validator("options")
    @classmethod
    def _options_are_known(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            expected = OPTIONS.get(name)
            if expected is None:
                raise ValueError(f"unknown option {name!r}")
            if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
                raise ValueError(f"option {name!r} has a value of the wrong type")
            if isinstance(value, list) and not all(isinstance(item, str) for item in value):
                raise ValueError(f"option {name!r} is a list of strings")
        return options

    @pydantic.model_validator(mode="after")
    def _somewhere_to_call(self) -> "_Upstream":
        if self.base_url is None and self.dialect != "simulated":
            raise ValueError("base_url is required unless the dialect is simulated")
        return self


class _GenerationUpstream(_Upstream):
    dialect: Literal["openai", "anthropic", "simulated"]


class _EmbeddingUpstream(_Upstream):
    dialect: Literal["openai", "tei", "simulated"]


class _RerankUpstream(_Upstream):
    dialect: Literal["cohere", "jina", "vllm", "tei", "simulated"]


class _GenerationProfile(_Strict):
    display_name: Name
    context_tokens: Count
    max_output_tokens: Count
    price: _GenerationPrice
    upstreams: Annotated[list[_GenerationUpstream], pydantic.Field(min_length=1)]
    capabilities: _Capabilities = _Capabilities()
    tokens_per_second: Annotated[int, pydantic.Field(ge=0, le=1_000_000)] = 0
    queue_timeout_s: Annotated[float, pydantic.Field(ge=0, le=60, strict=False)] = 5.0
    affinity: bool = False

    @pydantic.model_validator(mode="after")
    def _output_fits_the_context(self) -> "_GenerationProfile":
        if self.max_output_tokens > self.context_tokens:
            raise ValueError("max_output_tokens is over context_tokens")
        return self


class _EmbeddingProfile(_Strict):
    price: _InputPrice
    upstreams: Annotated[list[_EmbeddingUpstream], pydantic.Field(min_length=1)]
    display_name: Name | None = None
    context_tokens: Count | None = None
    dimensions: Annotated[int, pydantic.Field(ge=1, le=65_536)] | None = None


class _RerankProfile(_Strict):
    price: _RerankPrice
    upstreams: Annotated[list[_RerankUpstream], pydantic.Field(min_length=1)]
    display_name: Name | None = None
    context_tokens: Count | None = None


class _Embeddings(_Strict):
    default: Slug
    profiles: dict[Slug, _EmbeddingProfile]


class _Rerank(_Strict):
    default: Slug
    profiles: dict[Slug, _RerankProfile]


class _Issuer(_Strict):
    issuer: Url
    audience: Name
    jwks_url: Url
    roles: Annotated[list[Name], pydantic.Field(min_length=1)]
    account: Name
    client: Name | None = None


class _ProxyPrice(_GenerationPrice):
    web_search_nano_usd: NanoUsd | None = None


class _ProxyUpstream(_Upstream):
    dialect: Literal["anthropic"]


class _ProxyModel(_Strict):
    price: _ProxyPrice
    upstreams: Annotated[list[_ProxyUpstream], pydantic.Field(min_length=1)]
    context_tokens: Count = 1_000_000
    max_output_tokens: Count = 128_000


class _CompanyProxy(_Strict):
    issuers: list[_Issuer] = []
    models: dict[Name, _ProxyModel] = {}
    discontinued: list[Name] = []
    cors_origins: list[Origin] = []


class _File(_Strict):
    default_profile: Slug
    profiles: Annotated[dict[Slug, _GenerationProfile], pydantic.Field(min_length=1)]
    aliases: dict[Annotated[str, pydantic.Field(min_length=1, max_length=256)], Slug] = {}
    embeddings: _Embeddings | None = None
    rerank: _Rerank | None = None
    company_proxy: _CompanyProxy = _CompanyProxy()


def load(file: Path, find_secret: FindSecret) -> Catalogue:
    """Reads and checks a catalogue file. Raises CatalogError."""
    try:
        document = yaml.load(file.read_text("utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(file, [("", f"cannot be read: {type(error).__name__}")]) from error
    except yaml.YAMLError as error:
        raise CatalogError(file, [("", " ".join(f"not YAML: {error}".split()))]) from error
    try:
        checked = _File.model_validate(document)
    except pydantic.ValidationError as error:
        raise CatalogError(file, [_problem(detail) for detail in error.errors(include_url=False)]) from error
    build = _Build(find_secret)
    catalogue = build.catalogue(checked)
    if build.problems:
        raise CatalogError(file, build.problems)
    return catalogue


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "in a mapping", node.start_mark, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _problem(detail: Any) -> tuple[str, str]:
    path = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    rule = "unknown key" if detail["type"] == "extra_forbidden" else re.sub(r"^Value error, ", "", detail["msg"])
    return path, rule


class _Build:
    """Turns the checked file into values and collects what only shows between its parts."""

    def __init__(self, find_secret: FindSecret) -> None:
        self._find_secret = find_secret
        self.problems: list[tuple[str, str]] = []

    def catalogue(self, file: _File) -> Catalogue:
        profiles = [self._generation(f"profiles.{slug}", slug, item) for slug, item in file.profiles.items()]
        self._known("default_profile", file.default_profile, file.profiles)
        for alias, slug in file.aliases.items():
            self._known(f"aliases.{alias}", slug, file.profiles)
        self._unique(f"aliases.{alias}" for alias in file.aliases)
        self._unique(f"company_proxy.models.{name}" for name in file.company_proxy.models)
        defaults = {Kind.GENERATION: file.default_profile}
        for kind, section_name, section in (
            (Kind.EMBEDDING, "embeddings", file.embeddings),
            (Kind.RERANK, "rerank", file.rerank),
        ):
            if section is None:
                continue
            self._known(f"{section_name}.default", section.default, section.profiles)
            defaults[kind] = section.default
            for slug, item in section.profiles.items():
                path = f"{section_name}.profiles.{slug}"
                if any(profile.slug == slug for profile in profiles):
                    self.problems.append((path, "another profile has this name"))
                profiles.append(self._plain(path, slug, kind, item))
        self._apart(profiles, file.company_proxy.models)
        if self.problems:  # a catalogue with dangling names cannot be built
            return Catalogue((), defaults={})
        return Catalogue(profiles, defaults=defaults, aliases=file.aliases, company_proxy=self._proxy(file))

    def _apart(self, profiles: Iterable[Profile], models: Iterable[str]) -> None:
        """A price book has one price per name."""
        slugs = {profile.slug for profile in profiles}
        self.problems += [
            (f"company_proxy.models.{name}", "a profile has this name") for name in models if name in slugs
        ]

    def _known(self, path: str, slug: str, profiles: Mapping[str, object]) -> None:
        if slug not in profiles:
            self.problems.append((path, f"no profile {slug!r}"))

    def _unique(self, paths: Iterable[str]) -> None:
        seen: set[str] = set()
        for path in paths:
            if path.lower() in seen:
                self.problems.append((path, "stands twice, since names are compared without regard to case"))
            seen.add(path.lower())

    def _generation(self, path: str, slug: str, item: _GenerationProfile) -> Profile:
        return Profile(
            slug=slug,
            kind=Kind.GENERATION,
            price=Price(**item.price.model_dump()),
            upstreams=self._targets(path, slug, item.upstreams),
            display_name=item.display_name,
            context_tokens=item.context_tokens,
            max_output_tokens=item.max_output_tokens,
            capabilities=Capabilities(**item.capabilities.model_dump()),
            tokens_per_second=item.tokens_per_second,
            queue_timeout_s=item.queue_timeout_s,
            affinity=item.affinity,
        )

    def _plain(self, path: str, slug: str, kind: Kind, item: _EmbeddingProfile | _RerankProfile) -> Profile:
        return Profile(
            slug=slug,
            kind=kind,
            price=Price(**item.price.model_dump()),
            upstreams=self._targets(path, slug, item.upstreams),
            display_name=item.display_name or slug,
            context_tokens=item.context_tokens or 0,
            dimensions=(item.dimensions or 0) if isinstance(item, _EmbeddingProfile) else 0,
        )

    def _proxy(self, file: _File) -> CompanyProxy:
        proxy = file.company_proxy
        models = tuple(
            Profile(
                slug=name,
                kind=Kind.GENERATION,
                price=_proxy_price(item.price),
                upstreams=self._targets(f"company_proxy.models.{name}", name, item.upstreams),
                display_name=name,
                context_tokens=item.context_tokens,
                max_output_tokens=item.max_output_tokens,
                capabilities=Capabilities(vision=True, thinking=True),
            )
            for name, item in proxy.models.items()
        )
        issuers = tuple(
            Issuer(item.issuer, item.audience, item.jwks_url, tuple(item.roles), item.account, item.client or "")
            for item in proxy.issuers
        )
        return CompanyProxy(issuers, models, tuple(proxy.discontinued), tuple(proxy.cors_origins))

    def _targets(self, path: str, slug: str, upstreams: Iterable[_Upstream]) -> tuple[UpstreamTarget, ...]:
        targets: dict[str, UpstreamTarget] = {}
        for position, item in enumerate(upstreams):
            target = UpstreamTarget(
                name=item.name or item.dialect,
                dialect=item.dialect,
                base_url=(item.base_url or "").rstrip("/"),
                model=item.model or slug,
                api_key=self._secret(f"{path}.upstreams.{position}.api_key_env", item.api_key_env),
                options={**PROVIDERS.get(item.provider or "", {}), **_frozen(item.options)},
                priority=item.priority,
                weight=item.weight,
                limits=Limits(**item.limits.model_dump(exclude_none=True)),
            )
            if target.name in targets:
                self.problems.append((f"{path}.upstreams.{position}.name", f"{target.name!r} stands twice"))
            targets[target.name] = target
        return tuple(targets.values())

    def _secret(self, path: str, variable: str | None) -> str:
        if variable is None:
            return ""
        secret = self._find_secret(variable)
        if not secret:
            self.problems.append((path, f"the environment variable {variable} is not set"))
        return secret or ""


def _proxy_price(price: _ProxyPrice) -> Price:
    return Price(
        **price.model_dump(exclude={"web_search_nano_usd"}), search_unit_nano_usd=price.web_search_nano_usd or 0
    )


def _frozen(options: Mapping[str, Any]) -> Mapping[str, Option]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
