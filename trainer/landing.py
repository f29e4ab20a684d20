"""The private folder in which files from a host arrive, whole or in parts, until all of them are verified. No torch.

`<output_dir>/.incoming` (0700) outlives an interruption: `objects/<sha256>` are files whose content was verified,
`parts/<sha256>` is the beginning of one that was cut, `parts/*.got` is what is arriving right now. One collect at a
time holds the folder; the system lets go of it when that process ends, however it ends. What lies in outputs already
is linked here instead of being fetched. Nothing counts by its name: an object of an earlier run is hashed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer import process
from trainer.errors import InputError, Interrupted
from trainer.listing import Caps, Entry, mib, parse, render
from trainer.state import StateError, read_json, write_json

FOLDER = ".incoming"
_LARGEST = Caps(1 << 50, 1 << 50)  # a batch was capped when it was asked for
_PIECE_BYTES = 1 << 20
# A transfer has several requests in flight, and their answers may be written in any order: the end of what was
# cut may have holes. What is before it is compared with the host's before it is used.
UNSURE_BYTES = 16 << 20
_SPARE_BYTES = 64 << 20


class Landing:
    """The landing folder of one output folder, held by this process; see `opened`."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.folder = output_dir / FOLDER
        self.objects = self.folder / "objects"
        self.parts = self.folder / "parts"
        self.journal = self.folder / "journal.json"
        self.tree = self.folder / "tree"
        self.verified: set[str] = set()  # hashed by this process

    def object(self, entry: Entry) -> Path:
        return self.objects / entry.sha256

    def part(self, entry: Entry) -> Path:
        return self.parts / entry.sha256

    def got(self, entry: Entry) -> Path:
        return self.parts / f"{entry.sha256}.got"

    def reuse(self, entries: Sequence[Entry]) -> None:
        """Verify the objects that are wanted, and take what is missing from files that are home already."""
        places: dict[str, list[str]] = {}
        for path, sha256 in collected_files(self.output_dir).items():
            places.setdefault(sha256, []).append(path)
        for entry in entries:
            if entry.sha256 in self.verified:
                continue
            if self._is_sound(self.object(entry), entry):
                self.verified.add(entry.sha256)
                continue
            self.object(entry).unlink(missing_ok=True)
            for path in [entry.path, *places.get(entry.sha256, [])]:
                place = self.output_dir / path
                if self._is_sound(place, entry):
                    link_or_copy(place, self.object(entry))
                    self.verified.add(entry.sha256)
                    break

    def _is_sound(self, path: Path, entry: Entry) -> bool:
        return is_regular(path, entry.size) and digest_of(path) == entry.sha256

    def missing(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those whose content is not here, each content once."""
        found = {entry.sha256: entry for entry in entries if entry.sha256 not in self.verified}
        return sorted(found.values(), key=lambda entry: entry.path)

    def take_up(self, entries: Iterable[Entry]) -> None:
        """What was arriving when an earlier collect was killed becomes the part of its file."""
        for entry in self.missing(entries):
            if not size_of(self.part(entry)):  # else nobody knows what it follows
                self.salvage(entry, self.got(entry))

    def check_space(self, entries: Sequence[Entry]) -> None:
        """InputError when the disk cannot take what is still to come, with the copies of equal files."""
        coming = self.missing(entries)
        here = sum(size_of(self.part(entry)) for entry in coming)
        copies = sum(entry.size for entry in entries) - sum({e.sha256: e.size for e in entries}.values())
        need = sum(entry.size for entry in coming) - here + copies + _SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise InputError(
                f"{self.output_dir} has {mib(free)} free and collect needs {mib(need)}; make room, or name another "
                "folder with artifacts_output_dir"
            )

    def accept(self, path: Path, entry: Entry) -> None:
        """Take over a file whose content this process has just found to be the listed one."""
        path.chmod(0o644 & ~_umask())
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(path, self.object(entry))
        self.verified.add(entry.sha256)

    def salvage(self, entry: Entry, got: Path) -> None:
        """Put what arrived before a cut behind the part that is there, less its unsure end."""
        sure = max(size_of(got) - UNSURE_BYTES, 0)
        if sure and not size_of(self.part(entry)):
            os.truncate(got, sure)
            os.replace(got, self.part(entry))
        elif sure:
            self.append(entry, got, sure)
        got.unlink(missing_ok=True)

    def append(self, entry: Entry, got: Path, size: int) -> None:
        """Put the first `size` bytes of `got` behind the part of this file."""
        with got.open("rb") as source, self.part(entry).open("ab") as target:
            for piece in pieces(source, size):
                target.write(piece)

    def expect_batch(self, entries: Sequence[Entry]) -> Path:
        """Where a batch of these files (sorted by path) will arrive; noted, so that a cut one can be used."""
        (self.parts / "batch.got").unlink(missing_ok=True)
        (self.parts / "batch").write_text(render(entries), encoding="ascii")
        return self.parts / "batch.got"

    def split_batch(self) -> list[tuple[Entry, str]]:
        """Take the files over that arrived in a batch; returns those with another content, and its hash.

        A batch may be cut anywhere: what is not whole is not judged.
        """
        note, got = self.parts / "batch", self.parts / "batch.got"
        wrong: list[tuple[Entry, str]] = []
        if not note.is_file() or not got.is_file():
            return wrong
        with got.open("rb") as stream:
            for entry in parse(note.read_bytes(), _LARGEST):
                fresh, digest, size = self.parts / "single", hashlib.sha256(), 0
                with fresh.open("wb") as target:
                    for piece in pieces(stream, entry.size):
                        digest.update(piece)
                        size += target.write(piece)
                if size < entry.size:
                    break
                if digest.hexdigest() != entry.sha256:
                    wrong.append((entry, digest.hexdigest()))
                    continue
                fresh.chmod(0o644 & ~_umask())
                os.replace(fresh, self.object(entry))  # fsynced with the whole tree, once
                self.verified.add(entry.sha256)
        got.unlink()
        note.unlink()
        return wrong


@contextlib.contextmanager
def opened(output_dir: Path) -> Iterator[Landing]:
    """Hold the landing folder of an output folder; Interrupted while another process holds it."""
    landing = Landing(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    descriptor = _hold(landing.folder)
    try:
        note = {"schema": 1, **process.identity()}
        write_json(landing.folder / "holder.json", note)
        landing.objects.mkdir(exist_ok=True)
        landing.parts.mkdir(exist_ok=True)
        landing.split_batch()
        yield landing
    finally:
        with contextlib.suppress(OSError):
            (landing.folder / "holder.json").unlink()
        os.close(descriptor)


def _hold(folder: Path) -> int:
    """The descriptor that holds the folder; the lock ends with it."""
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except FileNotFoundError:  # its holder has just finished
            continue
        except OSError:
            raise InputError(f"{folder} is not a folder of collect's; move it away") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(descriptor)
            if os.path.lexists(folder) and folder.lstat().st_ino == status.st_ino:
                os.fchmod(descriptor, 0o700)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise Interrupted(
                f"another collect{_holder(folder)} is bringing files to {folder.parent}; wait for it or end it"
            ) from None
        os.close(descriptor)  # it was removed by the one that held it: make a new one


def _holder(folder: Path) -> str:
    with contextlib.suppress(StateError):
        note = read_json(folder / "holder.json")
        if note:
            return f" (process {note.get('pid')})"
    return ""


def collected_files(output_dir: Path) -> dict[str, str]:
    """{path: sha256} of what was published in an output folder before."""
    record: dict[str, Any] | None = None
    with contextlib.suppress(StateError):
        record = read_json(output_dir / ".collected.json")
    files = (record or {}).get("files")
    return dict(files) if isinstance(files, dict) else {}


def digest_of(path: Path) -> str:
    """sha256 of a file that is not reached through a link, read in pieces."""
    digest = hashlib.sha256()
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def is_regular(path: Path, size: int) -> bool:
    """Whether a regular file of exactly this size is there."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def pieces(stream: Any, size: int) -> Iterator[bytes]:
    """At most `size` bytes of a stream."""
    while size > 0 and (piece := stream.read(min(size, _PIECE_BYTES))):
        size -= len(piece)
        yield piece


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target, follow_symlinks=False)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
