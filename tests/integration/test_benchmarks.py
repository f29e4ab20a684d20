"""Every benchmark of the trainer runs to its last line at tiny size, with every table that it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import LEARNING, REPOSITORY


def run(name: str, *words: Any) -> str:
    """What the benchmark prints; it must end well."""
    command = [sys.executable, REPOSITORY / "benchmarks" / name, *words]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=600, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def rows_of(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, or of the one whose head begins so."""
    below = text.split(f"\n{heading}", 1)[1].splitlines()
    start = next(number for number, line in enumerate(below) if line.startswith("|---"))
    rows = []
    for line in below[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_line_beside_one_process_after_the_other(tiny_base: Path, tiny_data: Path) -> None:
    values = {**LEARNING, "max_steps": 10, "gate_questions": "trained"}
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    text = "\n" + run("line.py", "--base", tiny_base, "--data-root", tiny_data, "--stages", "sample", *settings)
    work = {row[0]: row[1:] for row in rows_of(text, "| work |")}
    assert work["steps"] == ["10", "10", "10", "10"]
    assert work["answered"] == work["base answered"] == ["2", "2", "2", "2"]
    assert len(set(work["trained tokens"][:3])) == 1 and work["trained tokens"][0] != "0"
    parts = {row[0]: row[1:] for row in rows_of(text, "## The job of 1 stages")}
    for column in (0, 1, 3):  # ours, the scripts tuned and as found
        assert float(parts["**the whole job**"][column]) > 0 and float(parts["training"][column]) > 0
    aim = next(
        line for line in text.splitlines() if line.startswith("The aim of at least 4 is about the scripts as found")
    )
    assert "of a part of the job" in aim and "Of the scripts, tuned: " in aim
    shares = {row[0]: row[1:] for row in rows_of(text, "### Where the time of a stage goes (ours, the last run)")}
    assert {"import", "train", "generate", "base", "check", "supervisor", "the whole job"} <= shares.keys()
    assert [row[0] for row in rows_of(text, "### What our own checks take")] == ["sample"]


def test_training_beside_plain_trl(tiny_base: Path) -> None:
    text = "\n" + run("training.py", "--base", tiny_base, "--rounds", 1, "--steps", 1)
    for heading in ("### Style rows, batch 2", "### Style rows, batch 8", "### Rows of mixed lengths, batch 8"):
        found = {row[0]: row[1:] for row in rows_of(text, heading)}
        assert {"ours", "ours, nothing shared", "ours, padded", "TRL SFTTrainer"} <= found.keys()
        assert len({tuple(row[:3]) for row in found.values()}) == 1, "steps, tokens, trained tokens"
        computed = {way: float(row[-2].rstrip("%")) for way, row in found.items()}
        assert found["TRL SFTTrainer"][-1] == "1.00" and computed["TRL SFTTrainer"] > 100
        assert 100 <= computed["ours, nothing shared"] < 103  # the trial of the layout before the first step
        assert computed["ours"] <= computed["ours, nothing shared"]


def test_the_gpu_benchmark_runs_to_its_last_line_on_a_processor(tmp_path: Path) -> None:
    text = "\n" + run("gpu.py", "--tiny", "--folder", tmp_path, "--minutes", 9)
    assert "### Not measured" not in text
    loads = [row[:2] for row in rows_of(text, "### Loading")]
    assert loads == [
        ["nf4", "16-bit files, cold: quantised on the way, copy made"],
        ["nf4", "prepared copy, cold"],
        ["nf4", "prepared copy, warm"],
        ["bf16", "16-bit files, cold"],
        ["bf16", "16-bit files, warm"],
    ]
    training = rows_of(text, "### Training")
    whats = ["64 packed", "128 packed", "128 packed, checkpointing", "as chosen"]
    assert [row[:2] for row in training] == [[kind, what] for kind in ("nf4", "bf16") for what in whats]
    assert all(float(row[2]) > 0 for row in training)
    answers = rows_of(text, "### Answers")
    assert [row[:3] for row in answers] == [
        ["nf4", "57", "all at once"],
        ["nf4", "2", "one by one"],
        ["bf16", "57", "all at once, merged"],  # float32 on a processor
        ["bf16", "2", "one by one, merged"],
    ]
    jobs = rows_of(text, "### The whole job")
    assert [row[0] for row in jobs] == ["nf4", "bf16"] and all(float(row[1]) > 0 for row in jobs)
    assert text.strip().endswith((tmp_path / "gpu.md").read_text(encoding="utf-8").strip())
