"""A folder of our own for work that is under way, held by a lock as long as its owner lives.

What a killed owner left is swept by the next one. Standard library alone, Python 3.8. No torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from trainer.errors import HostUnfit

LOCK = "lock"
TRIES = 5
FOLDER_MODE = 0o755


class Held:
    """A fresh folder `<prefix>XXXXXXXX` of mode 0700 below `parent`, which nobody sweeps while its owner lives.

    `wanted`: another folder that is made with it where it is missing.
    """

    def __init__(self, parent: Path, prefix: str, wanted: Path | None = None) -> None:
        self.parent, self.prefix, self.wanted = parent, prefix, wanted or parent
        self.path = parent
        self._made: list[Path] = []  # folders above it that were not there before
        self._lock = -1

    def make(self) -> Path:
        """Make it, and the wanted folder and those above it where they are missing."""
        above = [self.wanted, *self.wanted.parents]  # `parent` is one of them, or there already
        for folder in reversed([path for path in above if not path.is_dir()]):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(FOLDER_MODE)
                self._made.append(folder)
        for _ in range(TRIES):  # a sweeper may be quicker than our lock
            self.path = self.parent / (self.prefix + secrets.token_hex(4))
            with contextlib.suppress(FileExistsError, FileNotFoundError, BlockingIOError):
                os.mkdir(self.path, 0o700)
                try:
                    self._lock = _locked(self.path / LOCK, os.O_EXCL)
                except (FileExistsError, FileNotFoundError, BlockingIOError):
                    raise
                except BaseException:
                    removed(self.path)
                    self.remove(keep_above=False)
                    raise
                return self.path
        raise HostUnfit(f"no folder of our own can be made in {self.parent}: others remove it; run it again")

    def remove(self, keep_above: bool) -> bool:
        """Remove what is left of it, and the empty folders above it that it made unless they are wanted now."""
        gone = self._lock < 0 or removed(self.path)
        if not keep_above:
            for folder in reversed(self._made):
                with contextlib.suppress(OSError):
                    folder.rmdir()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1
        return gone

    def __enter__(self) -> Held:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.remove(keep_above=kind is None)


def _locked(path: Path, flags: int) -> int:
    """An open lock file that we hold. BlockingIOError when another one does, FileNotFoundError when it is gone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino != os.fstat(descriptor).st_ino:
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def sweep(parent: Path, prefix: str) -> None:
    """Remove the folders of this kind whose owners are gone."""
    if parent.is_symlink() or not parent.is_dir():
        return
    for path in parent.glob(f"{prefix}*"):
        if path.is_symlink() or not path.is_dir():
            continue
        with contextlib.suppress(OSError):  # somebody's who lives, or whom we may not touch
            descriptor = _locked(path / LOCK, 0)
            try:
                removed(path)
            finally:
                os.close(descriptor)


def removed(folder: Path) -> bool:
    """Remove a folder of ours with all that is in it; False when the disk refuses that more than once."""
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return True
    return False
