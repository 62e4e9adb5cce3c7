"""Reads a stream of server-sent events from bytes that arrive in any pieces.

Owns framing only: payloads stay bytes, so that a character cut in two needs no care; refuses to decode them.
"""

_BOM = b"\xef\xbb\xbf"
_MOST_BYTES = 32 * 1024 * 1024  # of one event; images and whole tool calls make long lines


class SseTooLongError(Exception):
    """An event is longer than any sane one."""


class SseReader:
    """One per stream. Yields `(event name, data)`; the name is empty when the stream does not state one."""

    __slots__ = ("_after_cr", "_clean", "_parts", "_size", "_started")

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # what has arrived of the event that is not complete
        self._size = 0
        self._after_cr = False
        self._started = False
        self._clean = False  # the next byte begins an event

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The events that `data` completes. Raises SseTooLongError."""
        # Nearly every piece is one whole event of one line; this shortcut costs a fifth of the way below.
        if self._clean and data.startswith(b"data: ") and data.endswith(b"\n\n") and b"\r" not in data:
            payload = data[6:-2]
            if b"\n" not in payload:
                return [(b"", payload)]
        events = self._read(data)
        self._clean = self._started and not self._parts and not self._after_cr
        return events

    def _read(self, data: bytes) -> list[tuple[bytes, bytes]]:
        if not self._started:
            data = self._without_bom(data)
        if self._after_cr or b"\r" in data:
            data = self._with_plain_line_ends(data)
        if self._parts:
            if b"\n\n" not in data and not (data[:1] == b"\n" and self._parts[-1][-1:] == b"\n"):
                return self._keep(data)
            self._parts.append(data)
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
        end = data.rfind(b"\n\n")
        if end < 0:
            return self._keep(data)
        if end + 2 < len(data):
            self._keep(data[end + 2 :])
        return _events(data[:end])

    def finish(self) -> list[tuple[bytes, bytes]]:
        """The events that stand unterminated at the end of the stream."""
        rest = b"".join(self._parts)
        self._parts.clear()
        return _events(rest)

    def _keep(self, data: bytes) -> list[tuple[bytes, bytes]]:
        if data:
            self._parts.append(data)
            self._size += len(data)
            if self._size > _MOST_BYTES:
                raise SseTooLongError
        return []

    def _without_bom(self, data: bytes) -> bytes:
        data = b"".join([*self._parts, data])
        self._parts.clear()
        self._size = 0
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._keep(data)
            return b""
        self._started = True
        return data.removeprefix(_BOM)

    def _with_plain_line_ends(self, data: bytes) -> bytes:
        # A CR counts as a line end at once; an LF that follows it, perhaps in the next piece, belongs to it.
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _events(text: bytes) -> list[tuple[bytes, bytes]]:
    events: list[tuple[bytes, bytes]] = []
    for block in text.split(b"\n\n"):
        if block.startswith(b"data: ") and b"\n" not in block:
            events.append((b"", block[6:]))
        elif block.startswith(b"event: ") and block.count(b"\n") == 1 and b"\ndata: " in block:
            name, _, data = block.partition(b"\ndata: ")
            events.append((name[7:], data))
        elif event := _event(block):
            events.append(event)
    return events


def _event(block: bytes) -> tuple[bytes, bytes] | None:
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return (name, b"\n".join(data)) if data else None
