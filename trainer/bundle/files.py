"""The files of a bundle as they lie on a disk: regular ones, opened once, read whole. Python 3.8, no torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import Callable, Iterator

from trainer.bundle import manifest, names
from trainer.errors import HostUnfit, InputError

ENDINGS = (".tar.gz", ".tgz")
READ_BYTES = 1 << 20


class Bundle:
    """The names of a bundle and of what lies beside it."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.shown = path, path.name, names.shown(os.fsencode(path.name))
        endings = [ending for ending in ENDINGS if self.name.endswith(ending) and self.name != ending]
        if not endings:
            raise InputError(f"the file {self.shown} is no bundle by its name, which ends in .tar.gz; give that file")
        self.outer = path.with_name(f"{self.name}.sha256")
        self.manifest = path.with_name(f"{self.name[: -len(endings[0])]}.{manifest.NAME}")


class Reading:
    """One reading of an open file from its start, hashed on the way."""

    def __init__(self, descriptor: int, shown: str, progress: Callable[[int, int], None], before: int) -> None:
        self._descriptor, self._shown, self._progress = descriptor, shown, progress
        self._sha256 = hashlib.sha256()
        self._state = self._look()
        self._at, self._before, self._total = 0, before * self._state[0], 2 * self._state[0]

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end."""
        piece = _read(self._descriptor, size, self._at, self._shown)
        self._sha256.update(piece)
        self._at += len(piece)
        self._progress(self._before + self._at, self._total)
        return piece

    def is_unchanged(self) -> bool:
        """Whether the file looks as it did when this reading began."""
        return self._look() == self._state

    def _look(self) -> tuple[int, int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def hexdigest(self) -> str:
        """The sha256 of what was read so far."""
        return self._sha256.hexdigest()


@contextlib.contextmanager
def opened(path: Path, shown: str) -> Iterator[int]:
    """A descriptor of the regular file `path`, called `shown`; what acts when it is opened (FIFO, device) is not."""
    try:
        descriptor = -1
        if stat.S_ISREG(os.stat(path).st_mode):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputError(
            f"there is no file {shown} in {names.shown(os.fsencode(path.parent))}; copy it there"
        ) from None
    except OSError as problem:
        raise InputError(f"{shown} cannot be opened ({problem.strerror}); correct its permissions") from None
    try:
        if descriptor < 0 or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{shown} is no regular file; give the file itself")
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _read(descriptor: int, size: int, at: int, shown: str) -> bytes:
    try:
        return os.pread(descriptor, size, at)
    except OSError as problem:
        raise HostUnfit(f"{shown} cannot be read ({problem.strerror}); look at the disk it lies on") from None


def beside(path: Path, most_bytes: int) -> bytes | None:
    """The content of a small file beside the bundle, None where nothing has its name."""
    if not os.path.lexists(path):
        return None
    shown = names.shown(os.fsencode(path.name))
    found = b""
    with opened(path, shown) as descriptor:
        while len(found) <= most_bytes:
            piece = _read(descriptor, READ_BYTES, len(found), shown)
            if not piece:
                return found
            found += piece
    raise InputError(f"{shown} has more than {most_bytes} bytes, so it is no listing; bring the one of the bundle")


def variants(path: Path) -> list[str]:
    """What lies beside the bundle with the name of `path` but for case; none where the folder cannot be listed."""
    try:
        listed = os.listdir(path.parent)
    except OSError:
        return []
    return sorted(name for name in listed if name != path.name and names.form(name) == names.form(path.name))
