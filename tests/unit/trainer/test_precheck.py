"""The check before anything is loaded: packages, base model, parameters and data, all findings at once."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from trainer import copies, precheck, steps
from trainer.config import Parameters
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


def test_the_data_alone_is_looked_at_without_a_model(tmp_path: Path, tiny_data: Path) -> None:
    sound = precheck.inspect_data(str(tiny_data))
    assert not sound.findings and sound.lines[-1].startswith("data is sound: sample 2, style 3, writing 2, all 5 rows")
    broken = shutil.copytree(tiny_data, tmp_path / "data")
    (broken / "training" / "processed" / "style_sft.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="style_sft.jsonl:1"):
        precheck.inspect_data(str(broken)).raise_errors()


def test_only_errors_are_raised() -> None:
    warning = Finding("warning", "packages", 0, "torch", "is 2.0", "install it")
    precheck.Inspection([warning], []).raise_errors()
    error = Finding("error", "parameters", 0, "model_name_or_path", "it is not there", "correct it")
    with pytest.raises(InputError, match="^it is not there; correct it$"):
        precheck.Inspection([warning, error], []).raise_errors()


def looked(parameters: Any, layout: Any) -> tuple[list[str], str]:
    """The problems found on a base, and the lines beside them."""
    found = precheck.check_base(parameters, layout)
    return [item.problem for item in found.findings], "\n".join(found.notes)


def test_a_model_of_a_hub_is_looked_at_before_it_is_fetched(online: Any, layout: Any, model_hub: Any) -> None:
    problems, notes = looked(online(), layout)
    assert problems == [] and f"files come from Hugging Face ({model_hub.url}), commit " in notes
    assert not layout.models.exists(), "a look changes nothing"
    problems, _ = looked(online(model_revision="v9"), layout)
    assert len(problems) == 1 and "it has no revision 'v9'" in problems[0]


def test_a_model_that_answers_no_questions_is_refused_before_it_is_fetched(
    online: Any, layout: Any, model_hub: Any
) -> None:
    files = dict(model_hub.commits[model_hub.branches["main"]])
    model_hub.publish({**files, "config.json": b'{"architectures": ["BertForMaskedLM"]}'}, "encoder")
    model_hub.publish({name: files[name] for name in files if name != "tokenizer_config.json"}, "bare")
    assert looked(online(model_revision="encoder"), layout)[0] == ["the base model 'acme/Tiny-3' is a BertForMaskedLM"]
    assert "has no tokenizer_config.json" in looked(online(model_revision="bare"), layout)[0][0]


def test_a_copy_that_is_whole_is_looked_at_itself_and_gives_the_lengths(
    online: Any, layout: Any, model_hub: Any
) -> None:
    folder = copies.fetch(online(), layout, lambda text: None)
    model_hub.stop()
    found = precheck.check_base(online(), layout)
    assert (found.findings, found.notes, found.folder) == ([], [], folder)


def test_a_moved_branch_is_told_before_the_training(online: Any, layout: Any, model_hub: Any) -> None:
    copies.fetch(online(), layout, lambda text: None)
    model_hub.publish({**model_hub.commits[model_hub.branches["main"]], "generation_config.json": b"{}"})
    problems, notes = looked(online(), layout)
    assert problems == [] and "acme/Tiny-3: main moved from" in notes


@pytest.mark.parametrize(
    ("text", "problem"),
    [('{"architectures": ["Qwen3ForCausalLM"]}', ""), ("{}", ""), ("{", "cannot be read (JSONDecodeError)"),
     ('{"architectures": ["BertForMaskedLM"]}', "is a BertForMaskedLM"), ("[]", "cannot be read (AttributeError)")],
)  # fmt: skip
def test_the_configuration_of_a_local_model_is_read(line: Any, text: str, problem: str) -> None:
    (line.base / "config.json").write_text(text, encoding="utf-8")
    problems, _ = looked(Parameters(model_name_or_path=str(line.base)), line.layout)
    assert len(problems) == bool(problem) and all(problem in found for found in problems)


def test_a_local_model_without_safetensors_is_refused(line: Any) -> None:
    (line.base / "model.safetensors").rename(line.base / "pytorch_model.bin")
    problems, _ = looked(Parameters(model_name_or_path=str(line.base)), line.layout)
    assert len(problems) == 1 and "has no safetensors weights" in problems[0]
