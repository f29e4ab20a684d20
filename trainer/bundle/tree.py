"""The files of a source tree that a whitelist selects, with everything that speaks against packing them. No torch,
controller only.

Names are bytes until they are checked, so that the locale of who builds makes no difference.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import List, NamedTuple, Tuple

from trainer.arguments import suggestion
from trainer.bundle import exclusions, manifest, names
from trainer.bundle.reader import Caps
from trainer.bundle.reading import Stamp, path_of, raw
from trainer.bundle.whitelist import Entry, States, Whitelist
from trainer.errors import InputError

OWN_NAMES = "sync_manifest."
WHERE = "the source tree"
Active = List[Tuple[Entry, States]]  # entries that can still match, with what they have matched so far
LINE_BYTES = 67  # of a line of the manifest beside its name
FRAME_BYTES = 3 * 1024  # of an archive for each file, at the most
ODD_KINDS = {
    stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


class Tree(NamedTuple):
    """The selected files in the order of their bytes, what is never packed ({name: what it is}), and all findings."""

    files: dict[str, Stamp]
    left_out: dict[str, str]
    findings: list[str]


def look(source: Path, whitelist: Whitelist, is_output: Callable[[str], bool], caps: Caps) -> Tree:
    """Walk the tree where an entry can match. `is_output`: whether a path is one that this very build writes."""
    walk = _Walk(source, whitelist, is_output)
    walk.run()
    names_found = sorted(walk.files, key=raw)
    files = {name: walk.files[name] for name in names_found}
    findings = walk.findings + _name_findings(names_found) + _size_findings(files, caps) + walk.unmatched()
    if not files and not findings:
        findings.append(f"the whitelist {whitelist.shown} selects no file of {source}; correct it")
    return Tree(files, dict(sorted(walk.left_out.items())), findings)


def changes(before: Tree, after: Tree) -> list[str]:
    """What became of the files between two looks, one sentence each."""
    found = list(after.findings)
    for name in sorted({*before.files, *after.files}):
        old, new = before.files.get(name), after.files.get(name)
        if old != new:
            found.append(f"{names.shown(name.encode('utf-8', 'surrogateescape'))} {_what_changed(old, new)}")
    return found


def _what_changed(old: Stamp | None, new: Stamp | None) -> str:
    if old is None or new is None:
        return "appeared" if old is None else "is gone"
    if (old.device, old.inode) != (new.device, new.inode):
        return "was replaced by another file"
    if old.size_bytes != new.size_bytes:
        verb = "grew" if new.size_bytes > old.size_bytes else "shrank"
        return f"{verb} from {old.size_bytes} to {new.size_bytes} bytes"
    return "was written to or changed its mode"


class _Walk:
    """One walk: top down, each folder in the order of its names."""

    def __init__(self, source: Path, whitelist: Whitelist, is_output: Callable[[str], bool]) -> None:
        self.source, self.whitelist, self.is_output = source, whitelist, is_output
        self.files: dict[str, Stamp] = {}
        self.left_out: dict[str, str] = {}
        self.findings: list[str] = []
        self._used: set[int] = set()  # lines of the whitelist

    def run(self) -> None:
        included = [entry for entry in self.whitelist.included if not self._names_what_is_never_packed(entry)]
        stack = [("", [(e, e.start()) for e in included], [(e, e.start()) for e in self.whitelist.left_out])]
        while stack:
            folder, active, leaving = stack.pop()
            try:
                with os.scandir(path_of(self.source, folder)) as found:
                    items = sorted(found, key=lambda item: item.name)
                for item in items:
                    below = self._take(item, folder, active, leaving)
                    if below:
                        stack.append(below)
            except OSError as problem:
                shown = names.shown(raw(folder or "."))
                self.findings.append(f"{shown} cannot be read ({problem.strerror}); correct that or leave it out")

    def _names_what_is_never_packed(self, entry: Entry) -> bool:
        kind = exclusions.kind_of_path(entry.literal.split("/")) if entry.literal else ""
        if kind:
            self._used.add(entry.line)
            self.findings.append(
                f"{self.whitelist.shown}, line {entry.line}: {entry.text!r} is {kind}, which is never in a bundle; "
                "take the line out"
            )
        return bool(kind)

    def _take(
        self, item: os.DirEntry[bytes], folder: str, before: Active, leaving: Active
    ) -> tuple[str, Active, Active] | None:
        """Note one file or folder; returns where to go on when it is a folder that may hold something."""
        component = item.name.decode("utf-8", "surrogateescape")
        name = folder + component
        active, leaving_now = _stepped(before, component), _stepped(leaving, component)
        if not active or self.is_output(name):
            return None
        is_folder, is_link = item.is_dir(follow_symlinks=False), item.is_symlink()
        if out := _matched(leaving_now, leaving, is_folder):
            self._used.update(entry.line for entry in out)
            return None
        # A folder counts as named when a part of an entry led there, and not only the ** before it.
        met = [e for e, states in before if e.reached(states, component)] if is_folder or is_link else []
        met += _matched(active, before, is_folder)
        if kind := exclusions.kind(component, is_folder=is_folder or is_link, at_top=not folder):
            if met:
                self.left_out[name + "/" * is_folder] = kind
            self._used.update(entry.line for entry in met)
            return None
        if is_folder:
            return name + "/", active, leaving_now
        if met:
            self._used.update(entry.line for entry in met)
            self._note(name, item.stat(follow_symlinks=False))
        return None

    def _note(self, name: str, found: os.stat_result) -> None:
        if stat.S_ISREG(found.st_mode) and not name.casefold().startswith(OWN_NAMES):
            self.files[name] = Stamp.of(found)
            return
        shown = names.shown(raw(name))
        if not stat.S_ISREG(found.st_mode):
            kind = ODD_KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
            self.findings.append(
                f"{shown} is {kind}, and a bundle holds regular files only; put the file itself there or leave it out"
            )
        else:
            self.findings.append(f"{shown} has the name of a manifest that a build makes itself; remove or rename it")

    def unmatched(self) -> list[str]:
        """A sentence for each entry that matched nothing. A glob that leaves nothing out is a precaution."""
        found = []
        for entry in (*self.whitelist.included, *self.whitelist.left_out):
            if entry.line in self._used or (entry.leaves_out and (not entry.literal or self._exists(entry))):
                continue
            hint = self._nearest(entry) or "; correct the line or take it out"
            found.append(f"{self.whitelist.shown}, line {entry.line}: {entry.text!r} matches nothing{hint}")
        return sorted(found, key=lambda text: int(text.partition(", line ")[2].partition(":")[0]))

    def _exists(self, entry: Entry) -> bool:
        return os.path.lexists(self.source / entry.literal)

    def _nearest(self, entry: Entry) -> str:
        """`; did you mean x?`: the likeliest name where the entry's path ends to exist."""
        folder = self.source
        for component in entry.literal.split("/"):
            if not os.path.lexists(folder / component):
                prefix = folder.relative_to(self.source)
                known = {(prefix / name).as_posix() for name in os.listdir(folder)} if folder.is_dir() else set()
                return suggestion((prefix / component).as_posix(), known)
            folder /= component
        return ""


