"""Putting a verified export in place: unit by unit, wholly old or wholly new, also across a power loss. No torch.

A unit is an adapter's folder, a run's folder or a single file. All of them lie ready in the landing folder's
`tree/`, equal to the listing both ways and fsynced, before a journal is written; only then are units renamed
(old one aside, new one into place). An error puts everything back. After a kill the journal stands, and whoever
comes next finishes: each new unit is either still in `tree/` or in its place already.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer import stages, summary
from trainer.artifacts import COLLECTED
from trainer.errors import Interrupted
from trainer.landing import FOLDER, Landing, digest_of, is_regular, link_or_copy, opened
from trainer.listing import Entry
from trainer.state import read_json, sync_folder, write_json

_SYNC_THREADS = 16  # many small files: their fsyncs share journal commits


def is_trained_in(outputs: Path) -> bool:
    """Whether a folder of outputs is a host's own: a plan with a supervisor's lock, which never comes home."""
    here = all((outputs / "state" / name).exists() for name in ("plan.json", "supervisor.lock"))
    return here and not (outputs / COLLECTED).exists()


def is_there(outputs: Path, entries: Sequence[Entry]) -> bool:
    """Whether every file is in its place with its content."""
    return all(is_regular(outputs / e.path, e.size) and digest_of(outputs / e.path) == e.sha256 for e in entries)


def imported(output_dir: Path) -> dict[str, Any]:
    """{"export_id", "lines"} of what is there already, an empty id when a file of it changed or is gone.

    An earlier publishing that was killed is finished first.
    """
    if (output_dir / FOLDER / "journal.json").exists():
        with opened(output_dir) as landing:
            finish(landing)
            clear(landing)
    record = read_json(output_dir / COLLECTED)
    nothing: dict[str, Any] = {"export_id": "", "lines": []}
    if record is None:
        return nothing
    for path, sha256 in record["files"].items():
        place = output_dir / path
        if place.is_symlink() or not place.is_file() or digest_of(place) != sha256:
            return nothing
    return {"export_id": record["export_id"], "lines": record["lines"]}


def publish(landing: Landing, entries: Sequence[Entry], export_id: str) -> list[str]:
    """Put the verified objects in place as `entries` say; returns the closing lines. What was there is replaced
    unit by unit, what the export does not name stays."""
    shutil.rmtree(landing.tree, ignore_errors=True)
    for entry in entries:
        _lay_out(landing, entry)
    _verify(landing.tree, entries)
    lines = closing_lines(landing.tree, entries, landing.output_dir)
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(unit_of(entry.path), []).append(entry)
    units = [unit for unit, own in sorted(grouped.items()) if not _is_same(landing, unit, own)]
    _sync([landing.tree / unit for unit in units])
    record = {"schema": 1, "export_id": export_id, "files": {e.path: e.sha256 for e in entries}, "lines": lines}
    write_json(landing.journal, {**record, "units": units})
    try:
        for unit in units:
            _switch(landing, unit)
    except BaseException:
        for unit in reversed(units):
            _switch_back(landing, unit)
        landing.journal.unlink()
        raise
    _close(landing, units, record)
    clear(landing)
    return lines


def finish(landing: Landing) -> None:
    """Finish a publishing that was killed; nothing to do without a journal."""
    record = read_json(landing.journal)
    if record is None:
        return
    units = record.pop("units")
    for unit in units:
        _switch(landing, unit)
    _close(landing, units, record)


def _close(landing: Landing, units: Sequence[str], record: dict[str, Any]) -> None:
    for folder in {(landing.output_dir / unit).parent for unit in units}:
        sync_folder(folder)
    write_json(landing.output_dir / COLLECTED, record)
    for unit in units:
        remove(_aside(landing.output_dir / unit))
    shutil.rmtree(landing.tree, ignore_errors=True)
    landing.journal.unlink()


def clear(landing: Landing) -> None:
    """Remove the landing folder, and those that older versions left."""
    for folder in [landing.folder, *landing.output_dir.glob(f"{FOLDER}-*")]:
        shutil.rmtree(folder, ignore_errors=True)


def _lay_out(landing: Landing, entry: Entry) -> None:
    """One file of the tree: the object itself, or a copy where that would make one file of two places."""
    source, target = landing.object(entry), landing.tree / entry.path
    if entry.sha256 not in landing.verified:
        raise Interrupted(f"{entry.path} has not arrived; collect again")
    target.parent.mkdir(parents=True, exist_ok=True)
    there, place = source.lstat(), landing.output_dir / entry.path
    own = os.path.lexists(place) and place.lstat().st_ino == there.st_ino
    if own or there.st_nlink == 1:
        link_or_copy(source, target)
    else:
        shutil.copyfile(source, target, follow_symlinks=False)
        if digest_of(target) != entry.sha256:
            raise Interrupted(f"{entry.path} was damaged while it was copied; look at the disk and collect again")


def _verify(tree: Path, entries: Sequence[Entry]) -> None:
    """Listing and tree are equal both ways: nothing missing, nothing more, regular files of the listed sizes."""
    listed = {entry.path: entry.size for entry in entries}
    found = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_symlink() or not p.is_dir()}
    for name in sorted(found ^ set(listed)):
        raise Interrupted(f"{name} is {'not listed' if name in found else 'missing'} in {tree}; collect again")
    for name, size in listed.items():
        if not is_regular(tree / name, size):
            raise Interrupted(f"{name} in {tree} is not a regular file of {size} bytes; collect again")


def unit_of(path: str) -> str:
    """What is put in place as a whole: an adapter's folder, a run's folder, or a single file."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] in ("adapter", "training_sync") else path


