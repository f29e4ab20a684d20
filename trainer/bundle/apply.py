"""A bundle becomes the release in use: verified as a whole first, switched to at once, all or nothing.

Standard library alone, Python 3.8. No torch.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

from trainer import content, digest, release
from trainer.bundle import verify
from trainer.bundle.backup import origin, restore
from trainer.bundle.held import Held
from trainer.bundle.places import Places, settled
from trainer.bundle.reader import Caps
from trainer.bundle.staging import APPLYING, TREE, Staging
from trainer.errors import HostUnfit, InputError, TrainerError
from trainer.state import Layout, sync_folder

CAPS = Caps()


class Request(NamedTuple):
    """What is to be applied where. `staging_dir`, `backup_root`: None for the folders of the project root."""

    layout: Layout
    bundle: Path
    staging_dir: Path | None = None
    backup_root: Path | None = None
    keep_staging: bool = False
    force: bool = False
    without_sha256: bool = False
    caps: Caps = CAPS
    progress: Callable[[int, int], None] = lambda done, total: None


class Differences(NamedTuple):
    """The names of files that a bundle adds to the tree in use, replaces in it, and takes out of it."""

    added: list[str]
    replaced: list[str]
    removed: list[str]


def apply(request: Request) -> dict[str, Any]:
    """Verify a bundle and make its tree the release in use.

    Returns {"changed", "source_id", "commit", "bundle", "files", "bytes", "added", "replaced", "removed" (numbers of
    files), "backup" (folder or ""), "lines"}. InputError: the bundle, or what was put in the place of our folders;
    HostUnfit: the disk refuses; Interrupted: another run holds the releases. After any of them the tree in use is the
    one of before, or wholly the new one where the sentence says so.
    """
    places = Places(request.layout, request.staging_dir, request.backup_root)
    with settled(request.layout):
        places.sweep()
        if answer := _applied_before(request):
            return answer
        with Staging(places.staging, places.releases) as staged, _kept(request, staged):
            verified = _check(request, staged)
            with release.alone(request.layout):
                return _install(request, places, verified, staged.tree)


def preview(request: Request) -> dict[str, Any]:
    """What `apply` would do: the same answer, with all names in its lines. Nothing is written."""
    Places(request.layout, request.staging_dir, request.backup_root)
    verified = _check(request, verify.Hashed())
    shipped, used = _shipped(verified), release.current(request.layout)
    changed = used is None or used.name != content.source_id(shipped) or not release.is_intact(used)
    found = _differences(used, shipped) if changed else Differences([], [], [])
    answer = _answer(verified, changed, found)
    if changed:
        _check_age(request, verified, used)
    named = zip(("add", "replace", "remove"), found)
    answer["lines"] += [f"would {word} {name}" for word, names in named for name in names]
    answer["lines"].append(_sentence("would be applied" if changed else "is applied already", answer))
    return answer


def rollback(layout: Layout, staging_dir: Path | None, backup_root: Path | None) -> dict[str, Any]:
    """Bring back the tree that the release in use replaced. Returns {"changed", "source_id", "commit", "backup",
    "lines"}; a second one goes one further back. Errors as in `apply`."""
    places = Places(layout, staging_dir, backup_root)
    with settled(layout):
        places.sweep()
        if not release.releases(layout).is_dir() or (used := release.current(layout)) is None:
            raise InputError(f"no release is in use in {layout.root}; apply a bundle there first")
        with release.alone(layout), Held(places.staging, APPLYING) as held:
            used = release.current(layout) or used
            saved = places.backups.last_of(used.name)
            tree = held.make() / TREE
            shipped = restore(layout, saved, tree)
            with _told_of_the_switch(layout, content.source_id(shipped), "the backup is brought back"):
                lines = release.install(layout, tree, shipped, origin(saved))
            places.backups.discard(saved.path)
    source_id = content.source_id(shipped)
    lines.append(f"{source_id} is in use again, as it was before {used.name} was applied")
    return {
        "changed": True, "source_id": source_id, "commit": saved.record["commit"], "backup": str(saved.path),
        "lines": lines,
    }  # fmt: skip


@contextlib.contextmanager
def _kept(request: Request, staged: Staging) -> Iterator[None]:
    """On failure keep what was staged where the user asked for it, and say where it lies."""
    try:
        yield
    except (TrainerError, OSError) as problem:
        kept = None
        if request.keep_staging:
            with contextlib.suppress(OSError):
                kept = staged.keep(datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ"))
        if kept is None:
            raise
        with _noted(f"what was staged is kept in {kept}"), release.refused_by_disk(request.layout):
            raise problem


@contextlib.contextmanager
def _noted(line: str) -> Iterator[None]:
    try:
        yield
    except TrainerError as problem:
        problem.lines.append(line)
        raise


def _check(request: Request, target: verify.Target) -> verify.Verified:
    return verify.check(
        request.bundle, without_sha256=request.without_sha256, caps=request.caps, target=target,
        progress=request.progress,
    )  # fmt: skip


def _shipped(verified: verify.Verified) -> list[content.Entry]:
    """The entries of the release: byte code lies in the tree, but is no part of it."""
    return [entry for entry in verified.entries if content.is_part(entry[0])]


def _applied_before(request: Request) -> dict[str, Any] | None:
    """The answer when the release in use came with this very bundle and is as it came; the bundle is verified again."""
    used = release.current(request.layout)
    record = content.read_record(used) if used else None
    if used is None or record is None or not _seems_to_be(request.bundle, str(record.get("bundle_sha256", ""))):
        return None
    verified = _check(request, verify.Hashed())
    same = verified.sha256 == record["bundle_sha256"] and content.source_id(_shipped(verified)) == used.name
    return _unchanged(verified) if same and release.is_intact(used) else None


def _seems_to_be(bundle: Path, sha256: str) -> bool:
    """Whether a bundle has this sha256 by what stands beside it, or by itself where nothing does."""
    outer = bundle.with_name(f"{bundle.name}.sha256")
    if not sha256:
        return False
    with contextlib.suppress(OSError):
        if outer.is_file():
            with outer.open("rb") as stream:
                return stream.read(len(sha256)).lower() == sha256.encode()
        return bundle.is_file() and digest.of_file(bundle) == sha256
    return False


def _install(request: Request, places: Places, verified: verify.Verified, tree: Path) -> dict[str, Any]:
    """Switch to a verified tree, with a backup of the one in use; the caller holds the releases."""
    layout, shipped = request.layout, _shipped(verified)
    source_id, used = content.source_id(shipped), release.current(request.layout)
    if used and used.name == source_id and release.is_intact(used):
        return _unchanged(verified)
    _check_age(request, verified, used)
    answer = _answer(verified, True, _differences(used, shipped))
    saved = places.backups.save(used, source_id) if used else None
    try:
        with _told_of_the_switch(layout, source_id, "the bundle is applied"):
            origin = content.Origin(verified.commit, verified.made_at, verified.sha256)
            answer["lines"] += release.install(layout, tree, shipped, origin)
    except BaseException:
        if saved and not _is_in_use(layout, source_id):
            places.backups.discard(saved)
        raise
    if saved:
        places.backups.prune(saved)
        answer["backup"] = str(saved)
    answer["lines"].append(_sentence("is applied", answer))
    return answer


@contextlib.contextmanager
def _told_of_the_switch(layout: Layout, source_id: str, words: str) -> Iterator[None]:
    """An error of the disk behind the switch says that the switch was done, which is made durable once more."""
    was_in_use = _is_in_use(layout, source_id)
    try:
        yield
    except OSError as problem:
        if was_in_use or not _is_in_use(layout, source_id):
            raise
        with contextlib.suppress(OSError):
            sync_folder(layout.root)
        raise HostUnfit(
            f"{words}, but the disk refused what comes behind the switch ({problem.strerror or problem}); look at it "
            "and run the command again"
        ) from None


def _is_in_use(layout: Layout, source_id: str) -> bool:
    with contextlib.suppress(OSError, InputError):
        used = release.current(layout)
        return used is not None and used.name == source_id
    return False


def _check_age(request: Request, verified: verify.Verified, used: Path | None) -> None:
    """InputError when the bundle is older than the release in use and nobody wants that."""
    record = content.read_record(used) if used else None
    installed = record.get("made_at", 0) if record else 0
    if request.force or not verified.made_at or not isinstance(installed, int) or verified.made_at >= installed:
        return
    raise InputError(
        f"the bundle {verified.name} is of {_date(verified.made_at)}, older than what is in use, of "
        f"{_date(installed)}; bring a newer one, or apply it all the same with --force"
    )


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s after 1970"


def _differences(used: Path | None, shipped: list[content.Entry]) -> Differences:
    """What a tree changes against the release in use, as that one came."""
    record = content.read_record(used) if used else None
    if used and record is None:
        before = dict.fromkeys(content.walked_files(used), (False, ""))
    else:
        before = {name: (mode, sha256) for name, mode, sha256 in (record["entries"] if record else [])}
    after = {name: (mode, sha256) for name, mode, sha256 in shipped}
    both = sorted(set(before) & set(after))
    return Differences(
        sorted(set(after) - set(before)),
        [name for name in both if before[name] != after[name]],
        sorted(set(before) - set(after)),
    )


def _unchanged(verified: verify.Verified) -> dict[str, Any]:
    answer = _answer(verified, False, Differences([], [], []))
    answer["lines"].append(_sentence("is applied already", answer))
    return answer


def _answer(verified: verify.Verified, changed: bool, found: Differences) -> dict[str, Any]:
    return {
        "changed": changed, "source_id": content.source_id(_shipped(verified)), "commit": verified.commit,
        "bundle": verified.name, "files": len(verified.entries), "bytes": verified.unpacked_bytes,
        "added": len(found.added), "replaced": len(found.replaced), "removed": len(found.removed),
        "backup": "", "lines": list(verified.lines),
    }  # fmt: skip


def _sentence(words: str, answer: dict[str, Any]) -> str:
    numbers = ", ".join(f"{answer[name]} {name}" for name in ("added", "replaced", "removed"))
    counted = f": {numbers}" if answer["changed"] else ""
    return f"{answer['bundle']} {words} as {answer['source_id']}{counted}"
