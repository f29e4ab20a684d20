"""One gzip member made by several threads: the same bytes for every number of them. No torch, controller only.

As pigz does it: the input is cut into blocks of one size, each is compressed on its own with the 32 KiB before it as
its dictionary, ended on a byte border, and the pieces are one deflate stream in their order (RFC 1951, RFC 1952).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

BLOCK_BYTES = 512 << 10
DICTIONARY_BYTES = 32 << 10
LEVEL = 5  # 1.5 times as fast as 6, and some 2 % larger on text
SAMPLES_BYTES = (8 << 10, 64 << 10, 8 << 10)  # looked at in a block: its begin, its middle (twice a window), its end
MOST_THREADS = 16
# No time, no name, and 255 for an operating system that is not told: nothing of this machine.
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def deflate(block: bytes, before: bytes, last: bool) -> bytes:
    """The compressed piece of one block; all but the last end on a byte border so that another one can follow."""
    level = LEVEL if _gets_smaller(block) else 0
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zdict=before)
    return packer.compress(block) + packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def _gets_smaller(block: bytes) -> bool:
    """Whether compressing is worth its time: what was compressed or encrypted before is stored."""
    first, middle, last = SAMPLES_BYTES
    if len(block) < 2 * sum(SAMPLES_BYTES):
        return True
    place = (len(block) - middle) // 2
    samples = block[:first], block[place : place + middle], block[-last:]
    return any(len(zlib.compress(sample, 1)) < 0.98 * len(sample) for sample in samples)


class Writable(Protocol):
    """What takes the compressed bytes."""

    def write(self, data: bytes, /) -> object: ...


class GzipWriter:
    """Compresses what is written to it into `stream`; at most a few blocks for each thread are held in memory.

    Closed without an exception, the member is whole; left by one, it is not ended. `stream` stays open.
    """

    def __init__(self, stream: Writable, threads: int = 0) -> None:
        threads = threads or min(available_cores(), MOST_THREADS)
        self._stream = stream
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="gzip")
        self._pending: deque[Future[bytes]] = deque()
        self._most_pending = 2 * threads + 1
        self._block = bytearray()
        self._before = b""
        self._crc = 0
        self._size = 0
        stream.write(HEADER)

    def __enter__(self) -> GzipWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def write(self, data: bytes) -> None:
        """Add bytes; waits when the threads are behind."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._block += data
        if len(self._block) > BLOCK_BYTES:  # never the last one: that is known at the end only
            view, place = bytes(self._block), 0
            while len(view) - place > BLOCK_BYTES:
                self._submit(view[place : place + BLOCK_BYTES], last=False)
                place += BLOCK_BYTES
            self._block = bytearray(view[place:])

    def _submit(self, block: bytes, last: bool) -> None:
        self._pending.append(self._pool.submit(deflate, block, self._before, last))
        self._before = block[-DICTIONARY_BYTES:]
        while len(self._pending) > self._most_pending:
            self._stream.write(self._pending.popleft().result())

    def _finish(self) -> None:
        self._submit(bytes(self._block), last=True)
        while self._pending:
            self._stream.write(self._pending.popleft().result())
        self._stream.write(struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))
