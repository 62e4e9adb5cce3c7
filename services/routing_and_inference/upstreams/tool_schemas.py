"""JSON Schemas of tools for upstreams that refuse some keywords.

Pure. Owns what is a keyword and what is only named like one (a property, a value of an enumeration).
"""

from collections.abc import Collection
from typing import Any

import msgspec

from services.routing_and_inference.upstreams import errors

_OF_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_VALUES = frozenset({"const", "default", "enum", "examples", "example", "required"})
_encode = msgspec.json.Encoder().encode


def without_keywords(schema: msgspec.Raw, keywords: Collection[str]) -> msgspec.Raw:
    """The schema without the keywords, wherever they stand in it."""
    try:
        value = msgspec.json.decode(schema)
    except errors.UNREADABLE:
        return schema
    return msgspec.Raw(_encode(_cleaned(value, keywords)))


def _cleaned(schema: Any, keywords: Collection[str]) -> Any:
    if isinstance(schema, list):
        return [_cleaned(item, keywords) for item in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned: dict[str, Any] = {}
    for name, value in schema.items():
        if name in keywords:
            continue
        if name in _OF_SCHEMAS_BY_NAME and isinstance(value, dict):
            cleaned[name] = {key: _cleaned(inner, keywords) for key, inner in value.items()}
        else:
            cleaned[name] = value if name in _VALUES else _cleaned(value, keywords)
    return cleaned
