"""The releases of the source on a host: published whole, switched to by one rename, pruned. No torch.

`<project root>/code` is a link to `releases/<source id>`. An unpacked tree publishes itself: this module runs from it,
or from what a bundle carries along (Python 3.8, standard library alone).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer import content
from trainer.errors import HostUnfit, InputError, Interrupted
from trainer.state import Layout, StateError, read_json, sync_folder

KEPT = 3
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


@contextlib.contextmanager
def refused_by_disk(layout: Layout) -> Iterator[None]:
    """What the disk says becomes HostUnfit with what to do."""
    try:
        yield
    except OSError as problem:
        raise HostUnfit(
            f"the source cannot be published in {releases(layout)} ({problem.strerror or problem}); "
            "make room there or correct its permissions"
        ) from None


@contextlib.contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Hold the releases: two who publish do so one after the other. Interrupted when the other one takes too long."""
    deadline = time.monotonic() + LOCK_SECONDS
    path = releases(layout) / ".lock"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
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


def install(
    layout: Layout,
    incoming: Path,
    shipped: list[content.Entry],
    origin: content.Origin,
    before_switch: Callable[[], None] = lambda: None,
) -> list[str]:
    """Make a verified tree with these entries the release in use; the caller holds `alone`. Returns lines to show.

    `incoming` lies on the file system of the releases. `before_switch` runs when the release lies there, and is the
    last that may refuse.
    """
    source_id = content.source_id(shipped)
    lines = _place(layout, incoming, source_id, shipped, origin)
    before_switch()
    _switch(layout, source_id)
    return lines + _prune(layout, source_id)


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
    """fsync a tree: after a power loss the release is whole or not there."""
    for folder, _, names in os.walk(tree):
        for name in names:
            with open(os.path.join(folder, name), "rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(folder))


def _place(
    layout: Layout, incoming: Path, source_id: str, shipped: list[content.Entry], origin: content.Origin
) -> list[str]:
    """Give the tree its name. The same release stays as it is; one that was edited is kept beside it."""
    target, lines = releases(layout) / source_id, []
    if _is_intact(target):  # processes may stand in it, and data may have been put there
        known = content.read_record(target) or {}
        kept = {name: value or known.get(name) or value for name, value in origin._asdict().items()}
        content.write_record(target, shipped, content.Origin(**kept))
        shutil.rmtree(incoming)
        return []
    if os.path.lexists(target):
        aside = target.with_name(f"{source_id}.edited-{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}")
        os.rename(target, aside)
        lines = [f"the code on the host was not what was sent there; it is kept in {aside} and not trained with"]
    content.write_record(incoming, shipped, origin)
    sync(incoming)
    os.rename(incoming, target)
    sync_folder(target.parent)
    return lines


def _is_intact(release: Path) -> bool:
    """Whether the code of a release is what its name says."""
    for check in (content.check_release, content.verify):  # the second for one whose record was lost
        with contextlib.suppress(InputError, OSError):
            check(release, release.name)
            return release.is_dir() and not release.is_symlink()
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
    for left in layout.root.glob(".code.*"):  # of somebody who was killed here: only one at a time comes so far
        if left.is_symlink():
            left.unlink()
    fresh = layout.root / f".code.{os.getpid()}"
    fresh.symlink_to(f"releases/{source_id}")
    os.replace(fresh, code)
    os.utime(releases(layout) / source_id)  # the newest by its time is the one in use
    sync_folder(layout.root)


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
        else:  # a half-removed folder must not look like a release
            os.rename(path, folder / f".removed-{path.name}-{time.time_ns()}")
    too_old = time.time() - LEFTOVER_SECONDS
    for path in folder.glob(".*"):
        if path.name.startswith(".removed-") or (
            path.name.startswith(".incoming-") and path.lstat().st_mtime < too_old
        ):
            shutil.rmtree(path, ignore_errors=True)
    return lines
