"""What comes home: the run folder, one archive of everything, and its verified arrival. No torch.

The host packs; the controller trusts nothing in the archive: regular files with plain names only, written by
us into a fresh private folder, compared with the manifest both ways, then put in place by renames.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from trainer import diagnose, fingerprint, stages, summary
from trainer.errors import InputError, Interrupted
from trainer.state import Layout, read_json, sync_folder, write_json, write_text

MANIFEST = "MANIFEST.sha256"
COLLECTED = ".collected.json"  # marks a folder of outputs as a copy; nothing is trained in there
_NAME = re.compile(r"(adapter|logs|state|training_sync)(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_./-]+)")


def collect(layout: Layout) -> dict[str, Any]:
    """Make the run folder, or keep the newest one when it would be the same; describes what is to be fetched."""
    files = _run_files(layout)
    text = _manifest({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    runs = sorted(p for p in layout.runs.glob("run_*") if p.is_dir())
    if not runs or _read(runs[-1] / MANIFEST) != text:
        runs.append(_write_run(layout, files, text))
    listed = _export_files(layout, runs[-1].name)
    hashes = {name: fingerprint.of_file(layout.outputs / name) for name in listed}
    size = sum((layout.outputs / name).stat().st_size for name in listed)
    return {
        "run": runs[-1].name,
        "export_id": hashlib.sha256(_manifest(hashes).encode()).hexdigest(),
        "files": len(listed),
        "bytes": size,
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


def _read(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _manifest(hashes: dict[str, str]) -> str:
    """A manifest as sha256sum reads it."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def _write_run(layout: Layout, files: dict[str, bytes], manifest: str) -> Path:
    stamp = f"{datetime.now(timezone.utc):%Y%m%d_%H%M%S}"
    target = layout.runs / f"run_{stamp}"
    number = 1
    while target.exists():
        number += 1
        target = layout.runs / f"run_{stamp}_{number}"
    layout.runs.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=layout.runs))
    try:
        for name, content in {**files, MANIFEST: manifest.encode()}.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(content)
        fresh.chmod(0o755)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    sync_folder(layout.runs)
    return target


def _export_files(layout: Layout, run: str) -> list[str]:
    """Everything that goes home, as paths below outputs/: adapters, logs, states, the run."""
    folders = [layout.adapters / stage.adapter for stage in stages.load().stages]
    folders += [layout.logs, layout.state, layout.runs / run]
    found = [
        path.relative_to(layout.outputs).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path != layout.lock
    ]
    return sorted(name for name in found if _NAME.fullmatch(name))


def export(layout: Layout, run: str, archive: Path) -> dict[str, Any]:
    """Pack a run with all adapters, logs and states into one tar, its manifest first."""
    if not re.fullmatch(r"run_[0-9_]+", run) or not (layout.runs / run).is_dir():
        raise InputError(f"there is no run {run!r} in {layout.runs}; collect first")
    names = _export_files(layout, run)
    hashes = {name: fingerprint.of_file(layout.outputs / name) for name in names}
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        text = _manifest(hashes).encode()
        with tempfile.TemporaryFile() as stream:
            stream.write(text)
            stream.seek(0)
            _add(tar, MANIFEST, len(text), stream)
        for name in names:
            path = layout.outputs / name
            with path.open("rb") as content:
                _add(tar, name, os.fstat(content.fileno()).st_size, content)
    return {"archive": str(archive), "sha256": fingerprint.of_file(archive), "lines": []}


def _add(tar: tarfile.TarFile, name: str, size: int, stream: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, stream)


