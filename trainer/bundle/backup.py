"""Backups of the tree in use, made before another one takes its place, and the way back to them.

`<backup root>/<UTC stamp>-<source id>/` holds BACKUP.json and tree/. Standard library alone, Python 3.8. No torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from trainer import content, errors, release
from trainer.bundle.held import Held, removed, sweep
from trainer.bundle.names import shown
from trainer.errors import InputError
from trainer.state import SCHEMA, Layout, now, sync_folder, write_json

FOLDER, RECORD, TREE = "backups", "BACKUP.json", "tree"
KEPT = 3
MAKING, REMOVED = ".making-", ".removed-"
STAMP = "%Y%m%dT%H%M%S%fZ"
NAME = re.compile(rf"(\d{{8}}T\d{{12}}Z)-[0-9a-f]{{{content.ID_LENGTH}}}")
# What says that a file cannot be linked there, only copied.
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Saved(NamedTuple):
    """A backup: its folder and its record."""

    path: Path
    record: dict[str, Any]


class Backups:
    """The backups of a project root; `root`: their folder, None for `<project root>/backups`."""

    def __init__(self, layout: Layout, root: Path | None = None) -> None:
        self.layout, self.is_own = layout, root is None
        self.root = layout.root / FOLDER if root is None else Path(os.path.abspath(str(root)))
        if self.root.is_symlink() or (self.root.exists() and not self.root.is_dir()):
            raise InputError(f"{self.root} is no folder of its own; move it away or name another with --backup-root")
        self.root = self.root.parent.resolve() / self.root.name
        if release.releases(layout) in (self.root, *self.root.parents):
            raise InputError(f"the backups cannot lie in {self.root}, among the releases; name another --backup-root")

    def save(self, used: Path, applied: str) -> Path:
        """Keep the release `used`, with all that was put into it, before the release `applied` takes its place."""
        with _refused_by_disk(self.root), Held(self.root, MAKING) as held:
            fresh = held.make() / "backup"
            fresh.mkdir(0o755)
            replicate(used, fresh / TREE)
            record = _described(used, fresh / TREE)
            record.update(project_root=self._owner, applied=applied, saved_at=now())
            write_json(fresh / RECORD, record)
            release.sync(fresh)
            target = self.root / f"{self._next_stamp()}-{record['source_id']}"
            os.rename(fresh, target)
            sync_folder(self.root)
        return target

    def discard(self, path: Path) -> None:
        """Remove a backup; what is half removed never looks like one."""
        doomed = path.with_name(f"{REMOVED}{path.name}-{time.time_ns()}")
        with contextlib.suppress(OSError):
            os.rename(path, doomed)
            removed(doomed)

    def prune(self, newest: Path) -> None:
        """Keep the newest few, and none twice: the one before `newest` may be of an apply that was killed."""
        with contextlib.suppress(OSError):  # the switch is done
            self._prune(newest)

    def _prune(self, newest: Path) -> None:
        found = self.all()
        pairs = [(saved.record["source_id"], saved.record["applied"]) for saved in found]
        if len(found) > 1 and found[0].path == newest and pairs[0] == pairs[1]:
            self.discard(found.pop(1).path)
        for saved in found[KEPT:]:
            self.discard(saved.path)

    def sweep(self) -> None:
        """Remove what killed commands left here."""
        if not self.root.is_dir():
            return
        sweep(self.root, MAKING)
        for path in self.root.glob(f"{REMOVED}*"):
            removed(path)

    def all(self) -> list[Saved]:
        """The readable backups of this project root, the newest first."""
        found = (_read(self.root / name) for name in self._names())
        return [saved for saved in found if saved and (self.is_own or saved.record["project_root"] == self._owner)]

    def last_of(self, applied: str) -> Saved:
        """The newest backup of what the release `applied` replaced; InputError where there is none."""
        with _refused_by_disk(self.root):
            found = self.all()
        for saved in found:
            if saved.record["applied"] == applied:
                return saved
        held = ", ".join(f"{saved.path.name} (of before {saved.record['applied']})" for saved in found) or "none"
        raise InputError(
            f"there is no backup in {self.root} of what the release in use, {applied}, replaced (there: {held}); "
            "apply the bundle that you want, with --force if it is older"
        )

    @property
    def _owner(self) -> str:
        return str(self.layout.root)

    def _names(self) -> list[str]:
        names = os.listdir(self.root) if self.root.is_dir() else []
        return sorted((name for name in names if NAME.fullmatch(name)), reverse=True)

    def _next_stamp(self) -> str:
        """Now, or just behind the newest one: a clock that was set back does not change their order."""
        stamp = datetime.now(timezone.utc).strftime(STAMP)
        newest = (self._names() or [""])[0][: len(stamp)]
        if stamp > newest:
            return stamp
        return (datetime.strptime(newest, STAMP) + timedelta(microseconds=1)).strftime(STAMP)


def restore(layout: Layout, saved: Saved, tree: Path) -> list[content.Entry]:
    """Lay the tree of a backup into the new folder `tree` and return the entries of its release.

    InputError when what lies there is not what was saved.
    """
    replicate(saved.path / TREE, tree)
    files, links = _contents(tree)
    wanted = {entry[0]: entry for entry in _entries(saved.record["files"])}
    found = {entry[0]: entry for entry in files}
    different = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    if different or sorted(map(list, links)) != sorted(saved.record["links"]):
        name = different[0] if different else "a link"
        raise InputError(
            f"the backup {saved.path} is not what was saved ({shown(name)} was changed, added or removed), so it is "
            "not brought back; restore that file, or apply the bundle that you want with --force"
        )
    return _entries(saved.record["entries"])


def origin(saved: Saved) -> content.Origin:
    """Where the release of a backup came from."""
    return content.Origin(*(saved.record[name] for name in content.Origin._fields))


def replicate(source: Path, target: Path) -> None:
    """Make `target` a copy of a tree without byte code and record: files as hard links where that is possible.

    Links stay what they are; sockets, devices and the like are left out.
    """
    target.mkdir(0o755)
    for inside, below, files in _walked(source):
        for name in below:
            (target / inside / name).mkdir(0o755)
        for name in files:
            path, copy = source / inside / name, target / inside / name
            kind = os.lstat(path).st_mode
            if stat.S_ISLNK(kind):
                os.symlink(os.readlink(path), copy)
            elif stat.S_ISREG(kind):
                _linked_or_copied(path, copy)


def _linked_or_copied(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy, follow_symlinks=False)
    except OSError as problem:
        if problem.errno not in NO_LINKS:
            raise
        shutil.copyfile(path, copy, follow_symlinks=False)
        shutil.copystat(path, copy, follow_symlinks=False)


def _walked(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder below `root`, folders in it, files and links in it) of what belongs to a tree."""
    for folder, below, files in os.walk(root, onerror=_raise):
        inside = os.path.relpath(folder, root)
        links = [name for name in below if os.path.islink(os.path.join(folder, name))]
        below[:] = sorted(name for name in below if name != content.CACHE and name not in links)
        yield inside, below, [name for name in files + links if inside != "." or name != content.RECORD]


