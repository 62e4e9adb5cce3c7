"""Tool names for an upstream that takes fewer characters, or fewer of them, than callers use; read back in answers.

Pure. Names that the upstream takes are never touched.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from mws.inference.v1 import generation_pb2 as pb

_PLAIN = {length: re.compile(rf"[a-zA-Z0-9_-]{{1,{length}}}") for length in (64, 128)}
_REST = re.compile(r"[^a-zA-Z0-9_-]")
_HASH_LENGTH = 8

SAME: Mapping[str, str] = MappingProxyType({})


def of_tools(tools: Iterable[pb.Tool], longest: int) -> Mapping[str, str]:
    """Names of tools that the upstream does not take -> names that it takes; distinct names stay distinct."""
    plain = _PLAIN[longest].fullmatch
    changed = {
        tool.name: changed_name(tool.name, longest)
        for tool in tools
        if plain(tool.name) is None and not tool.HasField("opaque")
    }
    return changed or SAME


def of_call(name: str, longest: int) -> str:
    """The same for a call of an earlier turn, whose tool may no longer be offered."""
    return name if _PLAIN[longest].fullmatch(name) else changed_name(name, longest)


def changed_name(name: str, longest: int) -> str:
    """The beginning of a name and a hash of all of it."""
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:_HASH_LENGTH]
    return f"{_REST.sub('_', name)[: longest - _HASH_LENGTH - 1]}_{digest}"
