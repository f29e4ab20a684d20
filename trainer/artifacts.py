"""What comes home: the run folder, one archive of everything, and its verified arrival. No torch.

The host packs; the controller trusts nothing in the archive: regular files with plain names only, written by
us into a fresh private folder, compared with the manifest both ways, then put in place by renames.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
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
    wanted = {**files, MANIFEST: text.encode()}
    if not runs or any(_bytes(runs[-1] / name) != content for name, content in wanted.items()):
        runs.append(_write_run(layout, wanted))
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


def _manifest(hashes: dict[str, str]) -> str:
    """A manifest as sha256sum reads it."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def _write_run(layout: Layout, files: dict[str, bytes]) -> Path:
    stamp = f"{datetime.now(timezone.utc):%Y%m%d_%H%M%S}"
    target = layout.runs / f"run_{stamp}"
    number = 1
    while target.exists():
        number += 1
        target = layout.runs / f"run_{stamp}_{number}"
    layout.runs.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=layout.runs))
    try:
        for name, content in files.items():
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

    Interrupted (exit code 7) when the archive, a member or the manifest does not hold, InputError when
    `output_dir` is a folder of outputs that is trained in.
    """
    found = fingerprint.of_file(archive)
    if found != sha256:
        raise Interrupted(f"the archive arrived as {found[:12]}, the host sent {sha256[:12]}; collect again")
    output_dir.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".incoming-", dir=output_dir))  # 0700
    try:
        manifest = _unpack(archive, fresh)
        export_id = hashlib.sha256(_manifest(manifest).encode()).hexdigest()
        lines = closing_lines(fresh, manifest, output_dir)
        if is_trained_in(output_dir):
            if not _is_there(output_dir, manifest):
                raise InputError(f"a host trains in {output_dir} itself; name another folder for what comes home")
            return {"export_id": export_id, "lines": lines}  # the host's own outputs: they are home already
        _publish(fresh, output_dir, sorted({unit_of(path) for path in manifest}))
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    record = {"schema": 1, "export_id": export_id, "files": manifest, "lines": lines}
    write_json(output_dir / COLLECTED, record)
    return {"export_id": export_id, "lines": lines}


def is_trained_in(outputs: Path) -> bool:
    """Whether a folder of outputs is a host's own: a plan with a supervisor's lock, which never comes home."""
    here = all((outputs / "state" / name).exists() for name in ("plan.json", "supervisor.lock"))
    return here and not (outputs / COLLECTED).exists()


def _is_there(outputs: Path, manifest: dict[str, str]) -> bool:
    paths = ((outputs / name, expected) for name, expected in manifest.items())
    return all(path.is_file() and fingerprint.of_file(path) == expected for path, expected in paths)


def _unpack(archive: Path, fresh: Path) -> dict[str, str]:
    """Write the members of an archive below `fresh`; returns the manifest, equal to the tree both ways."""
    manifest: dict[str, str] = {}
    seen: set[str] = set()
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                stream = tar.extractfile(member) if plain else None
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
    text = stream.read().decode("ascii", "replace")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        match = _LINE.fullmatch(line)
        folders = {path.as_posix() for path in PurePosixPath(match[2]).parents} if match else set()
        if not match or not _NAME.fullmatch(match[2]) or match[2] in manifest or not folders.isdisjoint(manifest):
            raise Interrupted(f"line {number} of the archive's manifest is {line[:80]!r}; nothing was taken over")
        manifest[match[2]] = match[1]
    if _manifest(manifest) != text:
        raise Interrupted("the archive's manifest is not as it was written; nothing was taken over")
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


def _publish(fresh: Path, output_dir: Path, names: list[str]) -> None:
    """Rename everything into place; what was there comes back when one of the renames fails."""
    moved: list[tuple[Path, Path, bool]] = []
    try:
        for name in names:
            place = output_dir / name
            place.parent.mkdir(parents=True, exist_ok=True)
            old = place.with_name(f".{place.name}.old")
            _remove(old)
            there = os.path.lexists(place)
            moved.append((place, old, there))
            if there:
                place.rename(old)
            os.replace(fresh / name, place)
    except BaseException:
        for place, old, there in reversed(moved):
            if not there or os.path.lexists(old):
                _remove(place)
            if os.path.lexists(old):
                old.rename(place)
        raise
    for place, old, _ in moved:
        sync_folder(place.parent)
        _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def closing_lines(outputs: Path, manifest: dict[str, str], shown: Path) -> list[str]:
    """Where the summary, the adapters and the best model are, as the last lines of a run; `shown` is their folder.

    Only what came with this export counts, not what an earlier host left in the same place.
    """
    records = [asdict(stage) for stage in stages.load().stages]
    context = summary.collect_context(outputs.parent, records, outputs=outputs)
    runs = sorted({unit_of(name) for name in manifest if name.startswith("training_sync/")})
    if runs:
        context["run"] = runs[-1].split("/")[1]
    return summary.closing_lines(context, str(shown))


def imported(output_dir: Path) -> dict[str, Any]:
    """{"export_id", "lines"} of what is there already, an empty id when a file of it changed or is gone."""
    record = read_json(output_dir / COLLECTED)
    if record is None:
        return {"export_id": "", "lines": []}
    if not _is_there(output_dir, record["files"]):
        return {"export_id": "", "lines": []}
    return {"export_id": record["export_id"], "lines": record["lines"]}


def write_score(path: Path, result: dict[str, Any]) -> None:
    """A score result as JSON for `trainer score`."""
    write_text(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
