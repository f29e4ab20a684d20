from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_tables
from trainer import device

CARD = device.Device("cuda", "NVIDIA H200", 1, 150 << 30, True, (9, 0), False, False, 16)
PROCESSOR = device.Device("cpu", "a processor", 1, 8 << 30, False, None, False, False, 2)
LOAD = {
    "part": "load", "kind": "nf4", "what": "prepared copy, cold", "seconds": 4.0, "check_seconds": 3.25,
    "prepare_seconds": 0.0, "peak_bytes": 6 << 30, "cache": "all caches dropped",
}  # fmt: skip
TRAINING = {
    "part": "training", "kind": "nf4", "what": "2048 packed", "tokens_per_second": 12345.6, "peak_bytes": 20 << 30,
    "trained_tokens_per_second": 6000.0, "flops_per_second": 494.5e12, "peak_flops": 989e12,
    "steps": 6, "seconds": 8.0, "attention": "sdpa", "tokens_per_pass": 2048, "layout": "padding_free",
    "checkpointing": True, "out_of_memory": 0,
}  # fmt: skip


def a_bench(folder: Path, seconds: float = 600.0) -> gpu.Bench:
    return gpu.Bench(folder, folder / "results" / "gpu.md", True, time.monotonic() + seconds, "## A title")


def test_a_host_without_a_cuda_device_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "told", lambda: PROCESSOR)
    assert gpu.main(["--parts", "job"]) == 4
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "error: this host has no CUDA device (found: a processor); run it on a GPU host, or with --tiny"
    ]


def test_a_host_with_one_is_taken_and_so_is_one_without_for_a_tiny_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "told", lambda: CARD)
    assert gpu.check_host(tiny=False) == "NVIDIA H200"
    monkeypatch.setattr(device, "told", lambda: PROCESSOR)
    assert gpu.check_host(tiny=True) == "a processor"


def test_a_kind_that_is_not_known_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "told", lambda: CARD)
    assert gpu.main(["--kinds", "nf4,int8"]) == 2
    assert capsys.readouterr().err == "error: 'int8' is not to be measured; give nf4 or bf16\n"


def test_what_was_measured_is_kept_as_it_comes(tmp_path: Path) -> None:
    bench = a_bench(tmp_path)
    bench.keep(LOAD)
    text = bench.output.read_text(encoding="utf-8")
    assert "### Loading" in text and "### Training" not in text
    bench.keep(TRAINING)
    text = bench.output.read_text(encoding="utf-8")
    assert "| nf4 | prepared copy, cold | 4.0 | 3.2 | 0.0 | 6.00 | all caches dropped |" in text
    how = "sdpa, passes of 2048, padding-free, checkpointing"
    assert f"| nf4 | 2048 packed | 12346 | 15000 | 6000 | 50.0% | 20.00 | {how} |" in text
    kept = bench.output.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in kept] == [LOAD, TRAINING]


def test_a_card_whose_peak_is_not_known_has_no_share_of_it() -> None:
    assert "| 6000 | – | 20.00 |" in gpu_tables.line({**TRAINING, "peak_flops": None})


def script(folder: Path, then: str) -> list[Any]:
    """A process that reports one record on its descriptor, and then does something."""
    path = folder / "script.py"
    path.write_text(
        f"import json, os, sys, time\nos.write(int(sys.argv[-1]), (json.dumps({LOAD!r}) + chr(10)).encode())\n{then}\n",
        encoding="utf-8",
    )
    return [path]


def test_a_part_that_ends_has_reported_everything(tmp_path: Path) -> None:
    bench = a_bench(tmp_path)
    assert bench.part("loading", script(tmp_path, "pass"))
    assert bench.records == [LOAD]


def test_a_part_that_breaks_keeps_what_it_had_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = a_bench(tmp_path)
    assert not bench.part("loading", script(tmp_path, "sys.exit('the disk is full')"))
    assert bench.records[0] == LOAD
    assert bench.records[1]["reason"] == "ended with exit code 1"
    assert "the disk is full" in capsys.readouterr().err


def test_a_part_that_has_no_time_left_is_cut_off_and_keeps_what_it_had_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0.5)
    bench = a_bench(tmp_path, seconds=2.0)
    began = time.monotonic()
    assert not bench.part("loading", script(tmp_path, "time.sleep(60)"))
    assert time.monotonic() - began < 30
    assert bench.records[0] == LOAD and "cut off by --minutes" in bench.records[1]["reason"]


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path: Path) -> None:
    bench = a_bench(tmp_path, seconds=gpu.LEAST_SECONDS - 1)
    assert not bench.part("loading", [sys.executable, "must not be run"])
    assert bench.records == [{"part": "left", "what": "loading", "reason": "no time was left of --minutes (19 s)"}]
    assert not (tmp_path / "output.log").exists()
