"""What the edge needs of the catalogue's `company_proxy` section: what is discontinued, and who may ask from a browser.

Owns reading those two lists; routing-and-inference checks the file as a whole, and auth-and-limits reads the realms.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from edge.company_proxy import BASE, PREFIX
from edge.company_proxy.errors import DiscontinuedError


class ProxyFileError(Exception):
    """The catalogue file cannot be read, or its section breaks a rule."""


@dataclass(frozen=True, slots=True)
class ProxyRules:
    """`discontinued`: models, and paths in full or without what stands before `/v1/`; both may be globs."""

    discontinued: Sequence[str] = ()
    cors_origins: frozenset[str] = frozenset()

    def is_gone(self, path: str) -> bool:
        """Whether a route is discontinued."""
        names = {path, path.removeprefix(PREFIX.rstrip("/")), path.removeprefix(BASE), path.removeprefix(BASE + "/v1")}
        gone = ["/" + entry.removeprefix("/") for entry in self.discontinued]
        return any(fnmatch.fnmatchcase(name, entry) for name in names for entry in gone)

    def check_model(self, model: str) -> None:
        """Raises DiscontinuedError for a model that is not offered any more."""
        if any(fnmatch.fnmatchcase(model.lower(), entry.lower()) for entry in self.discontinued):
            raise DiscontinuedError(f"The model {model} is discontinued")


class _Section(BaseModel):
    discontinued: list[str] = []
    cors_origins: list[str] = []


class _Catalogue(BaseModel):
    company_proxy: _Section = _Section()


def read_rules(file: Path | None) -> ProxyRules:
    """The rules of a catalogue file; none without a file. Raises ProxyFileError."""
    if file is None:
        return ProxyRules()
    try:
        section = _Catalogue.model_validate(yaml.safe_load(file.read_text("utf-8"))).company_proxy
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProxyFileError(f"{file}: cannot be read: {type(error).__name__}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ProxyFileError(f"{file}: {place}: {first['msg']}") from error
    return ProxyRules(
        tuple(section.discontinued), frozenset(origin.rstrip("/").lower() for origin in section.cors_origins)
    )
