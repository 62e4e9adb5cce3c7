"""Reads request bodies: identity or gzip, never more than the limit, whatever was announced or compressed.

Owns the limit; refuses to know what a body means.
"""

import zlib

from edge.exchange import Exchange
from edge.problems import BadFieldError, UnsupportedEncodingError
from services.runtime.errors import MessageTooLargeError

_GZIP = 31  # zlib's wbits for a gzip member with header and checksum


async def read_body(exchange: Exchange, limit_bytes: int) -> bytes:
    """The decompressed body. Raises MessageTooLargeError, or BadFieldError for an encoding that is not accepted."""
    encoding = (exchange.header(b"content-encoding") or b"identity").strip().lower()
    if encoding not in (b"identity", b"gzip", b""):
        raise UnsupportedEncodingError
    announced = exchange.header(b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
        raise too_large(limit_bytes)
    piece, more = await exchange.receive_piece()
    if not more and encoding != b"gzip":
        if len(piece) > limit_bytes:
            raise too_large(limit_bytes)
        return piece
    sink = _Gunzip(limit_bytes) if encoding == b"gzip" else _Plain(limit_bytes)
    sink.add(piece)
    while more:
        piece, more = await exchange.receive_piece()
        sink.add(piece)
    return sink.finish()


def too_large(limit_bytes: int) -> MessageTooLargeError:
    """The failure of a body over the limit."""
    return MessageTooLargeError("the request is too large", metadata={"limit_bytes": str(limit_bytes)})


class _Plain:
    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pieces = bytearray()

    def add(self, piece: bytes) -> None:
        self._pieces += piece
        if len(self._pieces) > self._limit_bytes:
            raise too_large(self._limit_bytes)

    def finish(self) -> bytes:
        return bytes(self._pieces)


class _Gunzip(_Plain):
    """Inflates as pieces come; stops one byte past the limit, so a small body cannot grow into a large one."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self._member = zlib.decompressobj(_GZIP)
        self._received_bytes = 0

    def add(self, piece: bytes) -> None:
        self._received_bytes += len(piece)  # counted as well: members that hold nothing may go on for ever
        if self._received_bytes > self._limit_bytes:
            raise too_large(self._limit_bytes)
        data = piece
        while data:
            if self._member.eof:  # another member follows
                self._member = zlib.decompressobj(_GZIP)
            room = self._limit_bytes - len(self._pieces) + 1
            try:
                super().add(self._member.decompress(data, room))
            except zlib.error:
                raise BadFieldError((), "value", "The body is not valid gzip") from None
            data = self._member.unconsumed_tail or self._member.unused_data

    def finish(self) -> bytes:
        if not self._member.eof:
            raise BadFieldError((), "value", "The body is not valid gzip")
        return super().finish()
