"""trainer/account.py: estimated beside measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer import account, peaks, stages
from trainer.state import Layout

TABLE = stages.load()


def test_the_report_gets_the_estimate_of_its_stage(
    tmp_path: Path, tiny_data: Path, tiny_base: Path, tiny_tokenizer: Any, tiny_parameters: Any
) -> None:
    from transformers import AutoConfig

    model = SimpleNamespace(config=AutoConfig.from_pretrained(tiny_base))
    base: Any = SimpleNamespace(model=model, tokenizer=tiny_tokenizer)
    found = account.estimated(Layout(tmp_path), TABLE.stage("style"), TABLE, tiny_parameters(), tiny_data, base)
    assert found is not None
    assert (found["stage"], found["counted"], found["steps"]) == ("style", "counted", 60)
    assert found["memory_bytes"] > 0
    gone = account.estimated(Layout(tmp_path), TABLE.stage("style"), TABLE, tiny_parameters(), tmp_path, base)
    assert gone is None, "no reason to fail"


def test_rates_come_from_the_training_and_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "measured", lambda: {"peak_memory_bytes": 5, "peak_process_bytes": 5})
    training = {"steps": 3, "train_tokens": 900, "train_tokens_per_second": 300.0}
    evaluations = [{"tokens": 40}, {"tokens": 60}]
    found = account.measured(training, evaluations, {"generate_seconds": 4.0}, {})
    assert found == {
        "peak_memory_bytes": 5, "peak_process_bytes": 5, "train_tokens": 900, "train_tokens_per_second": 300.0,
        "generated_tokens_per_second": 25.0,
    }  # fmt: skip
    told = account.measured({}, evaluations, {"generate_seconds": 4.0}, {"generated_tokens_per_second": 20.0})
    assert told["generated_tokens_per_second"] == 20.0, "who answered knows better"
    assert "generated_tokens_per_second" not in account.measured({}, evaluations, {}, {})


REPORT: dict[str, Any] = {
    "estimate": {"memory_bytes": 2_000_000_000, "train_seconds": 10.0, "generate_seconds": 5.0, "base_seconds": 8.0,
                 "train_tokens_per_second": 100.0, "generated_tokens_per_second": 50.0},
    "measured": {"peak_memory_bytes": 1_000_000_000, "train_tokens_per_second": 200.0},
    "training": {"seconds": 12.0},
    "times": {"train_seconds": 3.0, "generate_seconds": 6.0, "base_seconds": 0.0},
    "environment": {"gpu": None},
}  # fmt: skip


def test_what_is_known_of_either_is_a_row() -> None:
    assert account.rows(REPORT) == [
        ("memory of the process", "bytes", 2_000_000_000, 1_000_000_000),
        ("training", "seconds", 10.0, 12.0),  # of all attempts, not of the last one alone
        ("answers with the adapter", "seconds", 5.0, 6.0),
        ("answers of the base alone", "seconds", 8.0, None),  # remembered
        ("training", "tokens/s", 100.0, 200.0),
        ("answers with the adapter", "tokens/s", 50.0, None),
    ]
    assert account.rows({**REPORT, "environment": {"gpu": "NVIDIA H200"}})[0][0] == "memory of the GPU"
    assert account.rows({}) == [], "a report of an earlier version"
    assert [row[0] for row in account.rows({"times": {"train_seconds": 1.0}})] == ["training"]