def _stepped(active: Active, component: str) -> Active:
    moved = ((entry, entry.step(states, component)) for entry, states in active)
    return [(entry, states) for entry, states in moved if states]


def _matched(active: Active, before: Active, is_folder: bool) -> list[Entry]:
    """The entries that match what they were stepped to; `folder/` does not match a file of that name."""
    found = [entry for entry, states in active if entry.matches(states)]
    if is_folder or not any(entry.folder_only for entry in found):
        return found
    inside = {entry for entry, states in before if entry.matches(states)}
    return [entry for entry in found if not entry.folder_only or entry in inside]


def _name_findings(found: list[str]) -> list[str]:
    """What the format says about the names, one by one and together."""
    findings, together = [], names.Together()
    for name in (manifest.NAME, *found):
        try:
            together.add(names.checked(raw(name), WHERE), WHERE)
        except InputError as problem:
            findings.append(str(problem))
    return findings


def _size_findings(files: dict[str, Stamp], caps: Caps) -> list[str]:
    """What an apply would refuse as too much."""
    findings = []
    if len(files) + 1 > caps.files:
        findings.append(f"{len(files)} files are selected, a bundle holds at most {caps.files - 1}; leave some out")
    listed_bytes = sum(len(raw(name)) + LINE_BYTES for name in files)
    total = sum(stamp.size_bytes + FRAME_BYTES for stamp in files.values()) + listed_bytes
    if total > caps.bytes:
        largest = max(files, key=lambda name: files[name].size_bytes)
        findings.append(
            f"the selected files need {total} bytes, a bundle has at most {caps.bytes} (the largest is "
            f"{names.shown(raw(largest))}); leave some out"
        )
    if listed_bytes > caps.manifest_bytes:
        findings.append(
            f"the manifest would have {listed_bytes} bytes, the most is {caps.manifest_bytes}; shorten names or leave "
            "some files out"
        )
    return findings
