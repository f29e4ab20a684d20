"""The headers of a tar archive, read strictly: ustar, GNU and pax, without what no bundle needs. Python 3.8, no torch.

Formats: POSIX.1-2017, "pax Interchange Format" and "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format".
Each function returns what it found or raises Refused with what is wrong; its caller knows which member it is.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from trainer.bundle.names import shown

BLOCK = 512
ZERO = bytes(BLOCK)
LARGEST_OCTAL = 0o77777777777  # what the size field holds in octal
USTAR, GNU = b"ustar\x0000", b"ustar  \x00"
LONG_NAME, LOCAL, GLOBAL, FOLDER = b"L", b"x", b"g", b"5"
FILE = (b"0", b"\x00")
METADATA = {LONG_NAME: GNU, LOCAL: USTAR, GLOBAL: USTAR}  # with the only format that has it
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device", b"6": "a FIFO",
    b"7": "a contiguous file", b"A": "an access list", b"D": "a folder's listing", b"E": "an access list",
    b"I": "an inode", b"K": "a long link name", b"M": "a part of another volume's file", b"N": "an old long name",
    b"S": "a sparse file", b"V": "a volume label", b"X": "a Solaris header",
}  # fmt: skip
_OCTAL = re.compile(rb"([0-7]+)[ \x00]*")
_DECIMAL = re.compile(rb"0|[1-9][0-9]{0,18}")
_SPARSE_KEYS = (b"SCHILY.realsize", b"SCHILY.filetype", b"SUN.holesdata")
_UTF8 = b"ISO-IR 10646 2000 UTF-8"
AGAIN = "build the bundle again"
ONLY = "a bundle holds regular files and folders only; build it again without it"


class Refused(Exception):
    """What is wrong with a header, with the remedy."""


class Header(NamedTuple):
    """One header block. `name` as it is written there, `size` None when it does not fit into the field."""

    kind: bytes
    magic: bytes
    name: bytes
    mode: int
    size: int
    mtime: int


def parse(block: bytes) -> Header:
    """The header in a block of 512 bytes."""
    written = _octal(block, 148, 156, "checksum")
    real = sum(block) - sum(block[148:156]) + 8 * 32
    if written != real:
        raise Refused(f"the header's checksum is {written}, its bytes give {real}; copy the bundle again")
    magic, kind = block[257:265], block[156:157]
    if magic not in (USTAR, GNU):
        raise Refused(f"the header's format {shown(magic)} is neither ustar nor GNU tar; {AGAIN}")
    if kind not in FILE and kind != FOLDER and kind not in METADATA:
        raise Refused(f"it is {_KINDS.get(kind) or 'of the unknown type ' + shown(kind)}; {ONLY}")
    if METADATA.get(kind, magic) != magic:
        raise Refused(f"a header of the type {shown(kind)} does not belong into this tar format; {AGAIN}")
    name = _text(block, 0, 100, "name")
    if _text(block, 157, 257, "link name"):
        raise Refused(f"it has the link name {shown(_text(block, 157, 257, 'link name'))}; {ONLY}")
    if magic == USTAR:
        prefix = _text(block, 345, 500, "name prefix")
        name = prefix + b"/" + name if prefix else name
    if block[500 if magic == USTAR else 345 :].strip(b"\x00"):
        raise Refused(f"the header has fields in use that only other formats or sparse files have; {AGAIN}")
    mode, mtime = _octal(block, 100, 108, "mode"), _octal(block, 136, 148, "time")
    return Header(kind, magic, name, mode, _size(block), mtime)


def _octal(block: bytes, begin: int, end: int, field: str) -> int:
    match = _OCTAL.fullmatch(block, begin, end)
    if match is None:
        raise Refused(f"the header's {field} {shown(block[begin:end])} is not an octal number; {AGAIN}")
    return int(match[1], 8)


def _size(block: bytes) -> int:
    """The size field: octal, or base 256 where octal has no room."""
    if block[124] != 0x80:
        return _octal(block, 124, 136, "size")
    size = int.from_bytes(block[125:136], "big")
    if size <= LARGEST_OCTAL:
        raise Refused(f"the header's size {size} is in base 256 although it fits in octal; {AGAIN}")
    return size


def _text(block: bytes, begin: int, end: int, field: str) -> bytes:
    """A field that ends at its first NUL, behind which there are only NULs."""
    text, _, rest = block[begin:end].partition(b"\x00")
    if rest.strip(b"\x00"):
        raise Refused(f"the header's {field} {shown(block[begin:end])} has bytes behind its end; {AGAIN}")
    return text


def long_name(data: bytes) -> bytes:
    """The name in the content of a GNU long name."""
    if data.find(b"\x00") != len(data) - 1:
        raise Refused(f"the long name {shown(data)} is not ended by one NUL at its end; {AGAIN}")
    return data[:-1]


def records(data: bytes, local: bool) -> dict[bytes, bytes]:
    """Key to value of a pax header, of one member or (not local) of all that follow."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        length = data[at:space] if space > at else b""
        if not _DECIMAL.fullmatch(length) or at + int(length) > len(data) or int(length) < space - at + 4:
            raise Refused(f"the pax record {shown(data[at : at + 40])} has a wrong length; {AGAIN}")
        end = at + int(length)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if data[end - 1 : end] != b"\n" or not equals or not key:
            raise Refused(f"the pax record {shown(data[at:end])} is not '<length> <key>=<value>'; {AGAIN}")
        if key in found:
            raise Refused(f"the pax header has the key {shown(key)} twice; {AGAIN}")
        _judge(key, value, local)
        found[key] = value
        at = end
    return found


def _judge(key: bytes, value: bytes, local: bool) -> None:
    """Refuse the records that change what a member is."""
    if b"\x00" in key or b"\x00" in value:
        raise Refused(f"the pax record {shown(key)} has a NUL in it; {AGAIN}")
    if key.startswith(b"GNU.") or key in _SPARSE_KEYS:
        raise Refused(f"the pax record {shown(key)} makes it a sparse or special file; {ONLY}")
    if key == b"linkpath" or (not local and key in (b"path", b"size", b"hdrcharset")):
        raise Refused(f"the pax record {shown(key)} does not belong into a {'' if local else 'global '}header; {AGAIN}")
    if key == b"hdrcharset" and value != _UTF8:
        raise Refused(f"the pax record 'hdrcharset' asks for {shown(value)}, names are UTF-8; {AGAIN}")
    if key == b"size" and not _DECIMAL.fullmatch(value):
        raise Refused(f"the pax record 'size' {shown(value)} is not a decimal number; {AGAIN}")


def size_of(header: Header, local: dict[bytes, bytes]) -> int:
    """The size of a member, where a pax record may say what the field has no room for."""
    if b"size" not in local:
        if header.magic == USTAR and header.size > LARGEST_OCTAL:
            raise Refused(f"the header's size {header.size} is in base 256, which ustar does not have; {AGAIN}")
        return header.size
    size = int(local[b"size"])
    if header.size != size and not (header.size == 0 and size > LARGEST_OCTAL):
        raise Refused(f"the header's size is {header.size}, that of its pax record {size}; {AGAIN}")
    return size
