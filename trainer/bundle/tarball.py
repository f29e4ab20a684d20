"""The frame of our archives: ustar headers, and pax headers where ustar has no room. No torch, controller only.

Nothing in it comes from this machine: no owner, no clock, two modes (POSIX.1-2017, pax, "ustar Interchange Format").
"""

from __future__ import annotations

import hashlib

BLOCK_BYTES = 512
RECORD_BYTES = 20 * BLOCK_BYTES  # tar reads and writes this at a time
MOST_OCTAL = 8**11 - 1  # in the fields of a size and a time


def header(name: str, size_bytes: int, executable: bool, made_at: int) -> bytes:
    """What stands before the content of a regular file: one block, or a pax header and one block."""
    records: dict[str, str] = {}
    placed = _split(name.encode())
    if placed is None:  # a tar that does not know pax gives it this name
        placed, records["path"] = (b"@PaxHeader", _short(name)), name
    if size_bytes > MOST_OCTAL:
        records["size"] = str(size_bytes)
    mode = 0o755 if executable else 0o644
    block = _block(placed, b"0", mode, size_bytes if size_bytes <= MOST_OCTAL else 0, made_at)
    if not records:
        return block
    return _pax((b"@PaxHeader", _short(name) + b".x"), b"x", records, made_at) + block


def commit_header(commit: str, made_at: int) -> bytes:
    """The global header that names a commit, as `git archive` writes it and `git get-tar-commit-id` reads it."""
    return _pax((b"", b"pax_global_header"), b"g", {"comment": commit}, made_at)


def padding(size_bytes: int) -> bytes:
    """What fills the last block of a content."""
    return bytes(-size_bytes % BLOCK_BYTES)


def end(written_bytes: int) -> bytes:
    """The two empty blocks at the end, and what fills the last record."""
    return bytes(2 * BLOCK_BYTES + -(written_bytes + 2 * BLOCK_BYTES) % RECORD_BYTES)


def _short(name: str) -> bytes:
    return hashlib.sha256(name.encode()).hexdigest()[:32].encode()


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """(prefix, name) of a path as ustar holds it; None when there is no room for it."""
    if len(name) <= 100:
        return b"", name
    place = name.find(b"/", max(len(name) - 101, 1))
    return (name[:place], name[place + 1 :]) if 0 < place <= 155 else None


def _pax(placed: tuple[bytes, bytes], kind: bytes, records: dict[str, str], made_at: int) -> bytes:
    content = b"".join(_record(key, value) for key, value in records.items())
    return _block(placed, kind, 0o644, len(content), made_at) + content + padding(len(content))


def _record(key: str, value: str) -> bytes:
    """One `<length> <key>=<value>` line; the length counts its own digits."""
    rest = f" {key}={value}\n".encode()
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return str(length).encode() + rest


def _block(placed: tuple[bytes, bytes], kind: bytes, mode: int, size_bytes: int, made_at: int) -> bytes:
    prefix, name = placed
    fields = (
        name.ljust(100, b"\0"), b"%07o\0" % mode, b"%07o\0" % 0, b"%07o\0" % 0, b"%011o\0" % size_bytes,
        b"%011o\0" % made_at, b" " * 8, kind, bytes(100), b"ustar\0", b"00", bytes(32), bytes(32), b"%07o\0" % 0,
        b"%07o\0" % 0, prefix.ljust(155, b"\0"), bytes(12),
    )  # fmt: skip
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
