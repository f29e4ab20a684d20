"""What a hostile case is, and the bundles that cases are made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.unit.trainer.bundle.hostile_tar import BLOCK, Entry, Tar, digest, gzipped

NAME = "b.tar.gz"
OUTER = NAME + ".sha256"
BESIDE = "b.SYNC_MANIFEST.sha256"
INSIDE = "SYNC_MANIFEST.sha256"
OLD = "SYNC_MANIFEST.txt"
END = b"\0" * (2 * BLOCK)
T = TypeVar("T")


class Link(NamedTuple):
    """A symbolic link in the place of a file."""

    target: str


class Folder(NamedTuple):
    """A folder in the place of a file."""


class Fifo(NamedTuple):
    """A FIFO in the place of a file."""


class Bundle(NamedTuple):
    """The files that a user has, and the tree that they become when they are accepted."""

    files: dict[str, bytes | Link | Folder | Fifo]
    tree: dict[str, Entry]
    name: str = NAME


class Make:
    """Builds one side of a case: `pick` chooses what is hostile or harmless, everything else is the same."""

    def __init__(self, hostile: bool, outside: Path) -> None:
        self.hostile = hostile
        self.outside = str(outside)  # absolute path of a folder with canaries

    def pick(self, hostile: T, harmless: T) -> T:
        return hostile if self.hostile else harmless

    def bundle(
        self,
        tar: Tar,
        *,
        listing: bytes | None = None,
        inside: str | None = INSIDE,
        beside: bytes | Link | Folder | None = None,
        end: bytes = END,
        pack: Callable[[bytes], bytes] = gzipped,
        archive: bytes | None = None,
    ) -> Bundle:
        """The bundle of an archive: its manifest as the last member and, if ours, the same beside, and its `.sha256`.

        `listing`: the manifest instead of the right one; `inside`: its name, None for none; `beside`: another there;
        `end`, `pack`: how the archive ends and is packed; `archive`: the bytes of the bundle, whatever the rest.
        """
        listing = tar.manifest() if listing is None else listing
        if inside is not None:
            tar.file(inside, listing)
        packed = pack(tar.data + end) if archive is None else archive
        files: dict[str, bytes | Link | Folder | Fifo] = {NAME: packed, OUTER: digest(packed) + b"  b.tar.gz\n"}
        if beside is not None or inside == INSIDE:
            files[BESIDE] = listing if beside is None else beside
        return Bundle(files, dict(tar.files))

    def one(self, hostile: str | bytes, harmless: str | bytes, **fields: bytes | int) -> Bundle:
        """A bundle with a file of the one or the other name."""
        return self.bundle(start().file(self.pick(hostile, harmless), **fields))


class Case(NamedTuple):
    """One hostile thing. `fragments`: what the sentence of the refusal must hold; the twin is accepted."""

    name: str
    kind: str
    what: str
    origin: str
    fragments: tuple[str, ...]
    make: Callable[[Make], Bundle]
    caps: dict[str, int] = {}
    without_sha256: bool = False


def start(magic: bytes | None = None) -> Tar:
    """An archive with one harmless file, so that no case is empty but for what it is about."""
    return (Tar() if magic is None else Tar(magic)).file("a.txt", b"harmless\n")
