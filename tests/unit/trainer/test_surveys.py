"""What is remembered of a big file, and when it is looked at again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer import data, fingerprint, lines, stages, surveys
from trainer.data import Survey

TABLE = stages.load()
STAGE = TABLE.stage("style")


@pytest.fixture
def root(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file counts as big; the stages whose files are parsed are noted."""
    noted: list[str] = []
    survey = data.survey

    def counted(root: Path, table: stages.StageTable, stage: stages.Stage) -> Survey:
        noted.append(stage.name)
        return survey(root, table, stage)

    monkeypatch.setattr(lines, "BIG_BYTES", 1)
    monkeypatch.setattr(data, "survey", counted)
    return noted


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def test_a_file_that_did_not_change_is_parsed_once(root: Path, tmp_path: Path, walks: list[str]) -> None:
    leaked = {"id": "leaked", "query": "高斯定理？", "expected": {"key_points": ["电通量"]}}
    append(root / TABLE.benchmarks["style"], json.dumps(leaked) + "\n")
    first = surveys.of_stage(root, TABLE, STAGE, tmp_path / "cache")
    again = surveys.of_stage(root, TABLE, STAGE, tmp_path / "cache")
    assert walks == ["style"]
    assert again == first == data.survey(root, TABLE, STAGE)
    assert first.rows == 3 and len(first.findings) == 1
    assert first.leaks == {"style": [("leaked", "style-3", "the same as")], "writing": []}


def test_findings_are_remembered_with_the_count_of_those_not_told(root: Path, tmp_path: Path, walks: list[str]) -> None:
    append(root / STAGE.data, "{}\n" * 2000)
    first, again = (surveys.of_stage(root, TABLE, STAGE, tmp_path / "cache") for _ in range(2))
    assert walks == ["style"] and again.findings == first.findings
    assert sum(item.count for item in again.findings) == 4000


@pytest.mark.parametrize(
    "change",
    [
        lambda root: append(root / STAGE.data, "\n"),
        lambda root: append(root / TABLE.benchmarks["writing"], "\n"),
    ],
)  # fmt: skip
def test_a_file_that_changed_is_parsed_again(
    root: Path, tmp_path: Path, walks: list[str], change: Callable[[Path], None]
) -> None:
    surveys.of_stage(root, TABLE, STAGE, tmp_path)
    change(root)
    surveys.of_stage(root, TABLE, STAGE, tmp_path)
    assert walks == ["style", "style"]


def test_other_code_parses_again(root: Path, tmp_path: Path, walks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    surveys.of_stage(root, TABLE, STAGE, tmp_path)
    monkeypatch.setattr(fingerprint, "of_code", lambda: "other")
    surveys.of_stage(root, TABLE, STAGE, tmp_path)
    assert walks == ["style", "style"]


def test_a_memory_that_is_broken_is_no_memory(root: Path, tmp_path: Path, walks: list[str]) -> None:
    first = surveys.of_stage(root, TABLE, STAGE, tmp_path)
    (memory,) = tmp_path.glob("survey_*.json")
    memory.write_text("{", encoding="utf-8")
    assert surveys.of_stage(root, TABLE, STAGE, tmp_path) == first
    assert surveys.of_stage(root, TABLE, STAGE, tmp_path) == first
    assert walks == ["style", "style"]


def test_nothing_is_remembered_of_a_file_that_changed_while_it_was_read(
    root: Path, tmp_path: Path, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = data.survey

    def edited(*words: object) -> Survey:
        append(root / STAGE.data, "\n")
        return survey(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(data, "survey", edited)
    surveys.of_stage(root, TABLE, STAGE, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_small_file_and_one_that_is_missing_leave_nothing_behind(root: Path, tmp_path: Path) -> None:
    assert surveys.of_stage(root, TABLE, STAGE, tmp_path / "cache").findings == []
    (root / STAGE.data).unlink()
    assert [f.line for f in surveys.of_stage(root, TABLE, STAGE, tmp_path / "cache").findings] == [0]
    assert not (tmp_path / "cache").exists()
