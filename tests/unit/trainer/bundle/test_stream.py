"""gzip streams that are whole, and the nearly identical ones that are not."""

from __future__ import annotations

import gzip
import io
import os
import zlib

import pytest

from trainer.bundle.stream import PIECE_BYTES, Unpacked
from trainer.errors import InputError

DATA = b"0123456789" * 500
PACKED = gzip.compress(DATA, 6, mtime=0)


def read(packed: bytes) -> bytes:
    unpacked, pieces = Unpacked(io.BytesIO(packed), "'x.tar.gz'"), []
    while True:
        piece = unpacked.some(1 << 20)
        if not piece:
            break
        pieces.append(piece)
    found = b"".join(pieces)
    assert unpacked.position == len(found) and unpacked.some(1) == b"" and unpacked.exactly(5) == b""
    return found


def with_flags(flags: int, fields: bytes) -> bytes:
    """The stream with a gzip header that has optional fields (RFC 1952)."""
    return PACKED[:3] + bytes([flags]) + PACKED[4:10] + fields + PACKED[10:]


@pytest.mark.parametrize(
    ("refused", "words", "whole"),
    [
        (b"", "ends before its gzip stream does", PACKED),
        (PACKED[:5], "ends before", PACKED),
        (PACKED[:-9], "ends before", PACKED),
        (PACKED[:-1], "ends before", PACKED),
        (DATA, "is no gzip stream", PACKED),
        (zlib.compress(DATA), "is no gzip stream", PACKED),
        (b"\x1f\x8b\x09" + PACKED[3:], "is no gzip stream", PACKED),
        (b"\x1f\x9d" + PACKED[2:], "is no gzip stream", PACKED),
        (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "is no gzip stream, or damaged", PACKED),
        (PACKED[:-4] + b"\0\0\0\0", "is no gzip stream, or damaged", PACKED),
        (PACKED[:20] + b"\xff\xff\xff" + PACKED[23:], "is no gzip stream, or damaged", PACKED),
        (PACKED + PACKED, "has a second gzip member", PACKED),
        (PACKED + gzip.compress(b"", mtime=0), "has a second gzip member", PACKED),
        (PACKED + b"\0", "has bytes behind the end", PACKED),
        (PACKED + bytes(1 << 20), "has bytes behind the end", PACKED),
        (PACKED + b"x", "has bytes behind the end", PACKED),
        (with_flags(0xE0, b""), "is no gzip stream", with_flags(0, b"")),
        (with_flags(8, b"x.tar"), "is no gzip stream|ends before", with_flags(8, b"x.tar\0")),
        (with_flags(2, b"\0\0"), "is no gzip stream",
         with_flags(2, (zlib.crc32(with_flags(2, b"")[:10]) & 0xFFFF).to_bytes(2, "little"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "_",
)  # fmt: skip
def test_a_stream_is_refused_and_its_twin_is_read(refused: bytes, words: str, whole: bytes) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        read(refused)
    assert str(refusal.value).startswith("'x.tar.gz' ") and "; " in str(refusal.value)
    assert read(whole) == DATA


def test_what_is_left_inside_of_zlib_comes_out_at_the_end() -> None:
    """A megabyte of zeros is a kilobyte packed: all of it is read long before it is unpacked."""
    data = bytes(5 * PIECE_BYTES + 3)
    assert read(gzip.compress(data, 9)) == data


@pytest.mark.parametrize("level", [0, 1, 9])
def test_pieces_of_any_size_are_the_data(level: int) -> None:
    data = os.urandom(PIECE_BYTES + 12345) + b"x" * 3 * PIECE_BYTES
    unpacked, found = Unpacked(io.BytesIO(gzip.compress(data, level)), "x"), b""
    for size in (0, 1, 511, 512, PIECE_BYTES - 7, 70_000):
        part = unpacked.exactly(size)
        assert len(part) == size
        found += part
        part = unpacked.some(size)
        assert len(part) <= size
        found += part
        assert unpacked.position == len(found)
    found += unpacked.exactly(len(data))
    assert found == data and unpacked.some(1) == b""