def _raise(problem: OSError) -> None:
    raise problem


def _contents(tree: Path) -> tuple[list[content.Entry], list[tuple[str, str]]]:
    """The entries of the regular files of a tree, and (path, target) of its links."""
    names = content.walked_files(tree)
    links = [(name, os.readlink(tree / name)) for name in names if (tree / name).is_symlink()]
    linked = {name for name, _ in links}
    return content.entries(tree, [name for name in names if name not in linked]), links


def _described(used: Path, copy: Path) -> dict[str, Any]:
    """What a backup's record says of the release: by its own record, or of its files if it was edited."""
    files, links = _contents(copy)
    record = content.read_record(used)
    shipped = record["entries"] if record else files
    come_to = {name for name, _, _ in files} - {name for name, _, _ in shipped}
    edited = set(shipped) - set(files) or any(name.endswith(content.IMPORTABLE) for name in come_to)
    if record is None or edited:
        shipped, record = files, {}
    kept = content.Origin(**{name: record[name] for name in content.Origin._fields if name in record})
    described = {"schema": SCHEMA, "source_id": content.source_id(shipped), **kept._asdict()}
    return {**described, "entries": shipped, "files": files, "links": links}


def _read(path: Path) -> Saved | None:
    """A backup by its folder; None for one that was not made here, OSError when the disk refuses to read it."""
    if any(part.is_symlink() for part in (path, path / RECORD, path / TREE)):
        return None
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return Saved(path, record) if isinstance(record, dict) and _is_sound(record) else None


def _is_sound(record: dict[str, Any]) -> bool:
    """Whether a record is one that was written here."""
    texts = ("source_id", "applied", "project_root", "commit", "bundle_sha256")
    try:
        return (
            record["schema"] == SCHEMA
            and all(isinstance(record[name], str) for name in texts)
            and isinstance(record["made_at"], int)
            and all(isinstance(name, str) and isinstance(target, str) for name, target in record["links"])
            and content.source_id(_entries(record["entries"])) == record["source_id"]
            and isinstance(_entries(record["files"]), list)
        )
    except (KeyError, TypeError, ValueError):
        return False


def _entries(value: Any) -> list[content.Entry]:
    return [(str(name), bool(mode), str(sha256)) for name, mode, sha256 in value]


def _refused_by_disk(root: Path) -> contextlib.AbstractContextManager[None]:
    action = "make room there, correct its permissions or name another --backup-root"
    return errors.refused_by_disk(f"the tree in use cannot be kept in {root}", action)
