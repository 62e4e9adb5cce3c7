"""The scripts that decide inside Redis, put together from the Lua files beside this module.

Owns which parts make which script; refuses to run them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_FOLDER = Path(__file__).with_name("lua")
_BEGINNING = ("time", "clock")
_PARTS: Mapping[str, tuple[str, ...]] = {
    "admit": ("buckets", "record", "look"),
    "view": ("buckets", "look"),
    "extend": ("buckets", "record", "holds"),
    "renew": ("buckets", "holds"),
    "finish": ("buckets", "holds"),
    "void": ("buckets", "holds"),
    "balance": ("buckets", "holds"),
    "settle": ("buckets", "holds"),
    "load": (),
    "lapsed": (),
    "read": ("record",),
    "epoch": (),
    "reaper": (),
    "retire": (),
}


class Code(IntEnum):
    """How a script answers; the same names are in `clock.lua`."""

    LATE = 0
    UNLOADED = 1
    REFUSED = 2
    DONE = 3
    REPEAT = 4
    EARLIER = 5
    ALREADY = 6
    REUSED = 7
    NOT_OPEN = 8
    OUT = 9
    UNKNOWN = 10


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the digest by which Redis knows it."""

    name: str
    text: bytes
    sha1: bytes


def read_scripts(time_text: str | None = None) -> dict[str, Script]:
    """All scripts, by name. Tests give them another clock than Redis's own."""
    files = {path.stem: path.read_text() for path in _FOLDER.glob("*.lua")}
    if time_text is not None:
        files["time"] = time_text
    scripts = {}
    for name, parts in _PARTS.items():
        text = "\n".join(files[part] for part in (*_BEGINNING, *parts, name)).encode()
        digest = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        scripts[name] = Script(name, text, digest)
    return scripts
