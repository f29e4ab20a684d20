"""The bytes inside of a .tar.gz: one gzip member, whole, and nothing behind it. Python 3.8, no torch."""

from __future__ import annotations

import zlib
from typing import NoReturn, Protocol

from trainer.errors import InputError

PACKED_BYTES = 256 << 10  # read at once
PIECE_BYTES = 1 << 20  # unpacked at once
COPY_AGAIN = "copy the bundle again"


class Readable(Protocol):
    """What has bytes to read, none at its end."""

    def read(self, size: int, /) -> bytes: ...


class Unpacked:
    """What a gzip stream holds, in order; InputError for one that is damaged or cut. How much is for its user to limit.

    The end is reached only behind a right CRC and length, with no second gzip member and not a byte more.
    """

    def __init__(self, stream: Readable, shown: str) -> None:
        self._stream, self._shown = stream, shown
        self._inflate = zlib.decompressobj(31)  # gzip alone; zlib checks its header, CRC and length
        self._piece, self._at, self._before = b"", 0, 0

    @property
    def position(self) -> int:
        """How many bytes were taken so far."""
        return self._before + self._at

    def some(self, most: int) -> bytes:
        """1 to `most` bytes, none at the end."""
        if self._at == len(self._piece) and not self._advance():
            return b""
        if self._at == 0 and most >= len(self._piece):
            self._at = len(self._piece)
            return self._piece
        found = self._piece[self._at : self._at + most]
        self._at += len(found)
        return found

    def exactly(self, size: int) -> bytes:
        """`size` bytes, less at the end only. For headers: it is held in memory."""
        end = self._at + size
        if end <= len(self._piece):
            found = self._piece[self._at : end]
            self._at = end
            return found
        parts = []
        while size:
            part = self.some(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _advance(self) -> bool:
        """Unpack the next piece; False behind the last."""
        self._before += len(self._piece)
        self._piece, self._at = self._next_piece(), 0
        return bool(self._piece)

    def _next_piece(self) -> bytes:
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._stream.read(PACKED_BYTES)
            try:
                piece = self._inflate.decompress(packed, PIECE_BYTES)
            except zlib.error:
                self._refuse(f"is no gzip stream, or damaged, near byte {self._before} of what it holds", COPY_AGAIN)
            if piece:
                return piece
            if not packed and not self._inflate.eof:
                self._refuse("ends before its gzip stream does", COPY_AGAIN)
        behind = self._inflate.unused_data or self._stream.read(1)
        if behind.startswith(b"\x1f"):
            self._refuse("has a second gzip member behind the first", "build the bundle again")
        if behind:
            self._refuse("has bytes behind the end of its gzip stream", COPY_AGAIN)
        return b""

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise InputError(f"{self._shown} {what}; {remedy}")
