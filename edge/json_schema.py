"""Whether the schema of a tool is one: a JSON Schema, as far down as it goes, of an object.

Owns the keywords whose form is checked; leaves every other one, and what a schema means, to the upstream.
"""

from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec
from msgspec import Raw

from edge.decoding import decode, fields_of
from edge.problems import BadFieldError, Path, bad_value, not_json

_TypeName = Literal["object", "string", "number", "integer", "boolean", "array", "null"]
_One: TypeAlias = "_Schema | bool | None"
_Map: TypeAlias = "dict[str, _Schema | bool] | None"
# A property described by a bare word is no schema, but the vendors' own examples have it, and some models take it.
_Properties: TypeAlias = "dict[str, _Schema | bool | str] | None"
_List: TypeAlias = "list[_Schema | bool] | None"


class _Own(msgspec.Struct):
    """The keywords that hold no schemas. A null is what some clients write for "not there"."""

    type: _TypeName | list[_TypeName] | None = None
    required: list[str] | None = None
    enum: list[Raw] | None = None


class _Schema(_Own):
    """A schema with those below it."""

    properties: _Properties = None
    pattern_properties: _Map = msgspec.field(default=None, name="patternProperties")
    defs: _Map = msgspec.field(default=None, name="$defs")
    definitions: _Map = None
    dependent_schemas: _Map = msgspec.field(default=None, name="dependentSchemas")
    all_of: _List = msgspec.field(default=None, name="allOf")
    any_of: _List = msgspec.field(default=None, name="anyOf")
    one_of: _List = msgspec.field(default=None, name="oneOf")
    prefix_items: _List = msgspec.field(default=None, name="prefixItems")
    items: "list[_Schema | bool] | _Schema | bool | None" = None  # a list is what older drafts called `prefixItems`
    additional_properties: _One = msgspec.field(default=None, name="additionalProperties")
    property_names: _One = msgspec.field(default=None, name="propertyNames")
    contains: _One = None
    negated: _One = msgspec.field(default=None, name="not")
    condition: _One = msgspec.field(default=None, name="if")
    then: _One = None
    otherwise: _One = msgspec.field(default=None, name="else")


_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_ONES = ("items", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else")
_whole = msgspec.json.Decoder(_Schema)
_own = msgspec.json.Decoder(_Own)
_list = msgspec.json.Decoder(list[Raw])


def check_object_schema(raw: Raw, path: Path) -> None:
    """Raises unless the text is a JSON Schema that can describe an object. A missing `type` is added upstream."""
    if bytes(raw)[:1] != b"{":
        raise bad_value(path, "Input should be a JSON Schema object with type 'object'")
    try:
        schema = _whole.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _fault(raw, path) from None
    kinds = [schema.type] if isinstance(schema.type, str) else schema.type
    if kinds is not None and "object" not in kinds:
        raise bad_value((*path, "type"), "Input should be 'object'")


def _fault(raw: Raw, path: Path) -> BadFieldError:
    """What is wrong, and exactly where: asked only of a schema that is known to be bad."""
    try:
        _check(raw, path)
    except BadFieldError as error:
        return error
    except RecursionError:
        return not_json()
    return bad_value(path, "Input should be a JSON Schema")


def _check(raw: Raw, path: Path) -> None:
    if bytes(raw)[:1] in (b"t", b"f"):
        return
    if bytes(raw)[:1] != b"{":
        raise bad_value(path, "Input should be a JSON Schema")
    decode(_own, raw, path)
    for child, place in _children(raw, path):
        _check(child, place)


def _children(raw: Raw, path: Path) -> Iterator[tuple[Raw, Path]]:
    """The schemas directly below one, each with its place."""
    for keyword, value in fields_of(raw, path).items():
        place = (*path, keyword)
        if bytes(value) == b"null":
            continue
        if keyword in _MAPS:
            is_loose = keyword == "properties"
            yield from (
                (child, (*place, key))
                for key, child in fields_of(value, place).items()
                if not (is_loose and bytes(child)[:1] == b'"')
            )
        elif keyword in _LISTS or (keyword == "items" and bytes(value)[:1] == b"["):
            children = decode(_list, value, place)
            yield from ((child, (*place, at)) for at, child in enumerate(children))
        elif keyword in _ONES:
            yield value, place
