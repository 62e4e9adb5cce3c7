"""What can be asked for: profiles, their prices, their upstreams, and which profile a model name means.

Pure values and look-ups; refuses to read files (`catalog_file`) and to know how an upstream is doing (`health`).
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

Option = bool | int | float | str | Sequence[str]

_NO_OPTIONS: Mapping[str, Option] = MappingProxyType({})


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


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a profile can do."""

    vision: bool = False
    tools: bool = True
    thinking: bool = False
    prefill: bool = True


@dataclass(frozen=True, slots=True)
class UpstreamTarget:
    """Someone who serves a profile: where, in which dialect, under which model name.

    `name` is unique within the profile. `options` are the settings of the dialect (see `catalog_file.OPTIONS`).
    """

    name: str
    dialect: str
    base_url: str = ""
    model: str = ""
    api_key: str = field(default="", repr=False)
    options: Mapping[str, Option] = _NO_OPTIONS
    priority: int = 0  # lower is tried first
    weight: int = 1  # share within a priority


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
    dimensions: int = 0  # native length of an embedding profile's vectors; 0: not stated
