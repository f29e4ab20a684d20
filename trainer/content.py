"""A source tree on a host: its entries, their common id, the record of a release, and what became of it. No torch.

This module and what it imports run on Python 3.8 with the standard library alone: a bundle carries them along.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, Tuple

from trainer import digest
from trainer.errors import InputError
from trainer.state import SCHEMA, StateError, read_json, write_json

ID_LENGTH = 16
RECORD = ".source.json"  # what a release says of itself; not part of the tree
CACHE = "__pycache__"
IMPORTABLE = (".py", ".pyc", ".so")
AGAIN = "run playbooks/provision.yml, which puts the right code there and keeps the edited one beside it"
Entry = Tuple[str, bool, str]  # path below the root, executable, sha256


class Origin(NamedTuple):
    """Where a release comes from: its commit ("": unknown or edited), when that was made (seconds since 1970; 0:
    unknown), and the sha256 of the bundle that brought it ("": it came another way)."""

    commit: str = ""
    made_at: int = 0
    bundle_sha256: str = ""


def walked_files(root: Path) -> list[str]:
    """The paths below an unpacked tree, sorted; byte code and the release's own record are not part of it.

    A link to a folder counts as one path: what lies behind it is not looked at.
    """
    found = []
    for folder, below, files in os.walk(root, onerror=_raise):
        inside = os.path.relpath(folder, root)
        links = [name for name in below if os.path.islink(os.path.join(folder, name))]
        found += [name if inside == "." else f"{inside}/{name}" for name in files + links]
        below[:] = [name for name in below if name != CACHE]
    return sorted(name for name in found if is_part(name))


def is_part(name: str) -> bool:
    """Whether a path below a tree is part of it: byte code and the release's own record are not."""
    return CACHE not in name.split("/") and name != RECORD


def _raise(problem: OSError) -> None:
    raise problem


def entries(root: Path, names: list[str]) -> list[Entry]:
    """Path, mode and hash of each file; InputError for anything that is not a regular file."""
    odd = [name for name in names if (root / name).is_symlink() or not (root / name).is_file()]
    if odd:
        raise InputError(f"{odd[0]!r} in the source tree is not a regular file; remove it or have git ignore it")
    return [(name, os.access(root / name, os.X_OK), digest.of_file(root / name)) for name in names]


def source_id(found: list[Entry]) -> str:
    """The id of a tree: 16 hex digits of the sha256 over all its entries."""
    return digest.of_value(found)[:ID_LENGTH]


def verify(root: Path, expected: str) -> str:
    """The id of an unpacked tree; InputError when it is not the expected one (empty: any)."""
    found = source_id(entries(root, walked_files(root)))
    if expected and found != expected:
        raise InputError(f"the unpacked source tree is {found}, expected {expected}; pack and send it again")
    return found


def write_record(root: Path, shipped: list[Entry], origin: Origin) -> None:
    """Describe a release in a file of its own: its id, where it comes from, its entries."""
    write_json(
        root / RECORD,
        {"schema": SCHEMA, "source_id": source_id(shipped), **origin._asdict(), "entries": shipped},
    )


def read_record(root: Path) -> dict[str, Any] | None:
    """The record of a release, None where there is none or one that does not describe what its id says."""
    try:
        record = None if (root / RECORD).is_symlink() else read_json(root / RECORD)
        if record is None or source_id(record["entries"]) != record["source_id"]:
            return None
        record["entries"] = [(str(name), bool(mode), str(sha256)) for name, mode, sha256 in record["entries"]]
        return record
    except (StateError, KeyError, TypeError, ValueError):
        return None


def differences(root: Path, shipped: list[Entry]) -> tuple[list[str], list[str]]:
    """(changed or missing files, additional files) of a release against the entries that it came with."""
    changed, present = [], set(walked_files(root))  # what lies behind a link is not in it
    for name, executable, sha256 in shipped:
        path = root / name
        regular = name in present and path.is_file() and not path.is_symlink()
        if not regular or os.access(path, os.X_OK) != executable or digest.of_file(path) != sha256:
            changed.append(name)
    return changed, sorted(present - {name for name, _, _ in shipped})


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
