"""What can be asked for: profiles, their prices, their upstreams, and which profile a model name means.

Pure values and look-ups; refuses to read files (`catalog_file`) and to know how an upstream is doing (`health`).
"""

import enum
import fnmatch
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

Option = bool | int | float | str | Sequence[str]

_NO_ALIASES: Mapping[str, str] = MappingProxyType({})

# What clients append to a Claude name and what changes nothing about it: `[1m]`, `-20250929`, `@20250929`, `-latest`.
_SUFFIX = re.compile(r"(?:\[1m\]|[-@]20\d{6}|-20\d\d-\d\d-\d\d|[-@]latest)$")

_REMEMBERED_NAMES = 4096  # model names come from callers, so the memory of them is bounded


class Kind(enum.StrEnum):
    """What a profile is for; also the `operation` of a usage event."""

    GENERATION = "generate"
    EMBEDDING = "embed"
    RERANK = "rerank"


@dataclass(frozen=True, slots=True)
class Price:
    """What a unit costs, in nano-dollars. None: costs what `input_nano_usd` costs."""

    input_nano_usd: int = 0
    output_nano_usd: int = 0
    cache_read_nano_usd: int | None = None
    cache_write_5m_nano_usd: int | None = None
    cache_write_1h_nano_usd: int | None = None
    search_unit_nano_usd: int = 0

    @property
    def dearest_input_nano_usd(self) -> int:
        """The most that a prompt token can cost."""
        return max(
            self.input_nano_usd,
            self.cache_read_nano_usd or 0,
            self.cache_write_5m_nano_usd or 0,
            self.cache_write_1h_nano_usd or 0,
        )


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a profile can do."""

    vision: bool = False
    tools: bool = True
    thinking: bool = False
    prefill: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What an upstream lets us do, for each process of ours; 0: not limited."""

    concurrency: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0

    @property
    def is_limited(self) -> bool:
        """There is any limit."""
        return bool(self.concurrency or self.requests_per_minute or self.tokens_per_minute)


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """Someone who serves a profile: where, in which dialect, under which model name.

    `name` is unique within the profile. `options` are the settings of the dialect (see `upstream_options`).
    """

    name: str
    dialect: str
    base_url: str = ""
    model: str = ""
    api_key: str = field(default="", repr=False)
    options: Mapping[str, Option] = field(default_factory=dict)
    priority: int = 0  # lower is tried first
    weight: int = 1  # share within a priority
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Profile:
    """A public model. Counts that do not apply to its kind are 0."""

    slug: str
    kind: Kind
    price: Price
    upstreams: tuple[UpstreamTarget, ...]
    display_name: str = ""
    context_tokens: int = 0
    max_output_tokens: int = 0
    capabilities: Capabilities = Capabilities()
    tokens_per_second: int = 0  # typical speed; 0: not stated
    queue_timeout_s: float = 5.0  # how long a call may wait while all upstreams are at their limits
    affinity: bool = False  # turns of a conversation go to the same upstream, whose cache knows its beginning
    dimensions: int = 0  # native length of an embedding profile's vectors; 0: not stated


@dataclass(frozen=True, slots=True)
class Issuer:
    """A realm whose access tokens the company proxy takes."""

    issuer: str
    audience: str
    jwks_url: str
    roles: tuple[str, ...]
    account: str
    client: str = ""  # whose roles count; empty: the audience's


@dataclass(frozen=True, slots=True)
class CompanyProxy:
    """The company proxy's part of the catalogue: its models stand apart from the public ones.

    A model's slug may be a glob (`claude-*`). `discontinued` names models, and paths, which begin with a slash.
    """

    issuers: tuple[Issuer, ...] = ()
    models: tuple[Profile, ...] = ()
    discontinued: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()

    def find(self, model: str) -> Profile | None:
        """The entry that serves a model: the one of its name, else of its name without a date, else the first glob."""
        names = _names_of(model)
        by_slug = {profile.slug.lower(): profile for profile in self.models}
        found = next((by_slug[name] for name in names if name in by_slug), None)
        if found is not None:
            return found
        return next((profile for slug, profile in by_slug.items() if fnmatch.fnmatchcase(names[0], slug)), None)


class Catalogue:
    """All profiles, and the names they answer to.

    `profiles` are in catalogue order. `defaults` names the profile of each kind that serves unknown names. `aliases`
    map names or globs (`*`, `?`) to slugs of generation profiles; an exact name wins over a glob, and the first glob
    that matches wins over later ones.
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        *,
        defaults: Mapping[Kind, str],
        aliases: Mapping[str, str] = _NO_ALIASES,
        company_proxy: CompanyProxy = CompanyProxy(),
    ) -> None:
        self.profiles = tuple(profiles)
        self.aliases = {alias.lower(): slug for alias, slug in aliases.items()}
        self.defaults = dict(defaults)
        self.company_proxy = company_proxy
        self._by_slug = {profile.slug.lower(): profile for profile in self.profiles}
        self._globs = [(glob, slug) for glob, slug in self.aliases.items() if "*" in glob or "?" in glob]
        self._find: Callable[[str], Profile | None] = functools.lru_cache(_REMEMBERED_NAMES)(self._look_up)

    def find(self, model: str) -> Profile | None:
        """The profile that a slug or an alias names, whatever its kind; None for an unknown string."""
        return self._find(model)

    def resolve(self, model: str, kind: Kind = Kind.GENERATION) -> Profile | None:
        """The profile that serves a model name: the one it names, else the default. None: nothing of this kind."""
        found = self._find(model)
        if found is not None and found.kind is kind:
            return found
        default = self.defaults.get(kind)
        return None if default is None else self._by_slug[default.lower()]

    def is_default(self, profile: Profile) -> bool:
        """Whether unknown names are served by it."""
        return self.defaults.get(profile.kind) == profile.slug

    def served_by(self, target: UpstreamTarget) -> "Catalogue":
        """The same catalogue with one upstream for every generation profile; an empty `model` becomes the slug."""
        profiles = [
            replace(profile, upstreams=(replace(target, model=target.model or profile.slug),))
            if profile.kind is Kind.GENERATION
            else profile
            for profile in self.profiles
        ]
        return Catalogue(profiles, defaults=self.defaults, aliases=self.aliases, company_proxy=self.company_proxy)

    def _look_up(self, model: str) -> Profile | None:
        names = _names_of(model)
        return next((profile for name in names if (profile := self._named(name))), None) or self._matching(names)

    def _named(self, name: str) -> Profile | None:
        if name in self._by_slug:
            return self._by_slug[name]
        slug = self.aliases.get(name)
        return None if slug is None else self._by_slug[slug.lower()]

    def _matching(self, names: Sequence[str]) -> Profile | None:
        for name in names:
            for glob, slug in self._globs:
                if fnmatch.fnmatchcase(name, glob):
                    return self._by_slug[slug.lower()]
        return None


def _names_of(model: str) -> list[str]:
    """A model name in lower case, and what is left of it without one suffix after the other."""
    names = [model.strip().lower()]
    while (shorter := _SUFFIX.sub("", names[-1])) != names[-1]:
        names.append(shorter)
    return names
