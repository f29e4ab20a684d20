"""The trainer's data check on a tree that was applied, by the Python that trains. Python 3.8. No torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from trainer import release
from trainer.state import Layout

LEAST_PYTHON = (3, 11)
LIMIT_SECONDS = 600.0
LATER = "the check before training will look at it"
SHOWN = 20


class Findings(NamedTuple):
    """Lines to show, and the errors among what was found, one line each."""

    lines: list[str]
    errors: list[str]


def of_release(layout: Layout) -> Findings:
    """What the trainer of the release in use says of the data that came with it.

    No Python that has the trainer's requirements, or none of them answers: a line says so, which is no error.
    """
    used = release.current(layout)
    if used is None:
        return Findings([], [])
    if not (used / "trainer" / "__main__.py").is_file():
        return Findings(["this tree holds no trainer: no plan can run from it"], [])
    if not (used / "data").is_dir():
        return Findings([], [])  # the data comes another way
    problem = f"there is no {_venv(layout)}"
    for python in _pythons(layout):
        answer, problem = _asked(python, layout, used)
        if answer is not None:
            return _read(answer)
    return Findings([f"the data is not checked here ({problem}); {LATER}"], [])


def _venv(layout: Layout) -> Path:
    return layout.root / "venv" / "bin" / "python"


def _pythons(layout: Layout) -> list[str]:
    """What may have the trainer's requirements: the project's own, then the one that runs this."""
    found = [str(_venv(layout))] if os.access(_venv(layout), os.X_OK) else []
    if sys.version_info >= LEAST_PYTHON and sys.executable:
        found.append(sys.executable)
    return found


def _asked(python: str, layout: Layout, used: Path) -> tuple[dict[str, Any] | None, str]:
    """(the answer of the data check, why there is none)."""
    words = [python, "-m", "trainer", "--project-root", str(layout.root), "check", "--data-only", "--json"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            words, cwd=str(used), env={**kept, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"it takes more than {LIMIT_SECONDS:.0f} s"
    except OSError as problem:
        return None, f"{python}: {problem.strerror}"
    try:
        answer = json.loads(done.stdout.decode("utf-8"))
        if isinstance(answer["findings"], list) and isinstance(answer["lines"], list):
            return answer, ""
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"it ended with {done.returncode}"]
    return None, f"{python}: {said[-1][:200]}"


def _read(answer: dict[str, Any]) -> Findings:
    errors = sum(isinstance(item, dict) and item.get("severity") == "error" for item in answer["findings"])
    lines = [str(line) for line in answer["lines"]]
    if not errors:
        return Findings(lines, [])
    found = [line for line in lines if line.startswith("error")] or lines
    return Findings([line for line in lines if line not in found], found)
