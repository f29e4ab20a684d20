"""What the benchmarks give to both sides is the same work."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_parts, training
from benchmarks.line_sides import plain_settings
from trainer.config import Parameters
from trainer.encoding import IGNORED


def test_the_other_side_has_the_parameters_of_ours() -> None:
    values = Parameters(
        learning_rate=0.02, lora_r=4, lora_dropout=0.0, lora_target_modules="q_proj,v_proj", seed=7, max_new_tokens=9,
        gradient_checkpointing=False,
    )  # fmt: skip
    found = plain_settings(values, rows=10)
    assert found["training"]["learning_rate"] == 0.02 and found["training"]["seed"] == 7
    assert found["training"]["gradient_checkpointing"] is False and found["max_new_tokens"] == 9
    assert found["lora"] == {"r": 4, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


def test_scripts_as_found_have_trl_s_own_defaults_for_speed_and_memory_and_all_else_as_the_tuned_ones() -> None:
    values = Parameters(learning_rate=0.02, gradient_checkpointing=False)
    tuned, found = plain_settings(values, rows=10), plain_settings(values, rows=10, tuned=False)
    assert tuned["training"].keys() - found["training"].keys() == {"gradient_checkpointing"}
    assert found["training"].items() <= tuned["training"].items()
    assert {**found, "training": {}} == {**tuned, "training": {}}
    assert found["training"]["bf16"] is False and found["dtype"] == "float32"  # TRL would take bf16 by itself


def test_trl_s_defaults_are_those_that_are_told(tmp_path: Path) -> None:
    from trl import SFTConfig

    found = SFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True)
    assert (found.gradient_checkpointing, found.optim.value) == (True, "adamw_torch_fused")


@pytest.mark.parametrize("tokens", [64, 1024, 2048])
def test_rows_of_a_step_fill_passes_to_the_last_token(tokens: int) -> None:
    rows = gpu_parts.packable(4 * tokens, tokens)
    assert [sum(len(row.input_ids) for row in rows[start : start + 4]) for start in range(0, 16, 4)] == [tokens] * 4
    assert all(row.trained_tokens == len(row.input_ids) // 2 for row in rows)
    assert all(0 <= token < gpu_parts.TINY["vocab_size"] for row in rows for token in row.input_ids)


def test_made_rows_are_of_mixed_lengths_and_the_same_every_time() -> None:
    rows = training.mixed(200, 500)
    lengths = sorted(len(row.input_ids) for row in rows)
    assert rows == training.mixed(200, 500)
    assert lengths[0] < 40 and lengths[-1] > 450 and 90 < lengths[100] < 180  # the geometric mean is 128
    assert all(row.labels[0] == IGNORED and row.labels[-1] == row.input_ids[-1] for row in rows)


def test_runs_are_of_whole_epochs() -> None:
    rows = training.mixed(31, 500)
    values = Parameters(per_device_train_batch_size=2, gradient_accumulation_steps=1, max_steps=20)
    found = training.whole_epochs(values, rows)
    assert (found.num_train_epochs, found.max_steps) == (2.0, -1)  # 16 steps in an epoch


def test_the_tables_of_training_show_what_is_computed_and_the_ratio_of_seconds() -> None:
    ours = [training.Ran(2.0, 16, 8000, 4000, 6000), training.Ran(4.0, 16, 8000, 4000, 6000)]
    theirs = [training.Ran(6.0, 16, 8000, 4000, 10000), training.Ran(8.0, 16, 8000, 4000, 10000)]
    text = "\n".join(training.table({"ours": ours, "TRL": theirs}, "TRL"))
    assert "| ours | 16 | 8000 | 4000 | 3.0 | 2667 | 1333 | 75.0% | 2.50 |" in text
    assert "| TRL | 16 | 8000 | 4000 | 7.0 | 1143 | 571 | 125.0% | 1.00 |" in text


def test_the_true_dimensions_are_those_of_the_published_model() -> None:
    from trainer import shape

    found = shape.of_config({"model_type": "qwen3", **gpu_parts.QWEN3_8B})
    assert found == shape.of_name("Qwen/Qwen3-8B")
