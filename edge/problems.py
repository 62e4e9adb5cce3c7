"""What is wrong with a request body, and where: one class that both dialects render in their own words.

Owns reading msgspec's complaints into a path and a kind; refuses to know any dialect's wording or status codes.
"""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from services.runtime.errors import FieldViolation, InvalidRequestError

Path = tuple[str | int, ...]
Kind = Literal["missing", "type", "below", "above", "value", "json"]


class BadFieldError(InvalidRequestError):
    """One field of a request body that breaks a rule.

    `expected` and `got` are JSON type names for kind `type`. For `below` and `above`, `text` is the limit, `expected`
    the sign before it and `got` the type of number. For `value` and `json`, `text` is the rule in words, used as it is.
    """

    def __init__(
        self,
        path: Path,
        kind: Kind,
        text: str,
        *,
        expected: Sequence[str] = (),
        got: str = "",
    ) -> None:
        super().__init__(f"{dotted(path)}: {text}" if path else text, violations=[FieldViolation(dotted(path), text)])
        self.path = path
        self.kind = kind
        self.text = text
        self.expected = tuple(expected)
        self.got = got

    def under(self, prefix: Path) -> "BadFieldError":
        """The same complaint, for a value that stands at `prefix`."""
        return BadFieldError(prefix + self.path, self.kind, self.text, expected=self.expected, got=self.got)


class UnsupportedEncodingError(BadFieldError):
    """The body came in a `Content-Encoding` that is not read here."""

    def __init__(self) -> None:
        super().__init__((), "value", "Unsupported Content-Encoding: send identity or gzip")


def dotted(path: Path) -> str:
    """`messages.0.content`: how Anthropic names a place."""
    return ".".join(map(str, path))


def bracketed(path: Path) -> str:
    """`messages[0].content`: how OpenAI names a place."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def missing(path: Path) -> BadFieldError:
    """A required field that is not there."""
    return BadFieldError(path, "missing", "Field required")


def bad_value(path: Path, text: str) -> BadFieldError:
    """A value of the right type that breaks a rule."""
    return BadFieldError(path, "value", text)


_WORDS = {
    "int": "integer",
    "float": "number",
    "str": "string",
    "bool": "boolean",
    "object": "object",
    "array": "array",
    "null": "null",
}
_PLACE = re.compile(r" - at `\$?(?P<path>.*)`$", re.DOTALL)
_PART = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_MISSING = re.compile(r"Object missing required field `(?P<field>.+)`$")
_TYPE = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<got>[^`]+)`$")
_BELOW = re.compile(r"Expected `(?P<number>int|float)(?: \| null)?` (?P<sign>>=?) (?P<bound>\S+)$")
_ABOVE = re.compile(r"Expected `(?P<number>int|float)(?: \| null)?` (?P<sign><=?) (?P<bound>\S+)$")
_CHOICE = re.compile(r"Invalid (?:enum )?value (?P<value>.+)$", re.DOTALL)


def from_validation(error: msgspec.ValidationError) -> BadFieldError:
    """Reads msgspec's message. An index that it does not tell is left out of the path."""
    text = str(error)
    path: Path = ()
    if place := _PLACE.search(text):
        text = text[: place.start()]
        path = tuple(int(index) if index else name for name, index in _PART.findall(place["path"]) if index != "...")
    if found := _MISSING.match(text):
        return missing((*path, found["field"]))
    if found := _TYPE.match(text):
        expected = [_WORDS.get(word, word) for word in found["expected"].split(" | ") if word != "null"]
        got = _WORDS.get(found["got"], found["got"])
        return BadFieldError(path, "type", f"Expected {' or '.join(expected)}, got {got}", expected=expected, got=got)
    if found := _BELOW.match(text):
        return BadFieldError(path, "below", found["bound"], expected=[found["sign"]], got=_WORDS[found["number"]])
    if found := _ABOVE.match(text):
        return BadFieldError(path, "above", found["bound"], expected=[found["sign"]], got=_WORDS[found["number"]])
    if found := _CHOICE.match(text):
        return bad_value(path, f"{found['value'][:100]} is not an accepted value")
    return bad_value(path, text[:200].replace("`", "'"))


def not_json() -> BadFieldError:
    """A body that is not one JSON text in UTF-8."""
    return BadFieldError((), "json", "The request body is not valid JSON")
