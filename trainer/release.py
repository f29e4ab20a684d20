"""The releases of the source on a host: published whole, switched to by one rename, pruned. No torch.

`<project root>/code` is a link to `releases/<source id>`. An unpacked tree publishes itself: this module runs from it,
or from what a bundle carries along (Python 3.8, standard library alone).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer import content, errors, system
from trainer.errors import InputError, Interrupted
from trainer.state import Layout, StateError, read_json, sync_folder

KEPT = 3
REMOVED = ".removed-"
LEFTOVER_SECONDS = 86400.0  # an upload that is older has no uploader any more
LOCK_SECONDS = 60.0
IDENTITY = re.compile(rf"[0-9a-f]{{{content.ID_LENGTH}}}")


def publish(layout: Layout, incoming: Path, expected: str, commit: str) -> dict[str, Any]:
    """Make the unpacked tree `incoming` a release and `code` a link to it.

    `expected`: the id that the tree must have, or empty; `commit`: where it comes from, or empty.
    Returns {"source_id", "commit", "lines"}; InputError when the tree is another, HostUnfit when the disk refuses.
    """
    with refused_by_disk(layout):
        content.verify(incoming, expected)
        shipped = content.entries(incoming, content.walked_files(incoming))
        with alone(layout):
            lines = install(layout, incoming, shipped, content.Origin(commit))
    return {"source_id": content.source_id(shipped), "commit": commit, "lines": lines}


def releases(layout: Layout) -> Path:
    """The folder of all releases."""
    return layout.root / "releases"


def refused_by_disk(layout: Layout) -> contextlib.AbstractContextManager[None]:
    """Around what is written to the releases: what the disk says becomes HostUnfit."""
    what = f"the source cannot be published in {releases(layout)}"
    return errors.refused_by_disk(what, "make room there or correct its permissions")


@contextlib.contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Hold the releases: two who publish do so one after the other. Interrupted when the other one takes too long."""
    deadline = time.monotonic() + LOCK_SECONDS
    path = releases(layout) / ".lock"
    descriptor = _open_lock(path)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Interrupted(
                        f"another run has been publishing in {path.parent} for {LOCK_SECONDS:.0f} s; "
                        "try again when it has ended"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """The lock file, made where it is missing; InputError for a link or anything else that was put in its place."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO would wait for a reader
    try:
        if not os.path.lexists(path) or stat.S_ISREG(os.lstat(path).st_mode):
            return os.open(path, flags, 0o644)
    except OSError as problem:
        if problem.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    raise InputError(f"{path} is no plain file, so it was not made by this role; move it away")


def install(layout: Layout, incoming: Path, shipped: list[content.Entry], origin: content.Origin) -> list[str]:
    """Make a verified tree with these entries the release in use; the caller holds `alone`. Returns lines to show.

    `incoming` lies on the file system of the releases. What fails before the switch leaves no new release behind.
    """
    source_id = content.source_id(shipped)
    was_there = os.path.lexists(releases(layout) / source_id)
    lines = _place(layout, incoming, source_id, shipped, origin)
    try:
        _switch(layout, source_id)
    except BaseException:
        in_use = current(layout)
        if not was_there and (in_use is None or in_use.name != source_id):
            remove(releases(layout) / source_id)
        raise
    return lines + _prune(layout, source_id)


def remove(release: Path) -> None:
    """Remove a release, or what can be removed of it now; a half-removed folder never looks like a release."""
    doomed = release.with_name(f"{REMOVED}{release.name}-{time.time_ns()}")
    os.rename(release, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def current(layout: Layout) -> Path | None:
    """The release in use, None before the first; InputError when `code` is not a link into the releases."""
    code = layout.root / "code"
    if not os.path.lexists(code):
        return None
    if not code.is_symlink():
        raise InputError(f"{code} is no link, so it was not made by this role; move it away")
    target = os.readlink(code)
    if os.path.dirname(target) != "releases" or not os.path.basename(target).strip("."):
        raise InputError(f"{code} is a link to {target!r}, which is no release of this project; move it away")
    release = layout.root / target
    return release if release.is_dir() and not release.is_symlink() else None


def sync(tree: Path) -> None:
    """Make a tree durable: after a power loss the release is whole or not there."""
    if system.sync_file_system(tree):
        return
    for folder, _, names in os.walk(tree):
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                with open(os.path.join(folder, name), "rb") as stream:
                    os.fsync(stream.fileno())
        sync_folder(Path(folder))


def _place(
    layout: Layout, incoming: Path, source_id: str, shipped: list[content.Entry], origin: content.Origin
) -> list[str]:
    """Give the tree its name. The same release stays as it is; one that was edited is kept beside it."""
    target, lines = releases(layout) / source_id, []
    if is_intact(target):  # processes may stand in it, and data may have been put there
        known = content.read_record(target) or {}
        kept = {name: value or known.get(name) or value for name, value in origin._asdict().items()}
        for left in target.glob(f".{content.RECORD}.*.tmp"):  # of somebody who was killed here
            left.unlink()
        content.write_record(target, shipped, content.Origin(**kept))
        shutil.rmtree(incoming)
        return []
    content.write_record(incoming, shipped, origin)
    sync(incoming)
    if os.path.lexists(target):
        aside = target.with_name(f"{source_id}.edited-{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}")
        os.rename(incoming, aside)
        if not system.exchange(aside, target):  # it may be the one in use: nobody sees a host without code
            os.rename(aside, incoming)
            os.rename(target, aside)
            os.rename(incoming, target)
        lines = [f"the code on the host was not what was sent there; it is kept in {aside} and not trained with"]
    else:
        os.rename(incoming, target)
    sync_folder(target.parent)
    return lines


def is_intact(release: Path) -> bool:
    """Whether the code of a release is what its name says."""
    if release.is_symlink() or not release.is_dir():
        return False
    for check in (content.check_release, content.verify):  # the second for one whose record was lost
        with contextlib.suppress(InputError, OSError):
            check(release, release.name)
            return True
    return False


def _is_pristine(release: Path) -> bool:
    """Whether a release holds nothing but what came with it."""
    with contextlib.suppress(InputError, OSError):
        return bool(content.verify(release, release.name))
    return False


def _switch(layout: Layout, source_id: str) -> None:
    """Point `code` at the release by a rename: nobody sees a host without code."""
    code = layout.root / "code"
    if code.exists() and not code.is_symlink():
        raise InputError(f"{code} is no link, so it was not made by this role; move it away")
    _remove_links(layout)
    fresh = layout.root / f".code.{os.getpid()}"
    fresh.symlink_to(f"releases/{source_id}")
    os.replace(fresh, code)
    os.utime(releases(layout) / source_id)  # the newest by its time is the one in use
    sync_folder(layout.root)


def _remove_links(layout: Layout) -> None:
    """Remove links that were about to become `code`: only one at a time comes so far, so their makers are gone."""
    for left in layout.root.glob(".code.*"):
        if left.is_symlink():
            left.unlink()


def _prune(layout: Layout, source_id: str) -> list[str]:
    """Remove all but the newest releases; never one that the last plan uses or that holds files of somebody."""
    try:
        plan = read_json(layout.plan) or {}
    except StateError:
        return []  # which release it uses is not known
    folder, lines = releases(layout), []
    used = {source_id, str(plan.get("source_id", ""))}
    named = [path for path in folder.iterdir() if IDENTITY.fullmatch(path.name) and not path.is_symlink()]
    newest = sorted(named, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in newest[KEPT:]:
        if path.name in used:
            continue
        if not _is_pristine(path):
            lines.append(f"{path} is kept: it holds files that did not come with it")
            continue
        try:  # the switch is done: what cannot be removed is no failure
            remove(path)
        except OSError as problem:
            lines.append(f"{path} is kept: it cannot be removed ({problem.strerror})")
    remove_leftovers(layout)
    return lines


def remove_leftovers(layout: Layout) -> None:
    """Remove what killed ones left half done, and uploads that broke off long ago; the caller holds `alone`."""
    _remove_links(layout)
    too_old = time.time() - LEFTOVER_SECONDS
    for path in releases(layout).glob(".*"):
        with contextlib.suppress(FileNotFoundError):  # its uploader has just removed it
            is_old = path.name.startswith(".incoming-") and path.lstat().st_mtime < too_old
            if path.name.startswith(REMOVED) or is_old:
                shutil.rmtree(path, ignore_errors=True)
