"""The files of a bundle under their names: written beside, durable, renamed, the checksum last. No torch, controller
only."""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainer import errors
from trainer.errors import InputError
from trainer.state import sync_file, sync_folder

MAKING = ".making-"  # folders of builds that run, and of those that were killed
ENDINGS = (".tar.gz", ".tgz")


def stem_of(output: Path) -> str:
    """The name without .tar.gz, to which the names of the other files are made."""
    for ending in ENDINGS:
        if output.name.endswith(ending) and output.name != ending:
            return output.name[: -len(ending)]
    raise InputError(f"the output {str(output)!r} does not end in .tar.gz; name the bundle NAME.tar.gz")


def names_of(output: Path) -> dict[str, str]:
    """The names of a bundle's files by what they are."""
    stem = stem_of(output)
    return {
        "bundle": output.name,
        "manifest": f"{stem}.SYNC_MANIFEST.sha256",
        "application": f"{stem}.apply.pyz",
        "sha256": f"{output.name}.sha256",
    }


def refused_by_disk(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Around what is written to the output's folder: what the disk says becomes HostUnfit."""
    action = "make room there, correct its permissions, or name another file with --output"
    return errors.refused_by_disk(f"the bundle cannot be written to {folder}", action)


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A folder of this build beside the output, removed at the end; what killed builds left there goes first."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    path, descriptor = _held_folder(folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def place(made: Path, output: Path) -> bool:
    """Give the four files in `made` (named by `names_of`) their places; False when the same ones lie there already.

    Who is killed here leaves the old set, or one without a checksum, or one whose checksum is the new bundle's: never
    one that is accepted and mixed. Two builds into one folder do this one after the other.
    """
    folder, wanted = output.parent, names_of(output)
    for name in wanted.values():
        sync_file(made / name)
    with _alone(folder):
        if all(_is_same(made / name, folder / name) for name in wanted.values()):
            return False
        (folder / wanted["sha256"]).unlink(missing_ok=True)
        sync_folder(folder)
        for name in wanted.values():  # the checksum is the last of them
            if name == wanted["sha256"]:
                sync_folder(folder)
            os.replace(made / name, folder / name)
        sync_folder(folder)
    return True


def _is_same(made: Path, placed: Path) -> bool:
    with contextlib.suppress(OSError):
        return placed.is_file() and filecmp.cmp(made, placed, shallow=False)
    return False


def check_places(output: Path) -> None:
    """InputError for a folder that is not there, and for folders where the files shall be."""
    if not output.parent.is_dir():
        raise InputError(f"the folder {str(output.parent)!r} of the output is not there; make it or name another file")
    for name in names_of(output).values():
        if (output.parent / name).is_dir():
            raise InputError(f"{str(output.parent / name)!r} is a folder; move it away or name another output")


def _held_folder(folder: Path) -> tuple[Path, int]:
    """A new folder with a lock that ends with its owner."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=MAKING, dir=folder))
        with contextlib.suppress(FileNotFoundError):  # somebody swept it before it was locked
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{MAKING}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
