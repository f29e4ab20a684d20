"""trainer/estimation.py: the estimate of a stage, and where its seconds come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import chat, write_data, write_rows
from trainer import device, estimation, stages, throughput
from trainer.basefacts import BaseFacts
from trainer.config import Parameters
from trainer.device import Device
from trainer.errors import HostUnfit, InputError
from trainer.estimation import Host, of_stage
from trainer.lastrun import LastRun
from trainer.shape import of_name
from trainer.state import Layout

TABLE = stages.load()
QWEN3_8B = BaseFacts(of_name("Qwen/Qwen3-8B"), "the published sizes of this name", None, None)
H200 = Device("cuda", "NVIDIA H200", 1, 150_754_820_096, True, (9, 0), False, False, 16)
LAST = LastRun(
    "style", "2026-01-02T03:04:05", 1000.0, 50.0,
    {"import_seconds": 2.0, "load_seconds": 3.0, "save_seconds": 0.25, "base_seconds": 9.0},
)  # fmt: skip


def estimate(
    tmp_path: Path, data: Path, found: Device = H200, facts: BaseFacts = QWEN3_8B, **changes: Any
) -> estimation.StageEstimate:
    host = Host(Layout(tmp_path), found, data)
    return of_stage(host, TABLE.stage("style"), TABLE, Parameters(**changes), facts, None)


def test_an_estimate_tells_work_memory_and_seconds(tmp_path: Path, tiny_data: Path) -> None:
    found = estimate(tmp_path, tiny_data)
    told = found.as_dict()
    assert (told["stage"], told["rows"], told["questions"], told["steps"]) == ("style", 3, 3, 2)
    assert told["train_tokens"] == 2 * told["tokens"] > 0
    assert told["memory_bytes"] == found.fit.total > 6e9
    assert told["training_memory"]["weights"] == pytest.approx(6.1e9, rel=0.02)
    assert told["seconds"] == pytest.approx(
        told["train_seconds"] + told["generate_seconds"] + told["base_seconds"], 0.1
    )
    assert told["seconds_from"] == "H200: 989 Tflop/s and 4800 GB/s, as NVIDIA tells"
    assert {"quantise", "tokens_per_pass", "eval_batch"} <= {choice["name"] for choice in told["choices"]}


def test_a_device_of_unknown_speed_gets_no_time(tmp_path: Path, tiny_data: Path) -> None:
    told = estimate(tmp_path, tiny_data, replace(H200, name="NVIDIA H9000")).as_dict()
    assert told["memory_bytes"] and told["train_seconds"] is told["seconds"] is None
    assert told["seconds_from"] == "" and told["train_tokens_per_second"] is None


@pytest.mark.parametrize(
    ("dtype", "native", "known"),
    [("bfloat16", True, True), ("float32", True, False), ("bfloat16", False, False), ("float16", False, True)],
)
def test_the_figures_of_a_card_hold_for_its_native_types(
    tmp_path: Path, tiny_data: Path, dtype: str, native: bool, known: bool
) -> None:
    card = replace(H200, bf16_native=native)
    assert (estimate(tmp_path, tiny_data, card, compute_dtype=dtype).seconds.train is not None) == known


def test_a_base_of_unknown_shape_has_work_and_nothing_else(tmp_path: Path, tiny_data: Path) -> None:
    told = estimate(tmp_path, tiny_data, facts=BaseFacts(None, "", None, None)).as_dict()
    assert told["steps"] == 2 and told["memory_bytes"] is told["training_memory"] is told["seconds"] is None


def test_of_an_unknown_device_the_last_run_tells_its_tokens_per_second(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "of_card", lambda name: None)
    monkeypatch.setattr(estimation.lastrun, "of", lambda *_: LAST)
    found = estimate(tmp_path, tiny_data, max_new_tokens_ratio=0.0, max_new_tokens=100)
    assert found.seconds.train == found.train_tokens / 1000
    assert found.seconds.generate == pytest.approx(found.generated_tokens / 50, rel=0.1)
    assert found.seconds.base == 3 * 100 / 50, "three questions, each to its limit"
    assert (found.seconds.rest, found.seconds.start) == (0.25, 5.0)
    assert found.seconds.source == "the last run (stage style, 2026-01-02 03:04)"
    unknown = estimate(tmp_path, tiny_data, facts=BaseFacts(None, "", None, None))
    assert unknown.seconds.train == unknown.train_tokens / 1000, "also where nothing else is known"


def test_the_last_run_corrects_the_figures(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = estimate(tmp_path, tiny_data)
    assert plain.figures == plain.seconds
    corrected = replace(LAST, train_factor=3.0, generate_factor=0.5)
    monkeypatch.setattr(estimation.lastrun, "of", lambda *_: corrected)
    found = estimate(tmp_path, tiny_data)
    before, after = plain.seconds, found.seconds
    assert before.train and before.generate and before.base
    assert (after.train, after.generate, after.base) == (3 * before.train, before.generate / 2, before.base / 2)
    assert (after.rest, after.start) == (0.25, 5.0) and after.source.startswith("the last run")
    told = found.as_dict()["from_figures"]
    assert told == {"train_seconds": before.train, "generate_seconds": before.generate}, "the next correction's base"


def test_a_last_run_without_rates_tells_nothing(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimation.lastrun, "of", lambda *_: replace(LAST, train_rate=None))
    assert estimate(tmp_path, tiny_data).seconds.source.startswith("H200")


def test_two_cards_share_the_work(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    write_rows(
        data / TABLE.stage("style").data, [chat(f"row-{n}", "电场？", "单位电荷受的力" * 400) for n in range(16)]
    )
    one = estimate(tmp_path, data)
    two = estimate(tmp_path, data, replace(H200, count=2))
    held = estimate(tmp_path, data, replace(H200, count=2), num_processes=1)
    assert one.seconds.train and two.seconds.train and held.seconds.train
    assert two.steps == one.steps and two.seconds.train < one.seconds.train == held.seconds.train


def test_a_longer_training_takes_longer(tmp_path: Path, tiny_data: Path) -> None:
    short, long = (estimate(tmp_path, tiny_data, num_train_epochs=epochs) for epochs in (2.0, 20.0))
    assert short.seconds.train and long.seconds.train and long.seconds.train > 5 * short.seconds.train
    limited = estimate(tmp_path, tiny_data, num_train_epochs=20.0, max_steps=2)
    assert limited.steps == 2 and limited.train_tokens < long.train_tokens


def test_an_attention_that_cannot_be_had_is_refused(tmp_path: Path, tiny_data: Path) -> None:
    with pytest.raises(HostUnfit, match="flash"):
        estimate(tmp_path, tiny_data, attention="flash_attention_2")
    assert estimate(tmp_path, tiny_data, attention="sdpa").steps == 2


def test_the_tokenizer_of_a_base_is_used_where_it_loads(tiny_base: Path, tmp_path: Path) -> None:
    found = estimation.tokenizer_in(tiny_base)
    assert found is not None and found("电场")["input_ids"]
    assert estimation.tokenizer_in(None) is None
    assert estimation.tokenizer_in(tmp_path) is None and estimation.tokenizer_in(tmp_path / "none") is None


def test_the_estimate_of_this_host_is_made(tmp_path: Path, tiny_data: Path, tiny_base: Path) -> None:
    from trainer.shape import of_folder

    facts = BaseFacts(of_folder(tiny_base), "its config.json", tiny_base, 0)
    found = estimate(tmp_path, tiny_data, device.told(), facts, use_qlora=False, compute_dtype="float32")
    assert found.fit.unfit == "" and found.steps == 2
    with pytest.raises(InputError, match="cannot be read"):
        estimate(tmp_path, tmp_path, device.told(), facts)
