"""The source tree of a checkout as it goes to a host: its files, their common id, one archive. No torch.

A tree is what git tracks and what it neither tracks nor ignores, so that an edit that is not committed yet
is trained with, and its id says so.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from trainer import content
from trainer.errors import InputError

LIMIT_BYTES = 512 << 20  # it is sent at one go, from memory


def listed_files(root: Path) -> list[str]:
    """The paths of the tree, sorted; InputError when they cannot be listed.

    A tree without a repository (a downloaded archive) is listed by git all the same, with what its .gitignore says.
    """
    if (root / ".git").exists() or _is_inside_a_checkout(root):
        found = _git_list(root, ["--cached", "--others"])
    else:
        with tempfile.TemporaryDirectory(prefix="stagegate_") as empty:
            _git("init", "--quiet", "--bare", empty)
            found = _git_list(root, ["--others"], f"--git-dir={empty}", f"--work-tree={root}")
    names = sorted({name for name in found.split("\0") if name} - {content.RECORD})
    odd = [name for name in names if not name.isascii() and os.fsencode(name).decode("utf-8", "replace") != name]
    if odd:
        raise InputError(f"the file name {odd[0]!r} in the source tree is not UTF-8; rename it")
    present = [name for name in names if os.path.lexists(root / name)]  # a deleted file is still in git's index
    if not present:
        raise InputError(f"git knows no file in {str(root)!r}; use a clone of the repository")
    return present


def _git(*words: str) -> str:
    """What git prints; InputError with its own words when it fails or is not there."""
    try:
        return subprocess.run(["git", *words], capture_output=True, check=True).stdout.decode(
            "utf-8", "surrogateescape"
        )
    except FileNotFoundError:
        raise InputError("git is not installed here, and it names the files of the source tree; install git") from None
    except subprocess.CalledProcessError as problem:
        detail = problem.stderr.decode(errors="replace").strip().splitlines() or [
            f"git ended with {problem.returncode}"
        ]
        raise InputError(
            f"the source tree cannot be listed by git ({detail[0]}); use a clone of the repository"
        ) from None


def _git_list(root: Path, kinds: list[str], *options: str) -> str:
    return _git("-C", str(root), *options, "ls-files", "-z", *kinds, "--exclude-standard")


def _is_inside_a_checkout(root: Path) -> bool:
    try:
        return _git("-C", str(root), "rev-parse", "--is-inside-work-tree").strip() == "true"
    except InputError as problem:
        if "not a git repository" in str(problem):
            return False
        raise


def describe(root: Path) -> dict[str, Any]:
    """{"source_id", "files", "bytes"} of a checkout; InputError when it is larger than a source tree can be."""
    names = listed_files(root)
    return _description(root, names, content.entries(root, names))


def _description(root: Path, names: list[str], found: list[content.Entry]) -> dict[str, Any]:
    sizes = {name: (root / name).stat().st_size for name in names}
    total = sum(sizes.values())
    if total > LIMIT_BYTES:
        largest = max(names, key=sizes.__getitem__)
        raise InputError(
            f"the source tree holds {total >> 20} MiB, the most is {LIMIT_BYTES >> 20} (the largest file is "
            f"{largest!r} with {sizes[largest] >> 20}); have git ignore what is no source, or keep it outside"
        )
    return {"source_id": content.source_id(found), "files": len(names), "bytes": total}


def pack(root: Path, stream: BinaryIO) -> dict[str, Any]:
    """Write a checkout to `stream` as a tar.gz that depends on its content only; returns its description."""
    names = listed_files(root)
    before = content.entries(root, names)
    description = _description(root, names, before)
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, executable, _ in before:
            info = tarfile.TarInfo(name)
            info.size = (root / name).stat().st_size
            info.mode = 0o755 if executable else 0o644
            with (root / name).open("rb") as stream_in:
                tar.addfile(info, stream_in)
    if listed_files(root) != names or content.entries(root, names) != before:
        raise InputError("the source tree changed while it was packed; run it again")
    return description
