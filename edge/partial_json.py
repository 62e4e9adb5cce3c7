"""Tool arguments as an object, when the model's text is cut short or is not an object at all.

Owns closing an incomplete JSON text the way the SDKs' own partial parsers read it; refuses to re-encode what is complete.
"""

import msgspec

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
    cut = _closable(raw)
    return cut if cut is not None and _parses(cut) else None


def _parses(raw: bytes) -> bool:
    try:
        _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


class _Scan:
    """Walks a cut text and remembers the last place where closing the open brackets gives a whole value."""

    def __init__(self) -> None:
        self.closers: list[int] = []
        self.keep = 0  # length of the prefix that may stay
        self.kept_closers: list[int] = []

    def mark(self, length: int) -> None:
        self.keep = length
        self.kept_closers = list(self.closers)


_CLOSER = {0x7B: 0x7D, 0x5B: 0x5D}
_LITERAL_END = frozenset(b",]} \t\r\n")


def _closable(raw: bytes) -> bytes | None:
    scan = _Scan()
    at, expects_key = 0, False
    while at < len(raw):
        byte = raw[at]
        if byte in _CLOSER:
            scan.closers.append(_CLOSER[byte])
            expects_key = byte == 0x7B
            at += 1
            scan.mark(at)
        elif byte in b"}]":
            if not scan.closers or scan.closers.pop() != byte:
                return None
            at += 1
            scan.mark(at)
        elif byte in b",: \t\r\n":
            if byte == 0x2C:
                expects_key = bool(scan.closers) and scan.closers[-1] == 0x7D
            elif byte == 0x3A:
                expects_key = False
            at += 1
        else:
            end = _string_end(raw, at) if byte == 0x22 else _literal_end(raw, at)
            if end is None:
                break
            at = end
            if not expects_key:
                scan.mark(at)
    return raw[: scan.keep] + bytes(reversed(scan.kept_closers)) if scan.keep else None


def _string_end(raw: bytes, at: int) -> int | None:
    at += 1
    while at < len(raw):
        if raw[at] == 0x5C:
            at += 2
        elif raw[at] == 0x22:
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
