"""The survey of a stage's data, remembered for big files, so that a plan parses them once for it. No torch."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer import data, digest, fingerprint
from trainer.data import Survey
from trainer.lines import Finding, is_big
from trainer.stages import Stage, StageTable
from trainer.state import StateError, read_json, write_json


def of_stage(root: Path, table: StageTable, stage: Stage, cache: Path | None = None) -> Survey:
    """What the files of a stage hold; a big one that was surveyed before, with this code, is only hashed.

    Nothing is remembered of a file that changed while it was read, and none of it without a `cache`.
    """
    path = root / stage.data
    if cache is None or not is_big(path):
        return data.survey(root, table, stage)
    memory = cache / f"survey_{stage.name}.json"
    key = _key(root, table, stage, path)
    known = _read(memory)
    if key and known.get("key") == key:
        return _survey(known["survey"])
    found = data.survey(root, table, stage)
    if key and key == _key(root, table, stage, path, found.sha256):
        with contextlib.suppress(OSError):  # a full disk: it is surveyed again
            write_json(memory, {"schema": 1, "key": key, "survey": asdict(found)})
    return found


def _key(root: Path, table: StageTable, stage: Stage, path: Path, sha256: str = "") -> str:
    """What a survey depends on, empty when a file cannot be read; `sha256` of the training file, if it is known."""
    try:
        hashed = sha256 or digest.of_file(path)
        judged = fingerprint.of_files(root, sorted(table.benchmarks.values()))
    except OSError:
        return ""
    return digest.of_value([stage.name, stage.data, list(stage.benchmarks), hashed, judged, fingerprint.of_code()])


def _read(memory: Path) -> dict[str, Any]:
    try:
        return read_json(memory) or {}
    except StateError:  # a memory, not a state: without it the data is looked at again
        return {}


def _survey(kept: dict[str, Any]) -> Survey:
    leaks = {name: [(a, t, how) for a, t, how in found] for name, found in kept["leaks"].items()}
    return Survey([Finding(**item) for item in kept["findings"]], kept["rows"], kept["sha256"], leaks)
