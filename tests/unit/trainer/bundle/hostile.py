"""Hostile bundles, each with a harmless twin, and harmless ones that look odd.

`python -m tests.unit.trainer.bundle.hostile` prints them as a table.

A case builds its bundle twice, with one choice made the one or the other way; what it writes is made by hostile_tar.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from tests.unit.trainer.bundle import (
    hostile_framing,
    hostile_listing,
    hostile_metadata,
    hostile_names,
    hostile_outer,
    hostile_types,
)
from tests.unit.trainer.bundle.hostile_case import Bundle, Case, Fifo, Folder, Link, Make
from tests.unit.trainer.bundle.hostile_layouts import LAYOUTS

CASES: list[Case] = [
    *hostile_names.CASES,
    *hostile_types.CASES,
    *hostile_metadata.CASES,
    *hostile_framing.CASES,
    *hostile_outer.CASES,
    *hostile_listing.CASES,
]
CANARIES = ("canary", "newfile")


def outside(folder: Path) -> Path:
    """The folder with canaries that links and absolute names aim at; made when it is not there."""
    path = folder / "outside"
    path.mkdir(exist_ok=True)
    for name in CANARIES:
        if not (path / name).exists():
            (path / name).write_text("alive\n")
    return path


def write_files(bundle: Bundle, folder: Path) -> str:
    """Lay the files of a bundle into a new folder; the path of the bundle itself."""
    folder.mkdir(parents=True)
    for name, content in bundle.files.items():
        if isinstance(content, Link):
            (folder / name).symlink_to(content.target)
        elif isinstance(content, Folder):
            (folder / name).mkdir()
        elif isinstance(content, Fifo):
            os.mkfifo(folder / name)
        else:
            (folder / name).write_bytes(content)
    return str(folder / bundle.name)


def write_all(folder: Path) -> list[dict[str, Any]]:
    """Write every case, its twin and every layout below `folder`, and an index of what to judge: cases.json.

    One row each: {"name", "bundle" (path), "caps", "without_sha256"}.
    """
    canaries, rows = outside(folder), []
    for case in CASES:
        for hostile in (True, False):
            name = case.name if hostile else f"{case.name}.twin"
            path = write_files(case.make(Make(hostile, canaries)), folder / "bundles" / name)
            rows.append({"name": name, "bundle": path, "caps": case.caps, "without_sha256": case.without_sha256})
    for layout in LAYOUTS:
        path = write_files(layout.make(Make(False, canaries)), folder / "bundles" / layout.name)
        rows.append({"name": layout.name, "bundle": path, "caps": {}, "without_sha256": layout.without_sha256})
    (folder / "cases.json").write_text(json.dumps(rows))
    return rows


def table() -> str:
    """The cases as markdown: how many of each class, then each one, then what looks odd and is accepted."""
    counts = Counter(case.kind for case in CASES)
    lines = ["| class | hostile cases, each with a twin |", "|---|---|"]
    lines += [f"| {kind} | {count} |" for kind, count in counts.items()]
    lines += [f"| all | {len(CASES)} |", "", "| case | what is hostile | from |", "|---|---|---|"]
    lines += [f"| {case.name} | {case.what} | {case.origin} |" for case in CASES]
    lines += ["", "| accepted | what looks odd | from |", "|---|---|---|"]
    lines += [f"| {layout.name} | {layout.what} | {layout.origin} |" for layout in LAYOUTS]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
