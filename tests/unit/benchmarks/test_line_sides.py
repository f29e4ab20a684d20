"""How the scripts of the other side are started, tuned and as found; nothing is trained here."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import line_sides
from benchmarks.line_sides import Bench
from benchmarks.line_tables import COUNTS, SHOWN
from trainer import stages
from trainer.workshop import WORKER_ENVIRONMENT

Started = list[tuple[list[str], dict[str, str]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Commands and environments of the scripts, which write their figures without doing anything."""
    found: Started = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        found.append((command, env))
        folder, name = Path(command[command.index("--output") + 1]), Path(command[1]).stem
        figures = {"import": 0.0, "epochs": 2.0, **dict.fromkeys((*COUNTS, *SHOWN), 3)}
        if name == "score":
            figures = {"trained": {"adapter": {}, "base": {}}}
        (folder / ("scores.json" if name == "score" else f"{name}.json")).write_text(json.dumps(figures), "utf-8")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(line_sides.subprocess, "run", run)
    for name in WORKER_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def bench(tiny_data: Path, tmp_path: Path) -> Bench:
    return Bench(tmp_path, tmp_path / "base", tiny_data, False, ("sample", "style"), {"gate_questions": "trained"})


def test_the_whole_job_has_every_stage_the_embedded_base_and_nothing_set(bench: Bench) -> None:
    names = tuple(stages.load().names)
    whole = replace(bench, embedded=True, stages=names, overrides={})
    assert whole.is_whole
    for change in ({"embedded": False}, {"stages": names[:-1]}, {"overrides": {"max_steps": "2"}}):
        assert not replace(whole, **change).is_whole


def known(command: list[str]) -> str:
    return command[command.index("--known") + 1] if "--known" in command else ""


def test_tuned_scripts_have_the_worker_s_variables_and_keep_the_base_s_answers(bench: Bench, started: Started) -> None:
    line_sides.scripts(bench, tuned=True)
    assert [Path(command[1]).stem for command, _ in started] == ["train", "generate", "score"] * 2
    assert all(env.items() >= WORKER_ENVIRONMENT.items() for _, env in started)
    files = {known(command) for command, _ in started if command[1].endswith("generate.py")}
    assert len(files) == 1 and files != {""}, "one file for both stages"


def test_scripts_as_found_have_the_environment_of_the_shell_and_keep_nothing(
    bench: Bench, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_SHELL", "1")
    line_sides.scripts(bench, tuned=False)
    assert [Path(command[1]).stem for command, _ in started] == ["train", "generate", "score"] * 2
    assert not any(env.keys() & WORKER_ENVIRONMENT.keys() for _, env in started)
    assert all(env["OF_THE_SHELL"] == "1" and not known(command) for command, env in started)
    settings = json.loads((bench.folder / "sequential" / "style" / "settings.json").read_text(encoding="utf-8"))
    assert not {"optim", "gradient_checkpointing"} & settings["training"].keys(), "TRL's defaults"


def test_what_the_scripts_of_a_stage_wrote_is_added_up(bench: Bench, started: Started) -> None:
    run = line_sides.scripts(bench, tuned=False)
    assert run.count("steps") == 6 and run.count("trained_tokens") == 12, "tokens of an epoch times two epochs"
    assert run.seconds == pytest.approx(sum(sum(parts.values()) for parts in run.parts.values())) and run.seconds > 0
    assert set(run.scores) == {f"{stage}: trained, {model}" for stage in bench.stages for model in ("adapter", "base")}
