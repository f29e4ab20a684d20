"""The check before anything is loaded: packages, base model, parameters and data, all findings at once."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from trainer import precheck, steps
from trainer.data import Finding
from trainer.errors import InputError

NOT_BUILT = {"model_name_or_path": "embedded"}  # no tokenizer to load
INSTALLED = {"torch": "2.13.0+cpu", "peft": "0.21.2", "trl": "1.16.0"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name not in INSTALLED:
            raise metadata.PackageNotFoundError(name)
        return INSTALLED[name]

    monkeypatch.setattr(metadata, "version", version)


def requirements(folder: Path, text: str) -> Path:
    path = folder / "trainer.txt"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("peft==0.21.2\n", {}),
        ("torch==2.13.0          # the index offers the build\n", {}),
        ("# peft==9.9\n-r other.txt\n\ntrl==1.16.0\n", {}),
        ("peft==0.21.3\n", {"peft": "is 0.21.2"}),
        ("torch==2.13.1\n", {"torch": "is 2.13.0+cpu"}),
        ("torch==2.13\n", {"torch": "is 2.13.0+cpu"}),
        ("bitsandbytes==0.50.2\n", {"bitsandbytes": "is not installed"}),
        ("peft==1\ntrl==1.16.0\nabsent==2\n", {"peft": "is 0.21.2", "absent": "is not installed"}),
    ],
)
@pytest.mark.usefixtures("installed")
def test_packages_that_are_missing_or_of_another_version_are_named(
    tmp_path: Path, text: str, found: dict[str, str]
) -> None:
    findings = precheck.check_packages(requirements(tmp_path, text))
    assert {item.field: item.problem for item in findings} == found
    assert {(item.severity, item.file) for item in findings} <= {("warning", "packages")}
    assert all("is pinned: install requirements/trainer.txt" in item.remedy for item in findings)


def test_without_a_list_of_packages_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert precheck.check_packages(tmp_path / "trainer.txt") == []


def inspect(line: Any, *names: str, **more: Any) -> precheck.Inspection:
    return precheck.inspect(line.plan(*names, **more), line.layout)


def spoil(line: Any, name: str) -> None:
    next(line.data.rglob(name)).write_text("{\n", encoding="utf-8")


def test_a_wrong_package_is_a_warning_and_stops_nothing(
    line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requirements").mkdir()
    requirements(tmp_path / "requirements", "no-such-package==1.0\n")
    monkeypatch.setattr(steps, "code_root", lambda: tmp_path)
    (tmp_path / "data" / "corpus").mkdir(parents=True)
    (tmp_path / "data" / "corpus" / "course.md").write_text("电场", encoding="utf-8")
    found = inspect(line, "sample", parameters=NOT_BUILT)
    assert [item.field for item in found.findings] == ["no-such-package"] and found.errors == []
    found.raise_errors()
    assert found.lines[-1].startswith("data is sound: sample 1 rows")


def test_faults_of_data_and_base_come_together(line: Any) -> None:
    spoil(line, "style_sft.jsonl")
    found = inspect(line, "sample", "style", parameters={"model_name_or_path": "./nowhere"})
    assert [(item.file, item.field) for item in found.errors] == [
        ("parameters", "model_name_or_path"), ("training/processed/style_sft.jsonl", ""),
    ]  # fmt: skip
    assert not any(text.startswith("data is sound") for text in found.lines)
    with pytest.raises(InputError, match="the data has 2 faults"):
        found.raise_errors()


def test_a_missing_base_alone_is_a_wrong_parameter_and_no_fault_of_the_data(line: Any) -> None:
    found = inspect(line, "sample", "style", parameters={"model_name_or_path": "./nowhere"})
    with pytest.raises(InputError) as caught:
        found.raise_errors()
    assert str(caught.value) == "the base model './nowhere' is not a folder of this host; correct model_name_or_path"
    assert inspect(line, "sample", "style", parameters=NOT_BUILT).errors == []


def test_a_base_without_a_tokenizer_is_a_finding_among_the_others(line: Any) -> None:
    spoil(line, "style_sft.jsonl")
    found = inspect(line, "sample", "style")  # the line's base is a folder with a config.json and no more
    base, data = found.errors
    assert (base.file, base.field, base.remedy) == ("parameters", "model_name_or_path", "correct model_name_or_path")
    assert base.problem.startswith(f"no tokenizer could be loaded from {str(line.base)!r}")
    assert data.file == "training/processed/style_sft.jsonl"


def test_lengths_are_checked_with_the_tokenizer_that_is_there(line: Any, tiny_base: Path) -> None:
    short = inspect(line, "sample", parameters={"model_name_or_path": str(tiny_base), "max_length": 16})
    (error,) = short.errors
    assert error.file == "training/processed/style_sft_sample.jsonl" and "the limit is 16" in str(error)
    enough = inspect(line, "sample", parameters={"model_name_or_path": str(tiny_base), "max_length": 512})
    assert enough.errors == []


def test_without_a_tokenizer_the_lengths_are_promised_for_later_and_once(line: Any) -> None:
    found = inspect(line, parameters=NOT_BUILT)
    promises = [text for text in found.lines if text.startswith("lengths are checked when the base model is there")]
    assert len(promises) == 1
    assert "data is sound: sample 1, style 2, writing 2, all 4 rows" in found.lines[-1]


def test_only_errors_are_raised() -> None:
    warning = Finding("warning", "packages", 0, "torch", "is 2.0", "install it")
    precheck.Inspection([warning], []).raise_errors()
    error = Finding("error", "parameters", 0, "model_name_or_path", "it is not there", "correct it")
    with pytest.raises(InputError, match="^it is not there; correct it$"):
        precheck.Inspection([warning, error], []).raise_errors()
