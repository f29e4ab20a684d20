"""The source tree as it goes to a host: its files, their common id, one archive. No torch.

A tree is what git tracks and what it neither tracks nor ignores, so that an edit that is not committed yet
is trained with, and its id says so.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from trainer import fingerprint
from trainer.errors import InputError

ID_LENGTH = 16
Entry = tuple[str, bool, str]  # path below the root, executable, sha256


def listed_files(root: Path) -> list[str]:
    """The paths of the tree, sorted; InputError when `root` is no git checkout."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as problem:
        detail = getattr(problem, "stderr", b"") or str(problem).encode()
        raise InputError(
            f"the source tree {str(root)!r} cannot be listed by git ({detail.decode(errors='replace').strip()}); "
            "use a clone of the repository"
        ) from None
    names = sorted(set(found.decode("utf-8", "surrogateescape").split("\0")) - {""})
    odd = [name for name in names if not name.isascii() and os.fsencode(name).decode("utf-8", "replace") != name]
    if odd:
        raise InputError(f"the file name {odd[0]!r} in the source tree is not UTF-8; rename it")
    if not names:
        raise InputError(f"git knows no file in {str(root)!r}; use a clone of the repository")
    return [name for name in names if os.path.lexists(root / name)]  # deleted, but not yet in git


def walked_files(root: Path) -> list[str]:
    """The paths below an unpacked tree, sorted; byte code is not part of it."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.as_posix() for path in paths if "__pycache__" not in path.parts)


def entries(root: Path, names: list[str]) -> list[Entry]:
    """Path, mode and hash of each file; InputError for anything that is not a regular file."""
    odd = [name for name in names if (root / name).is_symlink() or not (root / name).is_file()]
    if odd:
        raise InputError(f"{odd[0]!r} in the source tree is not a regular file; remove it or have git ignore it")
    return [(name, os.access(root / name, os.X_OK), fingerprint.of_file(root / name)) for name in names]


def source_id(found: list[Entry]) -> str:
    """The id of a tree: 16 hex digits of the sha256 over all its entries."""
    return fingerprint.of_value(found)[:ID_LENGTH]


def describe(root: Path) -> dict[str, Any]:
    """{"source_id", "files", "bytes"} of a checkout."""
    names = listed_files(root)
    size = sum((root / name).stat().st_size for name in names)
    return {"source_id": source_id(entries(root, names)), "files": len(names), "bytes": size}


def pack(root: Path, archive: Path) -> dict[str, Any]:
    """Write a checkout as a tar.gz that depends on its content only; returns its description and sha256."""
    names = listed_files(root)
    before = entries(root, names)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with (
        archive.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, executable, _ in before:
            info = tarfile.TarInfo(name)
            info.size = (root / name).stat().st_size
            info.mode = 0o755 if executable else 0o644
            with (root / name).open("rb") as stream:
                tar.addfile(info, stream)
    if entries(root, names) != before:
        archive.unlink()
        raise InputError("the source tree changed while it was packed; run it again")
    size = sum((root / name).stat().st_size for name in names)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return {
        "source_id": source_id(before),
        "files": len(names),
        "bytes": size,
        "archive": str(archive),
        "sha256": digest,
    }


def verify(root: Path, expected: str) -> str:
    """The id of an unpacked tree; InputError when it is not the expected one."""
    found = source_id(entries(root, walked_files(root)))
    if found != expected:
        raise InputError(f"the unpacked source tree is {found}, expected {expected}; pack and send it again")
    return found
