"""Tool arguments as an object, when the model's text is cut short or is not an object at all.

Owns closing an incomplete JSON text as the SDKs' own partial parsers read it; refuses to re-encode what is complete.
"""

import msgspec

_QUOTE, _COMMA, _COLON, _BACKSLASH, _OPEN_OBJECT = b'",:\\{'
_CLOSER = {0x7B: 0x7D, 0x5B: 0x5D}
_LITERAL_END = frozenset(b",]} \t\r\n")
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def as_object(text: str) -> bytes:
    """The arguments of a tool call as a JSON object: verbatim when they are one."""
    raw = text.strip().encode()
    if not raw:
        return b"{}"
    value = _complete(raw)
    if value is None:
        return b'{"_raw":%b}' % _encode(text)
    if value[:1] != b"{":
        return b'{"value":%b}' % value
    return value


def _complete(raw: bytes) -> bytes | None:
    """The text itself when it parses, else its longest prefix that can be closed, else None."""
    if _parses(raw):
        return raw
    cut = _Scan(raw).run()
    return cut if cut is not None and _parses(cut) else None


def _parses(raw: bytes) -> bool:
    try:
        _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


class _Scan:
    """Walks a cut text and remembers the last place where closing the open brackets gives a whole value."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._closers: list[int] = []
        self._expects_key = False
        self._is_broken = False  # not cut, but wrong
        self._keep = 0  # length of the prefix that may stay
        self._kept_closers: list[int] = []

    def run(self) -> bytes | None:
        at: int | None = 0
        while at is not None and at < len(self._raw):
            at = self._step(at)
        if self._is_broken:
            return None
        return self._raw[: self._keep] + bytes(reversed(self._kept_closers)) if self._keep else None

    def _step(self, at: int) -> int | None:
        byte = self._raw[at]
        if byte in _CLOSER:
            self._closers.append(_CLOSER[byte])
            self._expects_key = byte == _OPEN_OBJECT
            return self._mark(at + 1)
        if byte in b"}]":
            self._is_broken = not self._closers or self._closers.pop() != byte
            return None if self._is_broken else self._mark(at + 1)
        if byte in b",: \t\r\n":
            self._punctuate(byte)
            return at + 1
        end = _string_end(self._raw, at) if byte == _QUOTE else _literal_end(self._raw, at)
        return self._mark(end) if end is not None and not self._expects_key else end

    def _punctuate(self, byte: int) -> None:
        if byte == _COMMA:
            self._expects_key = bool(self._closers) and self._closers[-1] == _CLOSER[_OPEN_OBJECT]
        elif byte == _COLON:
            self._expects_key = False

    def _mark(self, length: int) -> int:
        self._keep = length
        self._kept_closers = list(self._closers)
        return length


def _string_end(raw: bytes, at: int) -> int | None:
    at += 1
    while at < len(raw):
        if raw[at] == _BACKSLASH:
            at += 2
        elif raw[at] == _QUOTE:
            return at + 1
        else:
            at += 1
    return None


def _literal_end(raw: bytes, at: int) -> int | None:
    """A number or a word is whole only when something follows it, or when it parses by itself."""
    end = at
    while end < len(raw) and raw[end] not in _LITERAL_END:
        end += 1
    return end if end < len(raw) or _parses(raw[at:end]) else None
