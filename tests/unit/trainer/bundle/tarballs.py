"""Tar archives made block by block, so that each field can be what no writer writes."""

from __future__ import annotations

import gzip
import io

from hypothesis import strategies as st

from trainer.bundle.reader import Archive, Caps, Member

USTAR, GNU = b"ustar\x0000", b"ustar  \x00"
END = bytes(1024)
FIELDS = {
    "name": 0, "mode": 100, "uid": 108, "length": 124, "mtime": 136, "kind": 156, "link": 157, "magic": 257,
    "uname": 265, "dev": 329, "prefix": 345, "rest": 500,
}  # fmt: skip


def header(name: bytes = b"a", size: int = 0, magic: bytes = USTAR, **fields: bytes) -> bytes:
    """One header block; `fields` are bytes put at the field's place, `checksum` that of the whole field."""
    written = {
        "name": name, "mode": b"0000644\0", "uid": b"0000000\x000000000\0", "length": b"%011o\0" % size,
        "mtime": b"00000000005\0", "kind": b"0", "magic": magic, **fields,
    }  # fmt: skip
    checksum = written.pop("checksum", None)
    block = bytearray(512)
    block[148:156] = b" " * 8
    for field, value in written.items():
        block[FIELDS[field] : FIELDS[field] + len(value)] = value
    block[148:156] = checksum if checksum is not None else b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes = b"a", data: bytes = b"", **fields: bytes) -> bytes:
    """A header with its content."""
    magic = fields.pop("magic", USTAR)
    return header(name, len(data), magic, **fields) + padded(data)


def pax(records: dict[str, str] | bytes, kind: bytes = b"x") -> bytes:
    """A pax header; `records` as bytes are written as they are."""
    return member(b"PaxHeaders/a", records if isinstance(records, bytes) else written(records), kind=kind)


def written(records: dict[str, str]) -> bytes:
    """pax records with their lengths."""
    found = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        found += str(length).encode() + rest
    return found


def long_name(data: bytes) -> bytes:
    return member(b"././@LongLink", data, kind=b"L", magic=GNU)


def read(packed: bytes, caps: Caps | None = None) -> list[tuple[Member, bytes]]:
    """All members of a .tar.gz with their contents."""
    archive = Archive(io.BytesIO(packed), caps or Caps())
    return [(found, b"".join(pieces)) for found, pieces in archive]


def read_tar(tar: bytes, caps: Caps | None = None) -> list[tuple[Member, bytes]]:
    return read(gzip.compress(tar, 1), caps)


def names(tar: bytes, caps: Caps | None = None) -> list[str]:
    return [found.name for found, _ in read_tar(tar, caps)]


def mutated(data: bytes, draw: st.DrawFn, unit: int) -> bytes:
    """The data with one flip, cut, insertion, removal, duplicate or swap of pieces of `unit` bytes."""
    count = len(data) // unit
    at, other = (draw(st.integers(0, count)) * unit for _ in range(2))
    how = draw(st.sampled_from(["flip", "cut", "insert", "remove", "duplicate", "swap", "zero"]))
    if how == "flip":
        place = draw(st.integers(0, len(data) - 1))
        return data[:place] + bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) + data[place + 1 :]
    return {
        "cut": data[:at],
        "insert": data[:at] + draw(st.binary(min_size=unit, max_size=unit)) + data[at:],
        "remove": data[:at] + data[at + unit :],
        "duplicate": data[: at + unit] + data[at:],
        "swap": data[:at] + data[other : other + unit] + data[at + unit :],
        "zero": data[:at] + bytes(unit) + data[at + unit :],
    }[how]
