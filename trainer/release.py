"""The releases of the source on a host: published whole, switched to by one rename, pruned. No torch.

`<project root>/code` is a link to `releases/<source id>`. An unpacked tree publishes itself: this module runs from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer import source
from trainer.errors import HostUnfit, InputError, Interrupted
from trainer.state import Layout, StateError, read_json, sync_folder

KEPT = 3
LEFTOVER_SECONDS = 86400.0  # an upload that is older has no uploader any more
LOCK_SECONDS = 60.0
IDENTITY = re.compile(rf"[0-9a-f]{{{source.ID_LENGTH}}}")


def publish(layout: Layout, incoming: Path, expected: str, commit: str) -> dict[str, Any]:
    """Make the unpacked tree `incoming` a release and `code` a link to it.

    `expected`: the id that the tree must have, or empty; `commit`: where it comes from, or empty.
    Returns {"source_id", "commit", "lines"}; InputError when the tree is another, HostUnfit when the disk refuses.
    """
    try:
        source_id = source.verify(incoming, expected)
        shipped = source.entries(incoming, source.walked_files(incoming))
        with _alone(layout):
            lines = _place(layout, incoming, source_id, shipped, commit)
            _switch(layout, source_id)
            lines += _prune(layout, source_id)
    except OSError as problem:
        raise HostUnfit(
            f"the source cannot be published in {releases(layout)} ({problem.strerror or problem}); "
            "make room there or correct its permissions"
        ) from None
    return {"source_id": source_id, "commit": commit, "lines": lines}


def releases(layout: Layout) -> Path:
    """The folder of all releases."""
    return layout.root / "releases"


def _sync(tree: Path) -> None:
    """fsync a tree: after a power loss the release is whole or not there."""
    for folder, _, names in os.walk(tree):
        for name in names:
            with open(os.path.join(folder, name), "rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(folder))


@contextlib.contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """Two controllers publish one after the other."""
    deadline = time.monotonic() + LOCK_SECONDS
    with (releases(layout) / ".lock").open("ab") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Interrupted(
                        f"another run has been publishing in {releases(layout)} for {LOCK_SECONDS:.0f} s; "
                        "try again when it has ended"
                    ) from None
                time.sleep(0.1)
        yield


def _place(layout: Layout, incoming: Path, source_id: str, shipped: list[source.Entry], commit: str) -> list[str]:
    """Give the tree its name. The same release stays as it is; one that was edited is kept beside it."""
    target, lines = releases(layout) / source_id, []
    if _is_intact(target):  # processes may stand in it, and data may have been put there
        known = source.read_record(target) or {}
        source.write_record(target, shipped, commit or known.get("commit", ""))
        shutil.rmtree(incoming)
        return []
    if os.path.lexists(target):
        aside = target.with_name(f"{source_id}.edited-{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}")
        os.rename(target, aside)
        lines = [f"the code on the host was not what was sent there; it is kept in {aside} and not trained with"]
    source.write_record(incoming, shipped, commit)
    _sync(incoming)
    os.rename(incoming, target)
    sync_folder(target.parent)
    return lines


def _is_intact(release: Path) -> bool:
    """Whether the code of a release is what its name says."""
    for check in (source.check_release, source.verify):  # the second for one whose record was lost
        with contextlib.suppress(InputError, OSError):
            check(release, release.name)
            return release.is_dir()
    return False


def _is_pristine(release: Path) -> bool:
    """Whether a release holds nothing but what came with it."""
    with contextlib.suppress(InputError, OSError):
        return bool(source.verify(release, release.name))
    return False


def _switch(layout: Layout, source_id: str) -> None:
    """Point `code` at the release by a rename: nobody sees a host without code."""
    code = layout.root / "code"
    if code.exists() and not code.is_symlink():
        raise InputError(f"{code} is no link, so it was not made by this role; move it away")
    fresh = layout.root / f".code.{os.getpid()}"
    fresh.unlink(missing_ok=True)
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
