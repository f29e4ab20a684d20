"""Reading files that must not change meanwhile. No torch, controller only."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.bundle.names import shown
from trainer.errors import InputError

PIECE_BYTES = 1 << 20
# A file that was written to this short a time before it was looked at may be written to again with no other ctime: the
# kernel's clock for files ticks a few times a second, and that of a server may differ from ours.
FRESH_SECONDS = 2.0
AGAIN = "the source tree changed while it was read, so nothing was built; run it again when nobody writes to it"


class Changed(InputError):
    """A file that is not what it was at the first look."""


class Stamp(NamedTuple):
    """What tells that a file is the same and was not written to; its ctime cannot be set back by anybody."""

    device: int
    inode: int
    mode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        return cls(found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def executable(self) -> bool:
        return bool(self.mode & stat.S_IXUSR)


def raw(name: str) -> bytes:
    """A name as the file system has it, in any locale."""
    return name.encode("utf-8", "surrogateescape")


def path_of(source: Path, name: str) -> bytes:
    """The path of a file below the source tree."""
    return os.fsencode(source / "") + b"/" + raw(name)


def pieces(source: Path, name: str, stamp: Stamp) -> Iterator[bytes]:
    """The content of a file that is what `stamp` says before, while and after it is read; Changed otherwise."""
    try:
        descriptor = os.open(path_of(source, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        raise InputError(f"{shown(name)} cannot be read ({problem.strerror}); correct that or leave it out") from None
    try:
        left = stamp.size_bytes
        same = Stamp.of(os.fstat(descriptor)) == stamp
        while same and left > 0 and (piece := _read(descriptor, min(PIECE_BYTES, left), name)):
            left -= len(piece)
            yield piece
        if left or Stamp.of(os.fstat(descriptor)) != stamp:
            raise Changed(f"{AGAIN} ({shown(name)})")
    finally:
        os.close(descriptor)


def sha256(source: Path, name: str, stamp: Stamp) -> str:
    """The sha256 of such a file."""
    digest = hashlib.sha256()
    for piece in pieces(source, name, stamp):
        digest.update(piece)
    return digest.hexdigest()


def check_fresh(source: Path, stamps: Mapping[str, Stamp], digests: Mapping[str, str], looked_at: float) -> None:
    """Read again what was written to so shortly before the first look that a later write could leave no trace.

    `looked_at`: seconds since 1970 at that look; `digests`: what was read. Changed when a file is another.
    """
    for name, stamp in stamps.items():
        is_fresh = stamp.changed_ns / 1e9 > looked_at - FRESH_SECONDS
        if is_fresh and sha256(source, name, stamp) != digests[name]:
            raise Changed(f"{AGAIN} ({shown(name)})")


def _read(descriptor: int, most: int, name: str) -> bytes:
    try:
        return os.read(descriptor, most)
    except OSError as problem:
        raise InputError(f"{shown(name)} cannot be read ({problem.strerror}); look at its disk") from None
