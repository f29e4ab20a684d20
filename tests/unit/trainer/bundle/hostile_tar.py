"""Tar and gzip written byte by byte, so that every field can be wrong and nothing depends on the code under test."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import NamedTuple

BLOCK = 512
MTIME = 1_700_000_000
USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"
# Field name -> (offset, length) of the ustar header.
FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "gname": (297, 32),
    "devmajor": (329, 8),
    "devminor": (337, 8),
    "prefix": (345, 155),
    "rest": (500, 12),
}


def octal(value: int, length: int) -> bytes:
    """A number as the fields hold it: octal digits, closed by NUL."""
    return b"%0*o\0" % (length - 1, value)


def base256(value: int, length: int) -> bytes:
    """A number as GNU tar writes large and negative ones."""
    return ((value + (1 << 8 * length) if value < 0 else value) | (1 << 8 * length - 1)).to_bytes(length, "big")


def padded(data: bytes, filler: bytes = b"\0") -> bytes:
    """Data up to the next block boundary."""
    return data + filler * (-len(data) % BLOCK)


def header(name: bytes, **fields: bytes | int) -> bytes:
    """One header block; a field given as int is written in octal, one given as bytes as it is."""
    values: dict[str, bytes | int] = {
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": 0,
        "mtime": MTIME,
        "type": b"0",
        "magic": USTAR,
    }
    values.update(fields, name=name)
    block = bytearray(BLOCK)
    for field, value in values.items():
        at, length = FIELDS[field]
        if field != "checksum":
            written = octal(value, length) if isinstance(value, int) else value
            assert len(written) <= length, f"{field} is too long"
            block[at : at + len(written)] = written
    at, length = FIELDS["checksum"]
    block[at : at + length] = b" " * length
    checksum = values.get("checksum", b"%06o\0 " % sum(block))
    block[at : at + length] = checksum if isinstance(checksum, bytes) else b"%06o\0 " % checksum
    return bytes(block)


def signed_sum(block: bytes) -> int:
    """The checksum of those who summed signed bytes."""
    at, length = FIELDS["checksum"]
    cleared = block[:at] + b" " * length + block[at + length :]
    return sum(struct.unpack("512b", cleared))


def record(key: bytes, value: bytes) -> bytes:
    """One pax record with its right length."""
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


class Entry(NamedTuple):
    """A file as it must lie there when the archive is accepted."""

    executable: bool
    content: bytes


class Tar:
    """An archive that grows block by block, and the files that a reader must find in it."""

    def __init__(self, magic: bytes = USTAR) -> None:
        self.magic = magic
        self.data = b""
        self.files: dict[str, Entry] = {}

    def raw(self, data: bytes) -> Tar:
        self.data += data
        return self

    def member(self, name: bytes, content: bytes = b"", filler: bytes = b"\0", **fields: bytes | int) -> Tar:
        """A header and its content; not listed among the files."""
        fields = {"magic": self.magic, "size": len(content), **fields}
        return self.raw(header(name, **fields) + padded(content, filler))

    def file(self, name: str | bytes, content: bytes = b"x\n", listed: str | None = None, **fields: bytes | int) -> Tar:
        """A regular file, listed under its name without `./` (or as `listed`)."""
        raw = name.encode() if isinstance(name, str) else name
        mode = fields.get("mode", 0o644)
        self.expect(listed or raw.decode("utf-8", "replace"), content, bool(isinstance(mode, int) and mode & 0o100))
        return self.member(raw, content, **fields)

    def expect(self, name: str, content: bytes = b"x\n", executable: bool = False) -> Tar:
        """List a file that is written by other means."""
        self.files[name[2:] if name.startswith("./") else name] = Entry(executable, content)
        return self

    def folder(self, name: str | bytes, **fields: bytes | int) -> Tar:
        raw = name.encode() if isinstance(name, str) else name
        return self.member(raw, **{"type": b"5", "mode": 0o755, **fields})

    def link(self, name: str, target: str, kind: bytes = b"2", **fields: bytes | int) -> Tar:
        return self.member(name.encode(), type=kind, link=target.encode(), **fields)

    def pax(self, *records: bytes, kind: bytes = b"x", **fields: bytes | int) -> Tar:
        return self.member(b"PaxHeaders/x", b"".join(records), **{"type": kind, "magic": USTAR, **fields})

    def longname(self, name: bytes, end: bytes = b"\0", kind: bytes = b"L", **fields: bytes | int) -> Tar:
        fields = {"type": kind, "magic": GNU, "mode": 0, "mtime": 0, **fields}
        return self.member(b"././@LongLink", name + end, **fields)

    def manifest(self, line: bytes = b"%s  %s\n", algorithm: str = "sha256") -> bytes:
        """The listing of the files so far as `sha256sum` writes it."""
        rows = sorted((name.encode(), entry) for name, entry in self.files.items())
        return b"".join(line % (digest(entry.content, algorithm), name) for name, entry in rows)


def digest(content: bytes, algorithm: str = "sha256") -> bytes:
    """The hex digest of some bytes, as bytes."""
    return hashlib.new(algorithm, content).hexdigest().encode()


def deflated(data: bytes) -> bytes:
    """Raw deflate."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def gzipped(data: bytes, *, method: int = 8, flags: int = 0, more: bytes = b"", crc: int = 0, length: int = 0) -> bytes:
    """One gzip member; `more` are the optional header fields, `crc` and `length` what is added to the right values."""
    head = b"\x1f\x8b" + bytes((method, flags)) + b"\0\0\0\0" + b"\0\xff" + more
    tail = struct.pack("<II", (zlib.crc32(data) + crc) & 0xFFFFFFFF, (len(data) + length) & 0xFFFFFFFF)
    return head + deflated(data) + tail
