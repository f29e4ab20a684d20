"""Which commit a source tree is of, and when that was made, asked of git. No torch, controller only."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from trainer.bundle import reading
from trainer.bundle.names import shown
from trainer.bundle.reading import Stamp
from trainer.bundle.tarball import MOST_OCTAL
from trainer.errors import InputError

UNKNOWN_AGE = (
    "the age of this bundle is not known, so an apply cannot tell it from an older one; build it from a clone or set "
    "SOURCE_DATE_EPOCH"
)


class Provenance(NamedTuple):
    """The commit that the files are of ("": unknown or edited), the age in seconds since 1970 (0: unknown), notes."""

    commit: str
    made_at: int
    lines: list[str]


def of(source: Path, files: Mapping[str, Stamp]) -> Provenance:
    """What git knows of these files. A tree without git, or within another one's repository, is of no commit."""
    head = _git(source, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").decode().strip()
    if not head or _git(source, "rev-parse", "--show-prefix").strip():
        head = ""
    made_at = _epoch(os.environ.get("SOURCE_DATE_EPOCH", ""))
    if made_at is None:
        made_at = _committed_at(source, head) if head else 0
    lines = [] if made_at else [UNKNOWN_AGE]
    if head and (edited := _edited(source, head, files)):
        lines.append(f"the bundle names no commit: {edited} is not as it is in {head[:12]}")
        head = ""
    return Provenance(head if re.fullmatch("[0-9a-f]{40}", head) else "", made_at, lines)


def _git(source: Path, *words: str) -> bytes:
    """What git prints, nothing when it fails or is not there.

    Plumbing only, which runs nothing that a repository's configuration names; so it may belong to somebody else, and
    a build by another user gives the same bundle.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "safe.directory=*", "--no-replace-objects", "-C", str(source), *words]
    try:
        return subprocess.run(command, env=kept, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""


def _epoch(text: str) -> int | None:
    """SOURCE_DATE_EPOCH (reproducible-builds.org), None where it is not set."""
    if not text.strip():
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text.strip()) or int(text) > MOST_OCTAL:
        raise InputError(f"SOURCE_DATE_EPOCH is {text!r}; give seconds since 1970, 0 to {MOST_OCTAL}, or unset it")
    return int(text)


def _committed_at(source: Path, head: str) -> int:
    match = re.search(rb"^committer .* (\d+) [+-]\d{4}$", _git(source, "cat-file", "commit", head), re.MULTILINE)
    return min(int(match[1]), MOST_OCTAL) if match else 0


def _edited(source: Path, head: str, files: Mapping[str, Stamp]) -> str:
    """The first file that is not as the commit has it, empty when all are. Blobs are hashed as git does it."""
    known = _tree(_git(source, "ls-tree", "-r", "-z", head))
    wanted = {name: ("100755" if stamp.executable else "100644") for name, stamp in files.items()}
    for name, mode in wanted.items():
        if known.get(name, ("", ""))[0] != mode:
            return shown(name)
    for name, stamp in files.items():
        digest = hashlib.sha1(b"blob %d\0" % stamp.size_bytes, usedforsecurity=False)
        for piece in reading.pieces(source, name, stamp):
            digest.update(piece)
        if digest.hexdigest() != known[name][1]:
            return shown(name)
    return ""


def _tree(listed: bytes) -> dict[str, tuple[str, str]]:
    """{name: (mode, blob)} of what `git ls-tree -r -z` prints."""
    found = {}
    for row in listed.split(b"\0"):
        head, _, name = row.partition(b"\t")
        if name:
            mode, _, blob = head.decode().split(" ")
            found[name.decode("utf-8", "surrogateescape")] = (mode, blob)
    return found
