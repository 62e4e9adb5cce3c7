"""Decodes JSON into Structs once, and again in tolerant steps only when a body holds what the Structs do not name.

Owns the split of known from unknown fields and the exact place of a complaint; refuses to know any dialect.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from msgspec import Raw

from edge.problems import Path, bad_value, from_validation, missing, not_json

T = TypeVar("T")

_fields = msgspec.json.Decoder(dict[str, Raw])
_text = msgspec.json.Decoder(str)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value of a type that the Structs do not know: its `type` and its JSON text as received."""

    type: str
    json: str


@dataclass(frozen=True, slots=True)
class Extended:
    """A known value, and the fields of it that its Struct does not name as one JSON object."""

    value: msgspec.Struct
    extra_json: str


def decode(decoder: "msgspec.json.Decoder[T]", body: bytes | Raw, path: Path = ()) -> T:
    """Decodes, raising BadFieldError with the place below `path`."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise from_validation(error).under(path) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise not_json() from None


def fields_of(raw: bytes | Raw, path: Path = ()) -> dict[str, Raw]:
    """The members of a JSON object, undecoded."""
    return decode(_fields, raw, path)


def text_of(raw: bytes | Raw) -> str:
    """JSON as received, as text."""
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError:
        raise not_json() from None


def object_text(members: Mapping[str, Raw]) -> str:
    """A JSON object of undecoded members."""
    return text_of(_encode(members)) if members else ""


def is_set(raw: Raw | msgspec.UnsetType) -> bool:
    """A member that is there and not null, `[]` or `{}`."""
    return raw is not msgspec.UNSET and bytes(raw) not in (b"null", b"[]", b"{}")


class TaggedDecoder:
    """Decodes objects that name their kind in `type`. A kind without a Struct becomes Opaque; a known one with unnamed
    members becomes Extended. `names_kind`: the place of a complaint about a member names the kind as well."""

    def __init__(
        self, structs: Mapping[str, type[msgspec.Struct]], *, default: str = "", names_kind: bool = False
    ) -> None:
        self._known = {name: frozenset(struct.__struct_encode_fields__) for name, struct in structs.items()}
        self._decoders = {name: msgspec.json.Decoder(struct) for name, struct in structs.items()}
        self._default = default
        self._names_kind = names_kind

    def decode(self, raw: Raw, path: Path) -> msgspec.Struct | Extended | Opaque:
        members = fields_of(raw, path)
        kind = self._kind(members, path)
        decoder = self._decoders.get(kind)
        if decoder is None:
            return Opaque(kind, text_of(raw))
        if self._names_kind:
            path = (*path, kind)
        known = self._known[kind]
        extra = {name: value for name, value in members.items() if name not in known and name != "type"}
        if not extra:
            return decode(decoder, raw, path)
        rest = {name: value for name, value in members.items() if name not in extra}
        return Extended(decode(decoder, _encode(rest), path), object_text(extra))

    def _kind(self, members: Mapping[str, Raw], path: Path) -> str:
        if "type" in members:
            kind = decode(_text, members["type"], (*path, "type"))
        elif self._default:
            kind = self._default
        else:
            raise missing((*path, "type"))
        if not kind:
            raise bad_value((*path, "type"), "may not be empty")
        return kind