def receive(archive: Path, sha256: str, output_dir: Path) -> dict[str, Any]:
    """Verify an archive from a host and publish it below `output_dir`; nothing there is touched before.

    Interrupted (exit code 7) when the archive, a member or the manifest does not hold.
    """
    found = fingerprint.of_file(archive)
    if found != sha256:
        raise Interrupted(f"the archive arrived as {found[:12]}, the host sent {sha256[:12]}; collect again")
    output_dir.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".incoming-", dir=output_dir))  # 0700
    try:
        manifest = _unpack(archive, fresh)
        for name in sorted({unit_of(path) for path in manifest}):
            _put(fresh / name, output_dir / name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    export_id = hashlib.sha256(_manifest(manifest).encode()).hexdigest()
    lines = closing_lines(output_dir, manifest)
    record = {"schema": 1, "export_id": export_id, "files": manifest, "lines": lines}
    write_json(output_dir / COLLECTED, record)
    return {"export_id": export_id, "lines": lines}


def _unpack(archive: Path, fresh: Path) -> dict[str, str]:
    """Write the members of an archive below `fresh`; returns the manifest, equal to the tree both ways."""
    manifest: dict[str, str] = {}
    seen: set[str] = set()
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise Interrupted(f"{member.name!r} in the archive is not a regular file; nothing was taken over")
                if not manifest:
                    manifest = _parse_manifest(member, stream)
                elif member.name not in manifest or member.name in seen:
                    raise Interrupted(
                        f"{member.name!r} is not, or twice, in the archive's manifest; nothing was taken over"
                    )
                else:
                    seen.add(member.name)
                    _write_member(fresh / member.name, stream, manifest[member.name])
    except tarfile.TarError as problem:
        raise Interrupted(f"the archive is damaged ({problem}); collect again") from None
    missing = sorted(set(manifest) - seen)
    if missing or not manifest:
        raise Interrupted(f"the archive lacks {missing[0] if missing else MANIFEST!r}; collect again")
    return manifest


def _parse_manifest(member: tarfile.TarInfo, stream: IO[bytes]) -> dict[str, str]:
    if member.name != MANIFEST:
        raise Interrupted(f"the archive begins with {member.name!r}, not with {MANIFEST}; nothing was taken over")
    manifest: dict[str, str] = {}
    for number, line in enumerate(stream.read().decode("ascii", "replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if not match or not _NAME.fullmatch(match[2]) or match[2] in manifest:
            raise Interrupted(f"line {number} of the archive's manifest is {line[:80]!r}; nothing was taken over")
        manifest[match[2]] = match[1]
    return manifest


def _write_member(path: Path, stream: IO[bytes], expected: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "wb") as target:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    if digest.hexdigest() != expected:
        raise Interrupted(f"{path.name} in the archive does not match its manifest; collect again")


def unit_of(path: str) -> str:
    """What is put in place as a whole: an adapter's folder, a run's folder, or a single file."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] in ("adapter", "training_sync") else path


def _put(new: Path, place: Path) -> None:
    """Rename `new` into place; what was there is removed only after that."""
    place.parent.mkdir(parents=True, exist_ok=True)
    old = place.with_name(f".{place.name}.old")
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(place.parent)


def closing_lines(output_dir: Path, manifest: dict[str, str]) -> list[str]:
    """Where the summary, the adapters and the best model are, as the last lines of a run."""
    records = [asdict(stage) for stage in stages.load().stages]
    context = summary.collect_context(output_dir.parent, records, outputs=output_dir)
    runs = sorted({unit_of(name) for name in manifest if name.startswith("training_sync/")})
    if runs:
        context["run"] = runs[-1].split("/")[1]
    return summary.closing_lines(context, str(output_dir))


def imported(output_dir: Path) -> dict[str, Any]:
    """{"export_id", "lines"} of what is there already, an empty id when a file of it changed or is gone."""
    record = read_json(output_dir / COLLECTED)
    if record is None:
        return {"export_id": "", "lines": []}
    for name, expected in record["files"].items():
        path = output_dir / name
        if not path.is_file() or fingerprint.of_file(path) != expected:
            return {"export_id": "", "lines": []}
    return {"export_id": record["export_id"], "lines": record["lines"]}


def write_score(path: Path, result: dict[str, Any]) -> None:
    """A score result as JSON for `trainer score`."""
    import json

    write_text(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
