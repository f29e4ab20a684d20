"""The sides of benchmarks/line.py: the four-stage job by our own command, and by scripts, tuned or as found.

Each run is a Run: its seconds by part, its counts and scores by stage, read from what the processes wrote.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.line_tables import COUNTS, SHOWN, Run
from benchmarks.machine import REPOSITORY
from trainer import config, stages
from trainer.data import load_rows
from trainer.evaluate import gate_questions
from trainer.workshop import WORKER_ENVIRONMENT

# The same number of generated tokens on all sides: without the cap that ours takes from the references.
EQUAL = {name: "0" for name in ("max_new_tokens_ratio",) if name in config.FIELDS}
SEQUENTIAL = Path(__file__).resolve().parent / "sequential"


@dataclass(frozen=True)
class Bench:
    """What all sides are given."""

    folder: Path
    base: Path
    data_root: Path
    embedded: bool
    stages: tuple[str, ...]
    overrides: Mapping[str, str]

    @property
    def is_whole(self) -> bool:
        """Whether it is the job as it is shipped: every stage on the embedded base, no parameter set."""
        return self.embedded and not self.overrides and list(self.stages) == stages.load().names

    def words(self, more: Mapping[str, str]) -> list[str]:
        """Options of `trainer run`."""
        found = ["--stages", ",".join(self.stages), "--gate", "off", "--data-root", str(self.data_root)]
        settings = {**self.overrides, **more}
        if self.embedded:
            found += ["--profile", "embedded"]
        else:
            settings["model_name_or_path"] = str(self.base)
        return found + [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]

    def parameters(self, stage: str) -> config.Parameters:
        """As `trainer run` resolves them for a stage."""
        overrides = config.overrides_from({**self.overrides, **EQUAL}, {}, "benchmark")
        return stages.load().resolve(stage, "embedded" if self.embedded else "", overrides)[0]


def ours(bench: Bench, more: Mapping[str, str]) -> Run:
    """The plan on a fresh project root that has the base, and nothing else."""
    root = bench.folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if bench.embedded:
        shutil.copytree(bench.base.parent, root / "models")
    started = time.monotonic()
    command = [sys.executable, "-m", "trainer", "run", "--project-root", root, *bench.words(more)]
    _process(command, bench.folder, {})  # our supervisor gives its worker its variables
    run = Run(time.monotonic() - started)
    table = stages.load()
    base_tokens, asked = _base_answers(root), 0
    for name in bench.stages:
        path = root / "outputs" / "adapter" / table.stage(name).adapter / f"eval_report_{name}.json"
        report = json.loads(path.read_text(encoding="utf-8"))
        evaluations = report["evaluations"]
        run.parts[name] = {part.removesuffix("_seconds"): value for part, value in report["times"].items()}
        run.parts[name]["not told"] = max(0.0, report["wall_seconds"] - sum(run.parts[name].values()))
        run.counts[name] = {
            "steps": report["training"]["steps"],
            "trained_tokens": _trained(report["training"]),
            "answered": sum(len(item["result"]["rows"]) for item in evaluations),
            "generated_tokens": sum(item["tokens"] for item in evaluations),
            "base_answered": 0,
            "base_tokens": 0,
        }
        asked += len({row["id"] for item in evaluations for row in item["result"]["rows"]})
        for item in evaluations:
            run.scores[f"{name}: {item['name']}, adapter"] = item["result"]["summary"]
            run.scores[f"{name}: {item['name']}, base"] = item["base"]
    # Which stage had the base asked is not recorded: each question is asked once in a plan.
    run.counts[bench.stages[0]] |= {"base_answered": len(base_tokens), "base_tokens": sum(base_tokens)}
    run.supervisor = _supervisor_seconds(root, bench.stages)
    return run


def _base_answers(root: Path) -> list[int]:
    """The tokens of each answer of the base."""
    files = (root / "outputs" / "cache").glob("base_answers_*.json")
    return [item["tokens"] for path in files for item in json.loads(path.read_text("utf-8"))["answers"].values()]


def _trained(training: Mapping[str, Any]) -> int:
    """How many tokens carried loss in all epochs."""
    return int(round(training["trained_tokens"] * training["epochs"]))


def _supervisor_seconds(root: Path, names: Iterable[str]) -> dict[str, float]:
    """Per stage the time between the worker's last file and the worker's next job, or the plan's end.

    In it the supervisor verifies and publishes the adapter, writes the states, and decides what comes next.
    """
    lines = (root / "outputs" / "state" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    begun = {e["stage"]: _clock(e) for e in reversed(events) if e["event"] == "phase" and e["phase"] == "loading"}
    ended = next(_clock(event) for event in events if event["event"] == "plan ended")
    names, found = list(names), {}
    for name, following in zip(names, [*names[1:], ""], strict=True):
        report = root / "outputs" / "adapter" / stages.load().stage(name).adapter / f"eval_report_{name}.json"
        found[name] = begun.get(following, ended) - report.stat().st_mtime
    return found


def _clock(event: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def scripts(bench: Bench, tuned: bool) -> Run:
    """Three processes for each stage, one after the other."""
    table = stages.load()
    out = bench.folder / "sequential"
    shutil.rmtree(out, ignore_errors=True)
    run = Run()
    variables = WORKER_ENVIRONMENT if tuned else {}
    kept = ["--known", out / "base_answers.json"] if tuned else []
    for name in bench.stages:
        folder = out / name
        folder.mkdir(parents=True)
        stage, parameters = table.stage(name), bench.parameters(name)
        rows = bench.data_root / stage.data
        settings = folder / "settings.json"
        settings.write_text(json.dumps(plain_settings(parameters, len(load_rows(rows)), tuned)), encoding="utf-8")
        sets = {"trained": rows} if gate_questions(stage, parameters) == "trained" else {}
        if stage.benchmarks:
            sets |= {key: bench.data_root / file for key, file in table.benchmarks.items()}
        questions = [f"{key}={file}" for key, file in sets.items()]
        given = ["--output", folder, "--base", bench.base, "--settings", settings]
        walls = [
            _script("train", [*given, "--rows", rows], folder, variables),
            _script("generate", [*given, "--adapter", folder, *kept, *questions], folder, variables),
            _script("score", ["--output", folder, *questions], folder, variables),
        ]
        _read_stage(run, name, folder, walls)
    return run


def _read_stage(run: Run, name: str, folder: Path, walls: list[float]) -> None:
    """Add to the run what the three scripts of a stage wrote; `walls` are their seconds."""
    found = {script: json.loads((folder / f"{script}.json").read_text("utf-8")) for script in ("train", "generate")}
    parts: dict[str, float] = {}
    for figures in found.values():
        for part in ("import", "load", "data", "train", "save", "generate", "base"):
            parts[part] = parts.get(part, 0.0) + figures.get(part, 0.0)
    parts["score"] = walls[2]
    parts["rest"] = sum(walls) - sum(parts.values())
    run.seconds += sum(walls)
    run.parts[name] = parts
    counts = {**found["train"], **found["generate"]}
    counts["trained_tokens"] = _trained(counts)
    run.counts[name] = {key: counts[key] for key in (*COUNTS, *SHOWN)}
    for key, of_set in json.loads((folder / "scores.json").read_text(encoding="utf-8")).items():
        run.scores |= {f"{name}: {key}, {model}": summary for model, summary in of_set.items()}


def plain_settings(parameters: config.Parameters, rows: int, tuned: bool = True) -> dict[str, Any]:
    """What the scripts of the other side are told: the same values, by the names of TRL and PEFT.

    Untuned ones have TRL's default for gradient_checkpointing.
    """
    from trainer.train import warm_up

    same = (
        "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
        "lr_scheduler_type", "weight_decay", "max_grad_norm", "seed",
    )  # fmt: skip
    # It shapes speed and memory, not the result; TRL 1.16 has it on. Its optim="adamw_torch_fused" is ours, too. Its
    # bf16, on by default as well, is off on all sides: float32 is asked for.
    tuning = {"gradient_checkpointing": parameters.gradient_checkpointing is True}
    targets = parameters.lora_target_modules
    return {
        "dtype": "float32",
        "max_new_tokens": parameters.max_new_tokens,
        "logging_steps": parameters.logging_steps,
        "training": {
            **{name: getattr(parameters, name) for name in same},
            "warmup_steps": warm_up(parameters, rows),
            **(tuning if tuned else {}),
            "bf16": False,
            "use_cpu": True,
        },
        "lora": {
            "r": parameters.lora_r,
            "lora_alpha": parameters.lora_alpha,
            "lora_dropout": parameters.lora_dropout,
            "target_modules": targets if targets == "all-linear" else targets.split(","),
        },
    }


def _script(name: str, words: list[Any], folder: Path, variables: Mapping[str, str]) -> float:
    """Wall seconds of one of the scripts."""
    started = time.monotonic()
    clock = [] if name == "score" else ["--started", repr(started)]
    _process([sys.executable, SEQUENTIAL / f"{name}.py", *words, *clock], folder, variables)
    return time.monotonic() - started


def _process(command: list[Any], folder: Path, variables: Mapping[str, str]) -> None:
    """Run it with these variables beside those that are set here; its output is shown only when it fails."""
    # Offline on all sides: everything is on the disk, and no side is to wait for a network.
    environment = {**variables, **os.environ, "HF_HUB_OFFLINE": "1"}
    with (folder / "output.log").open("w+", encoding="utf-8", errors="replace") as log:
        done = subprocess.run(
            [str(word) for word in command], cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=False
        )
        log.seek(0)
        if done.returncode:
            raise SystemExit(f"{log.read()[-8000:]}\nerror: {command[1:4]} ended with exit code {done.returncode}")