def _is_same(landing: Landing, unit: str, own: Sequence[Entry]) -> bool:
    """Whether a unit is in its place already, with nothing more in it."""
    place = landing.output_dir / unit
    if place.is_symlink():
        return False
    found = [p for p in place.rglob("*") if p.is_symlink() or not p.is_dir()]
    if place.is_dir() and len(found) != len(own):
        return False
    linked = [e for e in own if _is_object(landing, landing.output_dir / e.path, e)]  # hashed a moment ago
    return is_there(landing.output_dir, [e for e in own if e not in linked])


def _is_object(landing: Landing, place: Path, entry: Entry) -> bool:
    return is_regular(place, entry.size) and os.path.samestat(place.lstat(), landing.object(entry).lstat())


def _sync(places: Sequence[Path]) -> None:
    """fsync files and folders of these units."""
    found = [path for place in places for path in [place, *place.rglob("*")]]
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        list(pool.map(sync_folder, found))  # works for files, too


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


def _switch(landing: Landing, unit: str) -> None:
    """The old unit aside, the new one into place; nothing when that was done already."""
    fresh, place = landing.tree / unit, landing.output_dir / unit
    if not os.path.lexists(fresh):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(place):
        remove(_aside(place))
        if fresh.is_file() and place.is_file() and not place.is_symlink():
            link_or_copy(place, _aside(place))  # a single file is there at every moment
        else:
            place.rename(_aside(place))
    os.replace(fresh, place)


def _switch_back(landing: Landing, unit: str) -> None:
    """What was there before comes back."""
    fresh, place = landing.tree / unit, landing.output_dir / unit
    if not os.path.lexists(fresh) and os.path.lexists(place):
        place.rename(fresh)
    if os.path.lexists(place):
        remove(_aside(place))
    elif os.path.lexists(_aside(place)):
        _aside(place).rename(place)


def remove(path: Path) -> None:
    """Remove a file or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def closing_lines(outputs: Path, entries: Sequence[Entry], shown: Path) -> list[str]:
    """Where the summary, the adapters and the best model are, as the last lines of a run; `shown` is their folder.

    Only what came with this export counts, not what an earlier host left in the same place. States and reports are
    the host's words: when they make no sense, the files are home all the same.
    """
    runs = sorted({unit_of(entry.path) for entry in entries if entry.path.startswith("training_sync/")})
    try:
        records = [asdict(stage) for stage in stages.load().stages]
        context = summary.collect_context(outputs.parent, records, outputs=outputs)
        if runs:
            context["run"] = runs[-1].split("/")[1]
        lines = summary.closing_lines(context, str(shown))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as problem:
        lines = [f"Summary: {shown / runs[-1] if runs else shown} (the host's reports make no sense: {problem!r})"]
    return ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
