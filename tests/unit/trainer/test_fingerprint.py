"""What a result is bound to: which change changes which hash, and which does not."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest

from trainer import config, fingerprint, stages
from trainer.config import Parameters
from trainer.errors import InputError
from trainer.state import Layout

PACKAGE = Path(fingerprint.__file__).parent
# Which stage runs, where files lie and how a failure is named shape no answer and no score.
FRAME = {"arguments", "config", "digest", "errors", "fingerprint", "process", "stages", "state"}


def imported_by(name: str) -> set[str]:
    """The trainer modules that one module names in its imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "trainer":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainer."):
            found.add(str(node.module).split(".")[1])
    return found


def closure(names: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= imported_by(name) - found - FRAME
    return found


def test_every_module_that_shapes_a_score_is_part_of_its_fingerprint() -> None:
    assert closure(("evaluate", "generate", "metrics")) <= set(fingerprint.EVALUATION_MODULES)


def test_the_named_modules_exist() -> None:
    for name in (*fingerprint.TRAINING_MODULES, *fingerprint.EVALUATION_MODULES):
        assert (PACKAGE / f"{name}.py").is_file(), f"a missing {name} would be hashed as missing for ever"


def test_a_missing_file_is_not_an_empty_one(tmp_path: Path) -> None:
    missing = fingerprint.of_files(tmp_path, ["a"])
    (tmp_path / "a").write_bytes(b"")
    empty = fingerprint.of_files(tmp_path, ["a"])
    (tmp_path / "a").write_bytes(b"x")
    assert len({missing, empty, fingerprint.of_files(tmp_path, ["a"])}) == 3


def test_an_adapter_needs_both_files_and_each_byte_counts(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert fingerprint.of_adapter(tmp_path) is None
    (tmp_path / "adapter_model.safetensors").write_bytes(b"w1")
    first = fingerprint.of_adapter(tmp_path)
    (tmp_path / "eval_report_style.md").write_text("a report is no part of it")
    assert first and fingerprint.of_adapter(tmp_path) == first
    (tmp_path / "adapter_model.safetensors").write_bytes(b"w2")
    assert fingerprint.of_adapter(tmp_path) != first


def base_of(layout: Layout, name: Path | str, corpus: Path, **more: Any) -> str:
    return fingerprint.of_base(Parameters(model_name_or_path=str(name), **more), layout, corpus)


def test_a_hub_model_is_known_by_its_source_and_commit(
    layout: Layout, tmp_path: Path, model_hub: Any, online: Any
) -> None:
    commit = model_hub.branches["main"]
    model_hub.publish({**model_hub.commits[commit], "generation_config.json": b"{}"}, "v2")
    variants: list[dict[str, Any]] = [{}, {"model_revision": "v2"}, {"use_modelscope": True}]
    found = [fingerprint.of_base(online(**more), layout, tmp_path) for more in variants]
    assert len(set(found)) == 3
    assert fingerprint.of_base(online(model_revision=commit), layout, tmp_path) == found[0], "main is this commit"


def test_a_local_model_is_known_by_its_files(layout: Layout, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(InputError, match="holds no config.json"):
        base_of(layout, folder, tmp_path)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w1")
    first = base_of(layout, folder, tmp_path)
    assert base_of(layout, folder, tmp_path) == first
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert base_of(layout, folder, tmp_path) == first, "read again, and the same"
    (folder / "model.safetensors").write_bytes(b"w2")
    assert base_of(layout, folder, tmp_path) != first


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~/nowhere-model"])
def test_a_path_that_is_no_folder_is_not_taken_for_a_hub_name(layout: Layout, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is not a folder of this host; correct model_name_or_path"):
        base_of(layout, name, tmp_path)


def test_the_embedded_base_is_known_by_its_corpus(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "course.md").write_text("电场", encoding="utf-8")
    first = base_of(layout, "embedded", tmp_path)
    assert base_of(layout, "embedded", tmp_path, learning_rate=0.5) == first
    (tmp_path / "course.md").write_text("磁场", encoding="utf-8")
    assert base_of(layout, "embedded", tmp_path) != first


def training(data_root: Path, **changes: Any) -> dict[str, str]:
    previous, base_hash = changes.pop("previous", "p"), changes.pop("base_hash", "b")
    stage = stages.load().stage("style")
    return fingerprint.training_parts(stage, Parameters(**changes), data_root, base_hash, previous)


@pytest.mark.parametrize(
    ("change", "part"),
    [({"learning_rate": 0.5}, "parameters"), ({"seed": 1}, "parameters"), ({"base_hash": "c"}, "base"),
     ({"previous": "q"}, "previous"), ({"max_new_tokens": 7}, None), ({"stage_timeout_seconds": 7}, None)],
)  # fmt: skip
def test_each_input_of_training_has_its_part(data_root: Path, change: dict[str, Any], part: str | None) -> None:
    assert fingerprint.changed(training(data_root), training(data_root, **change)) == ([part] if part else [])


def test_changed_rows_change_the_data_part_of_their_stage_only(data_root: Path) -> None:
    before = training(data_root)
    other = data_root / "training" / "processed" / "writing_sft.jsonl"
    other.write_text(other.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert fingerprint.changed(before, training(data_root)) == []
    own = data_root / "training" / "processed" / "style_sft.jsonl"
    own.write_text(own.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert fingerprint.changed(before, training(data_root)) == ["data"]


def test_each_input_of_a_score_has_its_part(data_root: Path) -> None:
    table = stages.load()
    style, sample = table.stage("style"), table.stage("sample")

    def parts(stage: stages.Stage, **changes: Any) -> dict[str, str]:
        return fingerprint.evaluation_parts(stage, table, Parameters(**changes), data_root)

    before, smoke = parts(style), parts(sample)
    assert fingerprint.changed(before, parts(style, max_new_tokens=7)) == ["evaluation_parameters"]
    assert fingerprint.changed(before, parts(style, learning_rate=0.5)) == []
    tighter = stages.Stage(**{**style.__dict__, "gate": {**style.gate, "format_compliance": 1.0}})
    assert fingerprint.changed(before, parts(tighter)) == ["gate"]
    benchmark = data_root / table.benchmarks["writing"]
    benchmark.write_text(benchmark.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert fingerprint.changed(before, parts(style)) == ["benchmarks"], "adapters are compared on every benchmark"
    assert fingerprint.changed(smoke, parts(sample)) == [], "the smoke stage has none"


def test_everything_has_changed_when_nothing_was_known() -> None:
    assert fingerprint.changed(None, {"a": "1", "b": "2"}) == ["a", "b"]
    assert fingerprint.changed({"a": "1", "gone": "x"}, {"a": "1"}) == []


def test_parameters_are_hashed_by_scope() -> None:
    scopes = {item.metadata["scope"] for item in config.FIELDS.values()}
    assert scopes == {"training", "evaluation", "runtime"}
