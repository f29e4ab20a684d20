"""What a host says it has: one line `sha256  bytes  path` for each file, sorted. Both sides read it here. No torch.

The listing comes from a host that is not trusted. Its grammar is strict (what is written again must be the same
bytes), its names are those of our own tree, no two of them meet on a file system that folds upper and lower
case, and what it promises is capped before a byte of it is fetched. The sha256 of the text is the export's id.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainer.errors import Interrupted

NAME = re.compile(r"(adapter|logs|state|training_sync)(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
_LINE = re.compile(r"([0-9a-f]{64})  (0|[1-9][0-9]{0,15})  ([A-Za-z0-9_./-]{1,512})")
MOST_LISTING_BYTES = 16 << 20  # some 100,000 files
MOST_FILES = 50_000
# What this side parses (states, reports, issues) is text that a training of any size keeps far below this.
MOST_RECORD_BYTES = 32 << 20
_RECORD = re.compile(r"state/[^/]+\.json|adapter/[^/]+/[^/]+\.json|logs/issues\.jsonl")
_NAME_BYTES = 255


@dataclass(frozen=True)
class Entry:
    """One listed file: its path below outputs/, its size in bytes and its sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Caps:
    """How many bytes one file and all files together may have."""

    file_bytes: int
    total_bytes: int


def render(entries: Iterable[Entry]) -> str:
    """The listing of these files."""
    return "".join(f"{e.sha256}  {e.size}  {e.path}\n" for e in sorted(entries, key=lambda e: e.path))


def id_of(text: bytes) -> str:
    """The id of an export: sha256 of its listing."""
    return hashlib.sha256(text).hexdigest()


def parse(content: bytes, caps: Caps) -> list[Entry]:
    """The files that a host's listing names, in its order; Interrupted for anything that we would not write."""
    text = content.decode("ascii", "replace")
    entries: list[Entry] = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        match = _LINE.fullmatch(line)
        if not match or not _is_plain(match[3]):
            raise Interrupted(f"line {number} of the host's listing is {line[:80]!r}; nothing was taken over")
        entries.append(Entry(match[3], int(match[2]), match[1]))
        if number > MOST_FILES:
            raise Interrupted(f"the host lists more than {MOST_FILES} files; nothing was taken over")
    if render(entries) != text:
        raise Interrupted("the host's listing is not as it was written; nothing was taken over")
    _refuse_clashes(entries)
    _refuse_sizes(entries, caps)
    return entries


def parse_own(text: str) -> list[Entry]:
    """The files of a listing that this host has written itself."""
    rows = (line.split("  ") for line in text.splitlines())
    return [Entry(path, int(size), sha256) for sha256, size, path in rows]


def _is_plain(path: str) -> bool:
    return bool(NAME.fullmatch(path)) and all(len(part) <= _NAME_BYTES for part in path.split("/"))


def _refuse_clashes(entries: Sequence[Entry]) -> None:
    """No file twice and none that is another one's folder, also where `A` and `a` are one name."""
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for entry in entries:
        clash = files.get(entry.path.lower())
        files[entry.path.lower()] = entry.path
        for parent in list(PurePosixPath(entry.path).parents)[:-1]:
            name = parent.as_posix()
            other = folders.setdefault(name.lower(), name)
            clash = clash or (other if other != name else None)
        if clash:
            raise Interrupted(f"the host lists {entry.path!r} beside {clash!r}; nothing was taken over")
    for name in sorted(files.keys() & folders.keys()):
        raise Interrupted(f"the host lists {files[name]!r} as a file and as a folder; nothing was taken over")


def _refuse_sizes(entries: Sequence[Entry], caps: Caps) -> None:
    for entry in entries:
        cap = min(caps.file_bytes, MOST_RECORD_BYTES) if _RECORD.fullmatch(entry.path) else caps.file_bytes
        if entry.size > cap:
            known = "" if cap != caps.file_bytes else "; raise artifacts_max_file_bytes if it is really wanted"
            raise Interrupted(f"the host lists {entry.path!r} with {mib(entry.size)}, more than {mib(cap)}{known}")
    total = sum(entry.size for entry in entries)
    if total > caps.total_bytes:
        raise Interrupted(
            f"the host lists {mib(total)} in {len(entries)} files, more than {mib(caps.total_bytes)}; "
            "raise artifacts_max_total_bytes if they are really wanted"
        )


def mib(size: int) -> str:
    """1 << 30 -> "1,024 MiB"; below one MiB in bytes."""
    return f"{size / (1 << 20):,.0f} MiB" if size >= 1 << 20 else f"{size:,} bytes"
