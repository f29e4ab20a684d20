"""The source tree as it goes to a host: its files, their common id, one archive, and what became of it. No torch.

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

from trainer import fingerprint
from trainer.errors import InputError
from trainer.state import SCHEMA, StateError, read_json, write_json

ID_LENGTH = 16
LIMIT_BYTES = 512 << 20  # it is sent at one go, from memory
RECORD = ".source.json"  # what a release says of itself; not part of the tree
IMPORTABLE = (".py", ".pyc", ".so")
AGAIN = "run playbooks/provision.yml, which puts the right code there and keeps the edited one beside it"
Entry = tuple[str, bool, str]  # path below the root, executable, sha256


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
    names = sorted({name for name in found.split("\0") if name} - {RECORD})
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


def walked_files(root: Path) -> list[str]:
    """The paths below an unpacked tree, sorted; byte code and the release's own record are not part of it."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.as_posix() for path in paths if "__pycache__" not in path.parts and str(path) != RECORD)


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
    """{"source_id", "files", "bytes"} of a checkout; InputError when it is larger than a source tree can be."""
    names = listed_files(root)
    return _description(root, names, entries(root, names))


def _description(root: Path, names: list[str], found: list[Entry]) -> dict[str, Any]:
    sizes = {name: (root / name).stat().st_size for name in names}
    total = sum(sizes.values())
    if total > LIMIT_BYTES:
        largest = max(names, key=sizes.__getitem__)
        raise InputError(
            f"the source tree holds {total >> 20} MiB, the most is {LIMIT_BYTES >> 20} (the largest file is "
            f"{largest!r} with {sizes[largest] >> 20}); have git ignore what is no source, or keep it outside"
        )
    return {"source_id": source_id(found), "files": len(names), "bytes": total}


def pack(root: Path, stream: BinaryIO) -> dict[str, Any]:
    """Write a checkout to `stream` as a tar.gz that depends on its content only; returns its description."""
    names = listed_files(root)
    before = entries(root, names)
    description = _description(root, names, before)
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, executable, _ in before:
            info = tarfile.TarInfo(name)
            info.size = (root / name).stat().st_size
            info.mode = 0o755 if executable else 0o644
            with (root / name).open("rb") as content:
                tar.addfile(info, content)
    if listed_files(root) != names or entries(root, names) != before:
        raise InputError("the source tree changed while it was packed; run it again")
    return description


def verify(root: Path, expected: str) -> str:
    """The id of an unpacked tree; InputError when it is not the expected one (empty: any)."""
    found = source_id(entries(root, walked_files(root)))
    if expected and found != expected:
        raise InputError(f"the unpacked source tree is {found}, expected {expected}; pack and send it again")
    return found


def write_record(root: Path, shipped: list[Entry], commit: str) -> None:
    """Describe a release in a file of its own: its id, its commit ("" when unknown), its entries."""
    record = {"schema": SCHEMA, "source_id": source_id(shipped), "commit": commit, "entries": shipped}
    write_json(root / RECORD, record)


def read_record(root: Path) -> dict[str, Any] | None:
    """The record of a release, None where there is none or one that does not describe what its id says."""
    try:
        record = read_json(root / RECORD)
        if record is None or source_id(record["entries"]) != record["source_id"]:
            return None
        record["entries"] = [(str(name), bool(mode), str(digest)) for name, mode, digest in record["entries"]]
        return record
    except (StateError, KeyError, TypeError, ValueError):
        return None


def differences(root: Path, shipped: list[Entry]) -> tuple[list[str], list[str]]:
    """(changed or missing files, additional files) of a release against the entries that it came with."""
    changed = []
    for name, executable, digest in shipped:
        path = root / name
        regular = path.is_file() and not path.is_symlink()
        if not regular or os.access(path, os.X_OK) != executable or fingerprint.of_file(path) != digest:
            changed.append(name)
    return changed, sorted(set(walked_files(root)) - {name for name, _, _ in shipped})


def check_release(root: Path, expected: str) -> dict[str, Any]:
    """The record of the release in `root`; InputError when its code is not what the id `expected` names.

    Every shipped file must be as it came, the data as well. An additional file counts when Python could import it;
    others (data that was put there) are the user's, and what is trained on is hashed for each stage on its own.
    """
    root = root.resolve()
    record = read_record(root)
    if record is None or record["source_id"] != expected:
        held = f"is the source {record['source_id']}" if record else "has no readable record of its source"
        raise InputError(f"the code in {root} {held}, asked for is {expected}; {AGAIN}")
    changed, more = differences(root, record["entries"])
    found = [*changed, *(name for name in more if name.endswith(IMPORTABLE))]
    if found:
        names = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise InputError(f"the code in {root} is not the source {expected} any more ({names}); {AGAIN}")
    return record
