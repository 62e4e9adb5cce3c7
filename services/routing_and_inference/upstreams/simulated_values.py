"""Makes values that fit a JSON schema, the same ones for the same schema and words.

Owns what a made-up argument looks like; refuses to validate (a schema that contradicts itself gets something near).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_DEEPEST = 8
_FORMATS = {
    "date": "2026-01-15",
    "date-time": "2026-01-15T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1H",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}

Schema = Mapping[str, Any]


class ValueMaker:
    """Makes values for one prompt: its `words`, most telling first, stand where a text is wanted."""

    def __init__(self, root: Schema, words: Sequence[str]) -> None:
        self._root = root
        self._words = list(words) or ["example"]
        self._next_word = 0

    def make(self) -> Any:
        return self._value(self._root, "value", 0)

    def _value(self, schema: Any, name: str, depth: int) -> Any:
        if not isinstance(schema, Mapping):  # `true`: anything
            return self._text({}, name)
        schema = self._resolved(schema)
        for stated in ("const", "default"):
            if stated in schema:
                return schema[stated]
        for stated in ("enum", "examples"):
            if isinstance(schema.get(stated), list) and schema[stated]:
                return schema[stated][0]
        return self._of_kind(_kind(schema), schema, name, depth)

    def _of_kind(self, kind: str, schema: Schema, name: str, depth: int) -> Any:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind in {"integer", "number"}:
            return _number(schema, whole=kind == "integer")
        if kind == "boolean":
            return True
        return None if kind == "null" else self._text(schema, name)

    def _resolved(self, schema: Schema) -> Schema:
        for _ in range(_DEEPEST):
            if isinstance(schema.get("$ref"), str):
                schema = {**self._referred(schema["$ref"]), **{k: v for k, v in schema.items() if k != "$ref"}}
            elif branch := next((schema[k] for k in ("anyOf", "oneOf", "allOf") if schema.get(k)), None):
                rest = {k: v for k, v in schema.items() if k not in {"anyOf", "oneOf", "allOf"}}
                parts = branch if "allOf" in schema and schema["allOf"] is branch else [_likeliest(branch)]
                schema = _merged([rest, *parts])
            else:
                break
        return schema

    def _referred(self, pointer: str) -> Schema:
        found: Any = self._root
        for step in pointer.removeprefix("#").split("/")[1:]:
            found = found.get(step.replace("~1", "/").replace("~0", "~"), {}) if isinstance(found, Mapping) else {}
        return found if isinstance(found, Mapping) else {}

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        required = schema.get("required")
        names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        if not names and depth == 0:
            names = list(properties)
        if depth >= _DEEPEST:
            return {}
        return {name: self._value(properties.get(name, True), name, depth + 1) for name in names}

    def _array(self, schema: Schema, name: str, depth: int) -> list[Any]:
        if depth >= _DEEPEST:
            return []
        first = schema.get("prefixItems")
        fixed = [self._value(item, name, depth + 1) for item in first] if isinstance(first, list) else []
        least = schema.get("minItems", 0)
        wanted = max(
            int(least) if isinstance(least, int | float) else 0, 0 if fixed or schema.get("maxItems") == 0 else 1
        )
        items = schema.get("items", True)
        return fixed + [self._value(items, name, depth + 1) for _ in range(min(wanted, 100) - len(fixed))]

    def _text(self, schema: Schema, name: str) -> str:
        fixed = _FORMATS.get(str(schema.get("format", "")))
        if fixed is not None:
            return fixed
        word = self._words[self._next_word % len(self._words)]
        self._next_word += 1
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if isinstance(least, int) and len(word) < least:
            word = (f"{word} " * (least // (len(word) + 1) + 1))[:least]
        return word[:most] if isinstance(most, int) and most >= 0 else word


def _kind(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if isinstance(kind, str):
        return kind
    return "object" if "properties" in schema else "array" if "items" in schema else "string"


def _likeliest(branches: Any) -> Schema:
    candidates = [b for b in branches if isinstance(b, Mapping)] if isinstance(branches, list) else []
    return next((b for b in candidates if b.get("type") != "null"), candidates[0] if candidates else {})


def _merged(schemas: Sequence[Any]) -> Schema:
    merged: dict[str, Any] = {}
    for schema in schemas:
        if not isinstance(schema, Mapping):
            continue
        properties = {**merged.get("properties", {}), **schema.get("properties", {})}
        required = [*merged.get("required", []), *schema.get("required", [])]
        merged.update(schema)
        if properties:
            merged["properties"] = properties
        if required:
            merged["required"] = required
    return merged


def _number(schema: Schema, *, whole: bool) -> int | float:
    """The least number that the bounds allow, or 1."""
    step = schema.get("multipleOf")
    step = step if isinstance(step, int | float) and step > 0 else 1 if whole else 0
    low = schema.get("minimum")
    above = schema.get("exclusiveMinimum")
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    value: float = 1
    if isinstance(above, int | float) and not isinstance(above, bool):
        value = max(value, above + (step or 1))
    if isinstance(low, int | float):
        value = max(value, low)
    if isinstance(high, int | float) and value > high:
        value = high if "maximum" in schema else high - (step or 1)
    if step:
        value = math.ceil(value / step) * step
    return int(value) if whole or value == int(value) else value
