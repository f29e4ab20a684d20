"""The questions of later stages: which are known before their stage comes, and what leaves them to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_data
from trainer import ahead, config, stages
from trainer.config import Parameters

TABLE = stages.load()
TRAINED = Parameters(gate_questions="trained")


def coming(*names: str, **changes: Any) -> list[dict[str, Any]]:
    """As the supervisor tells of the stages behind a job's own."""
    parameters = replace(TRAINED, **changes)
    sources = dict.fromkeys(config.FIELDS, "test")
    return [{"stage": name, "parameters": config.table(parameters, sources)} for name in names]


def asked(root: Path, later: list[dict[str, Any]], parameters: Parameters = TRAINED) -> list[str]:
    return [str(row["id"]) for row in ahead.rows(later, parameters, TABLE, root)]


def test_the_questions_of_the_stages_to_come_are_known(tiny_data: Path) -> None:
    found = asked(tiny_data, coming("style", "writing"))
    assert {"style-1", "writing-1", "held-style-1", "held-writing-1"} <= set(found)
    assert asked(tiny_data, coming("style", gate_questions="held_out")) == [
        name for name in found[: found.index("writing-1")] if name.startswith("held-")
    ]
    assert asked(tiny_data, []) == []
    assert len(found) == len(set(found)), "the stages share their benchmarks"
    assert sorted(asked(tiny_data, coming("style", "writing", "all"))) == sorted(found)


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        ({}, True),
        ({"learning_rate": 0.5, "num_train_epochs": 7.0, "merge_adapter": "off"}, True),
        ({"max_new_tokens": 7}, False),
        ({"model_name_or_path": "other"}, False),
        ({"model_revision": "v2"}, False),
        ({"compute_dtype": "float32"}, False),
        ({"use_qlora": False}, False),
    ],
)
def test_only_stages_that_ask_the_base_alike_are_looked_at(
    tiny_data: Path, changes: dict[str, Any], alike: bool
) -> None:
    assert bool(asked(tiny_data, coming("style", **changes))) == alike


def test_what_cannot_be_read_is_left_to_its_stage(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    whole = asked(root, coming("writing"))
    (root / TABLE.stage("style").data).write_text("{", encoding="utf-8")
    (root / TABLE.stage("all").data).unlink()
    assert asked(root, coming("style", "all", "writing")) == whole != []


def test_files_that_are_never_held_are_not_held_for_this(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(tiny_data, coming("style"))
    monkeypatch.setattr(ahead, "is_big", lambda path: path.name == "style_sft.jsonl")
    assert asked(tiny_data, coming("style")) == []
    assert asked(tiny_data, coming("writing"))
