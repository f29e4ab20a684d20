"""The data check behind an apply: asked of the Python that trains; where none can answer, that is said and no error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.bundle import small
from trainer.bundle import apply, data_check
from trainer.state import Layout

WHOLE = {"trainer/__main__.py": "", "trainer/__init__.py": "", "data/rows.jsonl": "{}\n"}
WARNING = {"severity": "warning", "file": "rows.jsonl"}
FAULT = {"severity": "error", "file": "rows.jsonl"}


@pytest.fixture(autouse=True)
def only_the_venv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_check, "LEAST_PYTHON", (99,))


def applied(folder: Path, files: dict[str, str]) -> Layout:
    layout = Layout(folder / "host")
    apply.apply(apply.Request(layout, small.pack(folder, files)))
    return layout


def answering(layout: Layout, script: str) -> None:
    """A venv whose python is this script."""
    python = layout.root / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def answer(layout: Layout, value: Any, code: int) -> None:
    (layout.root / "answer").write_text(json.dumps(value))
    answering(layout, f"cat {layout.root}/answer; exit {code}")


def test_the_trainer_of_the_release_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = applied(tmp_path, WHOLE)
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    words = layout.root / "words"
    said = """echo '{"lines": ["sound"], "findings": []}'"""
    answering(layout, f'(echo "$@"; pwd; echo "[$PYTHONPATH] $PYTHONDONTWRITEBYTECODE") > {words}; {said}')
    assert data_check.of_release(layout) == data_check.Findings(["sound"], [])
    assert words.read_text().splitlines() == [
        f"-m trainer --project-root {layout.root} check --data-only --json",
        f"{layout.root}/releases/{small.source_id(WHOLE)}",
        "[] 1",
    ]


def test_errors_are_told_from_warnings(tmp_path: Path) -> None:
    layout = applied(tmp_path, WHOLE)
    lines = ["warning: rows.jsonl: odd", "error: rows.jsonl: broken"]
    answer(layout, {"lines": lines, "findings": [WARNING, FAULT]}, 2)
    assert data_check.of_release(layout) == data_check.Findings(lines[:1], lines[1:])
    answer(layout, {"lines": lines[:1], "findings": [WARNING]}, 0)
    assert data_check.of_release(layout) == data_check.Findings(lines[:1], [])


@pytest.mark.parametrize(
    "script",
    ["echo 'No module named yaml' >&2; exit 1", "echo '[]'", "echo '{\"lines\": []}'", "exit 3", "printf '\\377'"],
)
def test_a_python_that_cannot_answer_is_no_error(tmp_path: Path, script: str) -> None:
    layout = applied(tmp_path, WHOLE)
    answering(layout, script)
    (line,), errors = data_check.of_release(layout)
    assert errors == [] and line.startswith("the data is not checked here (") and line.endswith(data_check.LATER)
    assert ("yaml" in line) == ("yaml" in script)


def test_without_any_python_that_is_said(tmp_path: Path) -> None:
    (line,), errors = data_check.of_release(applied(tmp_path, WHOLE))
    assert errors == [] and "there is no " in line and "venv/bin/python" in line


def test_the_python_that_runs_this_is_asked_where_there_is_no_venv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = applied(tmp_path, {**WHOLE, "trainer/__main__.py": 'print(\'{"lines": ["asked"], "findings": []}\')\n'})
    monkeypatch.setattr(data_check, "LEAST_PYTHON", sys.version_info[:2])
    assert data_check.of_release(layout).lines == ["asked"]
    answering(layout, "exit 1")
    assert data_check.of_release(layout).lines == ["asked"], "it can where the other cannot"


def test_one_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = applied(tmp_path, WHOLE)
    monkeypatch.setattr(data_check, "LIMIT_SECONDS", 0.2)
    answering(layout, "exec sleep 60")
    (line,), errors = data_check.of_release(layout)
    assert errors == [] and "it takes more than" in line


@pytest.mark.parametrize(
    ("missing", "lines"),
    [("trainer/__main__.py", ["this tree holds no trainer: no plan can run from it"]), ("data/rows.jsonl", [])],
)
def test_a_tree_without_trainer_or_data_is_not_asked(tmp_path: Path, missing: str, lines: list[str]) -> None:
    layout = applied(tmp_path, {name: text for name, text in WHOLE.items() if name != missing})
    answering(layout, "exit 1")
    assert data_check.of_release(layout) == data_check.Findings(lines, [])
