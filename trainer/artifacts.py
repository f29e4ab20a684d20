"""What a host sends home: the run folder, the listing of everything, and pieces of it on request. No torch.

`collect` makes the run folder and lists every file with size and sha256 (listing.py). Large files of adapters and
runs are then fetched from where they lie. Everything else goes through `export`: it writes the asked files one
behind the other into one piece, each with exactly its listed size, so that a whole batch of small files costs one
transfer and the other side, which knows sizes and hashes, can tell after a cut which of them have arrived. With an
offset it writes the rest of one file, together with the hash of what is before it: a cut file goes on.

A plan may run meanwhile. Logs and events grow: their listed size is what counts. States are replaced: they are
kept as they were listed. Adapters are swapped as a whole: a listing that saw two of them is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from trainer import diagnose, stages, summary
from trainer.errors import InputError, Interrupted
from trainer.listing import NAME, Entry, id_of, parse_own, render
from trainer.state import Layout, read_json, sync_folder, write_json, write_text

MANIFEST = "MANIFEST.sha256"
COLLECTED = ".collected.json"  # marks a folder of outputs as a copy; nothing is trained in there
_REMEMBERED_BYTES = 1 << 20  # hashes of larger files are remembered
_STALE_SECONDS = 86400  # another controller may still be fetching from a younger export
_PIECE_BYTES = 1 << 20


def collect(layout: Layout, anew: bool = False) -> dict[str, Any]:
    """Make the run folder, or keep the newest one when it would be the same, and list what is to be fetched.

    `anew`: hash every file again instead of believing what was remembered. Answers {"run", "export_id", "files",
    "bytes", "listing": path below the project root, "lines"}.
    """
    files = _run_files(layout)
    text = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    runs = sorted(p for p in layout.runs.glob("run_*") if p.is_dir())
    wanted = {**files, MANIFEST: text.encode()}
    if not runs or any(_bytes(runs[-1] / name) != content for name, content in wanted.items()):
        runs.append(_write_run(layout, wanted))
    entries, kept = _listed(layout, runs[-1].name, anew)
    text = render(entries)
    _write_export(layout, text, kept)
    return {
        "run": runs[-1].name,
        "export_id": id_of(text.encode()),
        "files": len(entries),
        "bytes": sum(entry.size for entry in entries),
        "lines": [],
    }


def _run_files(layout: Layout) -> dict[str, bytes]:
    """The content of a run folder by name: summary, reports, log copies, issues."""
    table = stages.load()
    records = [asdict(stage) for stage in table.stages]
    context = summary.collect_context(layout.root, records)
    issues, problems = diagnose.read_issues(layout.logs / "issues.jsonl")
    files = {
        "TRAINING_SUMMARY.md": summary.build_summary(context).encode(),
        "ISSUES.md": diagnose.render_issues(issues, problems).encode(),
        "issues.jsonl": _bytes(layout.logs / "issues.jsonl"),
    }
    for stage in table.stages:
        for ending in ("md", "json"):
            path = layout.adapters / stage.adapter / f"eval_report_{stage.name}.{ending}"
            if path.is_file():
                files[path.name] = path.read_bytes()
        log = (read_json(layout.stage(stage.name)) or {}).get("log")
        if log and (layout.root / log).is_file():
            files[f"logs/{Path(log).name}"] = (layout.root / log).read_bytes()
    return files


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _write_run(layout: Layout, files: dict[str, bytes]) -> Path:
    stamp = f"{datetime.now(timezone.utc):%Y%m%d_%H%M%S}"
    layout.runs.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=layout.runs))
    try:
        for name, content in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(content)
        fresh.chmod(0o755)
        for number in range(1, 1000):
            target = layout.runs / (f"run_{stamp}_{number}" if number > 1 else f"run_{stamp}")
            if target.exists():
                continue
            try:
                fresh.rename(target)
                break
            except OSError:
                if not target.exists():  # else another collect was quicker
                    raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    sync_folder(layout.runs)
    return target


def _sources(layout: Layout, run: str) -> dict[str, os.stat_result]:
    """Everything that goes home, as paths below outputs/ with their stats: adapters, logs, states, the run."""
    folders = [layout.adapters / stage.adapter for stage in stages.load().stages]
    folders += [layout.logs, layout.state, layout.runs / run]
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            name = path.relative_to(layout.outputs).as_posix()
            if not NAME.fullmatch(name) or name.endswith(".lock"):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:  # replaced while we look
                continue
            if stat.S_ISREG(status.st_mode):
                found[name] = status
    return found


def _listed(layout: Layout, run: str, anew: bool) -> tuple[list[Entry], dict[str, bytes]]:
    """The files with sizes and hashes, and the content of those that a running plan replaces."""
    memory = layout.cache / "export_hashes.json"
    known = {} if anew else (read_json(memory) or {}).get("files", {})
    for _ in range(5):
        before = _sources(layout, run)
        entries, kept, remembered = [], {}, {}
        try:
            for name, status in sorted(before.items()):
                if name.startswith("state/") and name.endswith(".json"):
                    kept[name] = (layout.outputs / name).read_bytes()
                    entries.append(Entry(name, len(kept[name]), hashlib.sha256(kept[name]).hexdigest()))
                    continue
                stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
                sha256 = _hash(layout.outputs / name, status.st_size, known.get(name), stamp)
                entries.append(Entry(name, status.st_size, sha256))
                if status.st_size >= _REMEMBERED_BYTES and time.time() - status.st_mtime > 2:
                    remembered[name] = [*stamp, sha256]
        except FileNotFoundError:
            continue
        if _settled(before) == _settled(_sources(layout, run)):
            if remembered != known:
                write_json(memory, {"schema": 1, "files": remembered})
            return entries, kept
    raise Interrupted(f"the adapters in {layout.adapters} keep changing; collect again when the stage has ended")


def _hash(path: Path, size: int, known: list[Any] | None, stamp: list[int]) -> str:
    if known and known[:-1] == stamp:
        return str(known[-1])
    digest = hashlib.sha256()
    with _opened(path) as stream:
        for piece in _read(stream, size):
            digest.update(piece)
    return digest.hexdigest()


def _settled(found: dict[str, os.stat_result]) -> dict[str, tuple[int, int, int]]:
    """What must not change while it is hashed: adapters are swapped as a whole, never written in place."""
    return {
        name: (status.st_ino, status.st_size, status.st_mtime_ns)
        for name, status in found.items()
        if name.startswith("adapter/")
    }


def _opened(path: Path) -> IO[bytes]:
    """A regular file for reading; whatever else has taken its place since is not read."""
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise InputError(f"{path} is not a regular file any more; collect again")
    return stream


def _read(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """At most `size` bytes from where the stream stands, in pieces."""
    while size > 0 and (piece := stream.read(min(size, _PIECE_BYTES))):
        size -= len(piece)
        yield piece


def _write_export(layout: Layout, text: str, kept: dict[str, bytes]) -> None:
    """The folder of an export: its listing and the states as they were listed; old ones go."""
    folder = _folder(layout, id_of(text.encode()))
    for name, content in kept.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_text(folder / "listing", text)
    for other in layout.cache.glob("export_*/"):
        if other != folder and time.time() - other.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


def _folder(layout: Layout, export_id: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", export_id):
        raise InputError(f"{export_id!r} is not the id of an export; collect first")
    return layout.cache / f"export_{export_id}"


def export(layout: Layout, export_id: str, numbers: str, offset: int, most_bytes: int, token: str) -> dict[str, Any]:
    """Write files of a listing one behind the other into one piece; answers {"bytes", "before", "lines"}.

    `numbers`: places in the listing, as in "0-3,7"; `offset`: where to begin in the (only) file; `most_bytes`: how
    much of it at most; `token`: a name for the piece, so that two controllers do not meet. `before` is the sha256
    of the file's bytes up to the offset. A file that became shorter is filled up: its hash will tell.
    """
    folder = _folder(layout, export_id)
    if not (folder / "listing").is_file():
        raise InputError(f"there is no export {export_id[:12]} in {layout.cache}; collect first")
    entries = parse_own((folder / "listing").read_text(encoding="ascii"))
    wanted = [entries[number] for number in _numbers(numbers, len(entries))]
    if offset and (len(wanted) != 1 or offset > wanted[0].size):
        raise InputError(f"--offset {offset} needs one file of at least that size; it got {numbers}")
    piece, before = folder / f"piece-{_checked(token)}", hashlib.sha256()
    with piece.open("wb") as target:
        for entry in wanted:
            kept = folder / entry.path
            with _opened(kept if kept.exists() else layout.outputs / entry.path) as stream:
                for part in _read(stream, offset):
                    before.update(part)
                size = min(entry.size - offset, most_bytes)
                end = target.tell() + size
                for part in _read(stream, size):
                    target.write(part)
                target.truncate(end)
                target.seek(end)
    size = piece.stat().st_size
    return {"bytes": size, "before": before.hexdigest(), "lines": []}


def _checked(token: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{8}", token):
        raise InputError(f"the token {token!r} of a piece is not 8 hex digits; leave it to collect")
    return token


def _numbers(text: str, count: int) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not match or not first <= last < count:
            raise InputError(f"--files {part!r} names no file of an export of {count} files")
        found += range(first, last + 1)
    return found


def end_export(layout: Layout, export_id: str, token: str) -> dict[str, Any]:
    """Remove what an export needed, unless another controller has a piece of it; its files are verified there."""
    folder = _folder(layout, export_id)
    (folder / f"piece-{_checked(token)}").unlink(missing_ok=True)
    if not list(folder.glob("piece-*")):
        shutil.rmtree(folder, ignore_errors=True)
    return {"lines": []}


def write_score(path: Path, result: dict[str, Any]) -> None:
    """A score result as JSON for `trainer score`."""
    write_text(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
