"""trainer/workload.py: rows, tokens and steps of a stage, with a tokenizer and without, whole and sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import chat, write_data, write_rows
from trainer import stages, workload
from trainer.config import Parameters
from trainer.errors import InputError
from trainer.workload import Question, answer_tokens, characters_to_tokens, of_stage, sample, steps_of

TABLE = stages.load()
TRAINED = Parameters(gate_questions="trained", enable_thinking=False)


def test_tokens_are_those_that_the_worker_trains_on(tiny_data: Path, tiny_tokenizer: Any) -> None:
    from trainer.data import read_rows
    from trainer.encoding import encode

    stage = TABLE.stage("style")
    numbered, _ = read_rows(tiny_data / stage.data)
    examples, _ = encode(numbered, tiny_tokenizer, "", enable_thinking=False, max_length=512)
    found = of_stage(stage, TABLE, TRAINED, tiny_data, tiny_tokenizer)
    assert (found.rows, found.examples) == (3, len(examples))
    assert found.tokens == sum(len(example.input_ids) for example in examples)
    assert found.trained_tokens == sum(example.trained_tokens for example in examples)
    assert found.longest == max(len(example.input_ids) for example in examples)
    assert found.counted == "counted"


def test_without_a_tokenizer_characters_stand_for_tokens(tiny_data: Path) -> None:
    found = of_stage(TABLE.stage("style"), TABLE, TRAINED, tiny_data, None)
    assert found.rows == found.examples == 3
    assert 0 < found.trained_tokens < found.tokens and "characters" in found.counted


def test_text_of_both_scripts_has_rather_too_many_tokens_than_too_few() -> None:
    assert characters_to_tokens("电场强度等于单位正电荷所受的力") == 10  # 15 characters, 1.5 a token
    assert characters_to_tokens("electric field") == 5
    assert characters_to_tokens("") == 0


@pytest.mark.parametrize(
    ("stage", "gate_questions", "asked"),
    # HELD_OUT of tests.conftest: 2 style and 1 writing questions, of which a stage with a benchmark is asked all.
    [("sample", "held_out", 2), ("style", "held_out", 3), ("style", "trained", 6)],
)
def test_the_questions_are_those_of_the_gate_and_the_benchmarks(
    tiny_data: Path, stage: str, gate_questions: str, asked: int
) -> None:
    found = of_stage(TABLE.stage(stage), TABLE, Parameters(gate_questions=gate_questions), tiny_data, None)
    assert found.asked == asked


def test_of_many_trained_questions_only_some_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_data(tmp_path)
    write_rows(root / TABLE.stage("style").data, [chat(f"row-{n}", "电场？", "力。") for n in range(50)])
    held_out = 3
    assert of_stage(TABLE.stage("style"), TABLE, TRAINED, root, None).asked == 50 + held_out
    monkeypatch.setattr(workload, "MOST_TRAINED", 20)
    assert of_stage(TABLE.stage("style"), TABLE, TRAINED, root, None).asked == 20 + held_out


def test_every_turn_of_an_assistant_is_an_example_of_what_stands_before_it(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    row = chat("two", "电场？", "力。")
    row["messages"] += [{"role": "user", "content": "单位？"}, {"role": "assistant", "content": "伏每米。"}]
    write_rows(root / TABLE.stage("sample").data, [row])
    found = of_stage(TABLE.stage("sample"), TABLE, TRAINED, root, None)
    assert (found.rows, found.examples) == (1, 2)
    assert found.longest < found.tokens < 2 * found.longest


def test_a_large_file_is_sampled_and_its_longest_row_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "SAMPLE", 10)
    root = write_data(tmp_path)
    stage = TABLE.stage("style")
    rows = [chat(f"row-{n}", "电场？", "力。" * (400 if n == 777 else 1)) for n in range(1000)]
    write_rows(root / stage.data, rows)
    kept, longest, number = sample(root / stage.data, stage.data)
    assert number == 1000 and 10 <= len(kept) <= 20 and longest["id"] == "row-777"
    found = of_stage(stage, TABLE, TRAINED, root, None)
    assert found.rows == 1000 and found.examples == 1000 and "of 1000 rows" in found.counted
    assert found.longest > 400
    monkeypatch.setattr(workload, "SAMPLE", 1000)
    whole = of_stage(stage, TABLE, TRAINED, root, None)
    assert whole.counted.endswith("characters") and whole.longest == found.longest
    assert found.tokens == pytest.approx(whole.tokens, rel=0.05)


def test_lines_that_are_no_rows_are_passed_over_and_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    stage = TABLE.stage("sample")
    path = root / stage.data
    whole = of_stage(stage, TABLE, TRAINED, root, None)
    path.write_text(path.read_text(encoding="utf-8") + "{\n[]\n\n", encoding="utf-8")
    assert of_stage(stage, TABLE, TRAINED, root, None).longest == whole.longest
    path.write_text("{\n[]\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no row with an answer to train on; look at it with `check`"):
        of_stage(stage, TABLE, TRAINED, root, None)
    path.unlink()
    with pytest.raises(InputError, match=f"{stage.data} cannot be read"):
        of_stage(stage, TABLE, TRAINED, root, None)


@pytest.mark.parametrize(
    ("changes", "examples", "steps"),
    [({}, 28, 8), ({}, 1, 2), ({"max_steps": 5}, 28, 5), ({"num_train_epochs": 0.5}, 28, 2),
     ({"per_device_train_batch_size": 4}, 28, 2)],
)  # fmt: skip
def test_steps_are_those_of_the_epochs_or_the_limit(changes: dict[str, Any], examples: int, steps: int) -> None:
    assert steps_of(Parameters(**changes), examples) == steps


@pytest.mark.parametrize(
    ("reference", "changes", "expected"),
    [
        (100, {}, (100, 200)),  # twice the reference
        (10, {}, (10, 64)),  # never below 64
        (100, {"max_new_tokens_ratio": 0.0}, (100, 1024)),
        (900, {"max_new_tokens": 512}, (512, 512)),
        (0, {}, (70, 1024)),  # without a reference: as the others, up to the limit
    ],
)
def test_an_answer_is_as_long_as_its_reference_within_the_caps(
    reference: int, changes: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert answer_tokens(Question(50, reference), Parameters(**changes), 70.4) == expected
