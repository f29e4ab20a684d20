"""Where an apply works: the folders that it may write in, looked at before anything is done. Python 3.8. No torch."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Iterator

from trainer import release
from trainer.bundle.backup import Backups
from trainer.bundle.held import sweep
from trainer.bundle.staging import APPLYING
from trainer.errors import InputError
from trainer.state import Layout


class Places:
    """The folders that a command writes in; InputError when something else was put in their place."""

    def __init__(self, layout: Layout, staging_dir: Path | None, backup_root: Path | None) -> None:
        self.layout, self.releases = layout, release.releases(layout)
        if layout.root.exists() and not layout.root.is_dir():
            raise InputError(f"the project root {layout.root} is no folder; name another with --project-root")
        if os.path.lexists(self.releases) and not stat.S_ISDIR(os.lstat(self.releases).st_mode):
            raise InputError(f"{self.releases} is no folder of its own, so it was not made here; move it away")
        lock = self.releases / ".lock"
        if os.path.lexists(lock) and not stat.S_ISREG(os.lstat(lock).st_mode):
            raise InputError(f"{lock} is no plain file, so it was not made here; move it away")
        release.current(layout)
        self.backups = Backups(layout, backup_root)
        self.staging = self.releases if staging_dir is None else self._checked_staging(Path(staging_dir))

    def _checked_staging(self, named: Path) -> Path:
        if named.is_symlink() or not named.is_dir():
            raise InputError(f"the staging folder {named} is no folder of its own; make it, or leave --staging-dir out")
        path = named.resolve()
        if self.releases in path.parents:
            raise InputError(f"the staging folder {named} lies in a release; name another, or leave --staging-dir out")
        beside = next(folder for folder in (self.releases, *self.releases.parents) if folder.is_dir())
        if os.stat(path).st_dev != os.stat(beside).st_dev:
            raise InputError(
                f"the staging folder {named} lies on another file system than {self.releases}, so there could be no "
                "switch at once; name one on the same, or leave --staging-dir out"
            )
        return path

    def sweep(self) -> None:
        """Remove what killed commands left."""
        for folder in {self.releases, self.staging}:
            sweep(folder, APPLYING)
        self.backups.sweep()
        if any(self.releases.glob(f"{release.REMOVED}*")) or any(self.layout.root.glob(".code.*")):
            with release.alone(self.layout):
                release.remove_leftovers(self.layout)


@contextlib.contextmanager
def settled(layout: Layout) -> Iterator[None]:
    """Modes as we say, whatever the umask; what the disk says is HostUnfit."""
    before = os.umask(0o022)
    try:
        with release.refused_by_disk(layout):
            yield
    finally:
        os.umask(before)
