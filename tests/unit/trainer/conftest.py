"""A project root, a small data root, and stages that look as if they had been trained: no torch, no process."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.command_line import Call
from trainer import cli, config, download, fingerprint, plan, stages, steps
from trainer.state import SCHEMA, Layout, write_json

Row = dict[str, Any]
# A small base would be built anew for every edit of trainer/base.py; a folder with a config.json is a base, too.
BASE_FILES = {"config.json": "{}", "model.safetensors": "weights"}


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def training_row(name: str, question: str, answer: str = "### 结论\n好。") -> Row:
    turns = [("system", "你是助教。"), ("user", question), ("assistant", answer)]
    return {"id": name, "mode": "style", "messages": [{"role": role, "content": text} for role, text in turns]}


def benchmark_row(name: str, question: str, points: list[Any]) -> Row:
    return {"id": name, "type": "concept", "query": question, "expected": {"key_points": points}}


def make_data(root: Path) -> Path:
    """A sound data root: two rows for each stage, one question for each benchmark."""
    style = [training_row("s-1", "什么是电场？"), training_row("s-2", "什么是电势？")]
    writing = [training_row("w-1", "摘要怎么写？"), training_row("w-2", "引言怎么写？")]
    processed, judged = root / "training" / "processed", root / "training" / "eval"
    write_rows(processed / "style_sft_sample.jsonl", style[:1])
    write_rows(processed / "style_sft.jsonl", style)
    write_rows(processed / "writing_sft.jsonl", writing)
    write_rows(processed / "all_sft.jsonl", style + writing)
    write_rows(judged / "style_benchmark.jsonl", [benchmark_row("bs-1", "高斯面该怎么选才好？", ["对称性"])])
    write_rows(judged / "writing_benchmark.jsonl", [benchmark_row("bw-1", "结论一节里写什么内容？", ["主要发现"])])
    return root


class Line:
    """A host's folder with data and a base, whose stages can be given a result without training them."""

    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder / "host")
        self.data = make_data(folder / "data")
        self.base = folder / "base"
        self.base.mkdir()
        for name, text in BASE_FILES.items():
            (self.base / name).write_text(text, encoding="utf-8")

    def request(self, *names: str, **more: Any) -> dict[str, Any]:
        """What `submit` is asked for; `parameters` are added to the base model's name."""
        parameters = {"model_name_or_path": str(self.base), **more.pop("parameters", {})}
        overrides = {name: {"value": value, "source": "test"} for name, value in parameters.items()}
        return {"stages": list(names), "overrides": overrides, "data_root": str(self.data), **more}

    def plan(self, *names: str, **more: Any) -> plan.Plan:
        return plan.from_request(self.request(*names, **more))

    def submit(self, *names: str, **more: Any) -> dict[str, Any]:
        return plan.submit(self.request(*names, **more), self.layout)

    def steps(self, *names: str, **more: Any) -> dict[str, tuple[str, str]]:
        """(mode, reason) of each stage of a plan."""
        return {s.stage.name: (s.mode, s.reason) for s in steps.steps(self.plan(*names, **more), self.layout)}

    def modes(self, *names: str, **more: Any) -> dict[str, str]:
        return {name: mode for name, (mode, _) in self.steps(*names, **more).items()}

    def finish(self, *names: str, status: str = "passed", **more: Any) -> None:
        """Write adapters, reports and states as if these stages (default: all) had just been trained."""
        asked = self.plan(**more)
        for name in names or stages.load().names:
            step = next(s for s in steps.steps(asked, self.layout) if s.stage.name == name)
            self._write_result(step, asked, status)

    def _write_result(self, step: steps.Step, asked: plan.Plan, status: str) -> None:
        stage = step.stage
        folder = self.layout.adapters / stage.adapter
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
        (folder / "adapter_model.safetensors").write_text(f"weights of {stage.name}", encoding="utf-8")
        value = 0.5 if status == "missed" else 1.0
        measured = {metric: {"value": value, "n": 11, "ci95": [0.4, 1.0]} for metric in stage.gate}
        gate = {
            "mode": asked.gate, "questions": "held_out", "targets": dict(stage.gate), "measured": measured,
            "passed": status == "passed",
            "reasons": [] if status == "passed" else ["key point coverage 0.500 < 0.90 (n=11)"],
        }  # fmt: skip
        known = {**step.fingerprint, "adapter": fingerprint.of_adapter(folder)}
        log = self.layout.logs / f"train_{stage.name}_20261122T101010.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("step 1\n", encoding="utf-8")
        moment = "2026-11-22T10:10:10.000+00:00"
        state = {
            "schema": SCHEMA, "stage": stage.name, "status": status, "plan_id": asked.plan_id, "attempt": 1,
            "phase": "", "started_at": moment, "updated_at": moment, "ended_at": moment,
            "log": self.layout.relative(log), "exit_code": 0 if status == "passed" else 6,
            "message": "the gate is open" if status == "passed" else f"stage {stage.name} missed its gate",
            "fingerprint": known, "gate": gate, "summary": {"style": measured}, "reason": step.reason,
            "mode": "train", "times": {"train_seconds": 1.0}, "error": None,
        }  # fmt: skip
        write_json(self.layout.stage(stage.name), state)
        write_json(folder / f"eval_report_{stage.name}.json", self._report(step, asked, gate, known, measured))
        (folder / f"eval_report_{stage.name}.md").write_text(f"# {stage.title}\n", encoding="utf-8")

    def _report(
        self, step: steps.Step, asked: plan.Plan, gate: Row, known: dict[str, Any], measured: dict[str, Any]
    ) -> dict[str, Any]:
        result = {"summary": measured, "by_type": {}, "rows": [], "missing": [], "unexpected": []}
        evaluation = {
            "name": "style", "questions": "held_out", "file": "training/eval/style_benchmark.jsonl",
            "result": result, "base": None, "warnings": [], "seconds": 1.0, "tokens": 10,
        }  # fmt: skip
        training = {
            "steps": 4, "epochs": 2.0, "rows": 2, "examples": 2, "trained_tokens": 40, "first_loss": 2.0,
            "last_loss": 0.1, "seconds": 1.0, "dropped": [],
        }  # fmt: skip
        return {
            "schema": SCHEMA, "stage": step.stage.name, "adapter": step.stage.adapter,
            "created_at": "2026-11-22T10:10:10.000+00:00", "plan_id": asked.plan_id, "attempt": 1, "gate": gate,
            "fingerprint": known, "evaluations": [evaluation], "training": training,
            "parameters": config.table(step.parameters, step.sources),
            "environment": {"python": "3.11", "torch": "2.13.0", "base_model": "base", "base_hash": "b"},
            "times": {"load_seconds": 1.0, "train_seconds": 1.0},
        }  # fmt: skip

    def record_plan(self, *names: str, status: str = "ended", **more: Any) -> dict[str, Any]:
        """Write a plan file with outcomes, as a supervisor leaves it; returns the record."""
        outcomes = more.pop("outcomes", {})
        asked = self.plan(*names, **more)
        record = {"schema": SCHEMA, **asked.__dict__, "status": status, "outcomes": outcomes}
        write_json(self.layout.plan, record)
        return record


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters and switches of whoever runs the tests must not reach them."""
    names = ("TRAIN_SYNC_PROJECT_ROOT", "TRAIN_SYNC_SKIP_SAMPLE", *config.ENVIRONMENT_NAMES)
    for name in names:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "host")


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


@pytest.fixture
def put_rows() -> Callable[[Path, list[Row]], None]:
    return write_rows


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, model_hub: Any) -> Callable[..., config.Parameters]:
    """Makes Parameters for the model of a hub of this machine, which stands for both sources; waits are short."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "RETRY_SECONDS", 0.01)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", model_hub.url)
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return lambda **changes: config.Parameters(
        **{"model_name_or_path": "acme/Tiny-3", "hf_endpoint": model_hub.url, **changes}
    )


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: Any) -> Call:
    """Runs one command on the host of `line`: (exit code, standard output, lines of standard error)."""

    def run(*words: str, stdin: Any = None) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("" if stdin is None else json.dumps(stdin)))
        capsys.readouterr()
        code = cli.main(["--project-root", str(line.layout.root), *words])
        found = capsys.readouterr()
        return code, found.out, found.err.splitlines()

    return run
