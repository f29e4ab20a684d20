"""What every stage of a plan has to do, from its inputs as they are now, and which gate is closed. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import adapters, config, data, digest, fingerprint, stages, surveys
from trainer.errors import NotReady
from trainer.stages import Stage, StageTable
from trainer.state import Layout, read_stage, standing_result

if TYPE_CHECKING:
    from trainer.plan import Plan

SMOKE_STAGE = "sample"


@dataclass(frozen=True)
class Step:
    """What one stage has to do: `train`, `evaluate` (weights unchanged), or nothing (`keep`), and why."""

    stage: Stage
    mode: str
    reason: str
    parameters: config.Parameters
    sources: dict[str, str]
    training: dict[str, str]
    evaluation: dict[str, str]

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {
            "training": digest.of_value(self.training),
            "evaluation": digest.of_value(self.evaluation),
            "parts": {**self.training, **self.evaluation},
        }


def code_root() -> Path:
    """The folder that holds this trainer package, its data and its corpus."""
    return Path(__file__).resolve().parent.parent


def data_root(plan_value: str) -> Path:
    """The data root of a plan: the shipped data unless a folder is named (relative: to the code)."""
    return data.resolve_root(code_root() / Path(plan_value).expanduser() if plan_value else code_root() / "data")


def corpus() -> Path:
    """The course text that the embedded base is built from."""
    return code_root() / "data" / "corpus"


def steps(plan: Plan, layout: Layout) -> list[Step]:
    """What every stage of the plan has to do, from the inputs as they are now."""
    table = stages.load()
    root = data_root(plan.data_root)
    found: list[Step] = []
    previous = ""
    changed_before = ""
    for stage in table.stages:
        if stage.name not in plan.stages:
            previous = _recorded_training(layout, stage)
            continue
        step = _step(plan, layout, table, stage, root, previous, changed_before)
        previous = step.fingerprint["training"]
        if step.mode == "train" and not is_skipped(plan, stage):
            changed_before = stage.name
        found.append(step)
    return found


def is_skipped(plan: Plan, stage: Stage) -> bool:
    """Whether the plan leaves out the smoke stage, as the user asked."""
    return plan.skip_sample and stage.name == SMOKE_STAGE


def _recorded_training(layout: Layout, stage: Stage) -> str:
    record = read_stage(layout, stage.name) or {}
    known = record.get("fingerprint") or (standing_result(record or None) or {}).get("fingerprint") or {}
    return str(known.get("training", ""))


def _step(
    plan: Plan, layout: Layout, table: StageTable, stage: Stage, root: Path, previous: str, changed_before: str
) -> Step:
    parameters, sources = table.resolve(stage.name, plan.profile, plan.overrides)
    base_hash = fingerprint.of_base(parameters, layout, corpus())
    initial = adapters.initial_hash(layout, stage, parameters)
    training = fingerprint.training_parts(stage, parameters, root, base_hash, previous, initial)
    evaluation = fingerprint.evaluation_parts(stage, table, parameters, root)
    mode, reason = _decide(layout, stage, training, evaluation, changed_before)
    return Step(stage, mode, reason, parameters, sources, training, evaluation)


def _decide(
    layout: Layout, stage: Stage, training: dict[str, str], evaluation: dict[str, str], changed_before: str
) -> tuple[str, str]:
    """(mode, reason): whether the recorded result still stands for these inputs."""
    record = read_stage(layout, stage.name)
    if record is None:
        return "train", "it was not trained before"
    result = standing_result(record)
    if result is None:
        return "train", f"its last run is {record['status']}"
    kept = result["fingerprint"]
    different = fingerprint.changed(kept.get("parts"), training)
    if different:
        words = {"previous": f"stage {changed_before or 'before it'}", "modules": "trainer code", "base": "base model",
                 "initial_adapter": "the adapter that it begins with"}  # fmt: skip
        return "train", "changed: " + ", ".join(words.get(name, name) for name in different)
    folder = layout.adapters / stage.adapter
    if fingerprint.of_adapter(folder) != kept.get("adapter"):
        return "train", f"the files of {stage.adapter} are not those that were trained"
    different = fingerprint.changed(kept.get("parts"), evaluation)
    if different or not _is_reported(folder / f"eval_report_{stage.name}.json", kept):
        names = ", ".join(name.replace("_", " ") for name in different) or "its report is missing or another one's"
        return "evaluate", f"changed for the score only: {names}"
    return "keep", f"data, base model, parameters and code are those of {result['plan_id']}"


def _is_reported(path: Path, kept: Mapping[str, Any]) -> bool:
    """Whether the report beside an adapter is that of the result with these fingerprints.

    A run that was lost between its report and its state leaves the report of another score.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    told = report.get("fingerprint") if isinstance(report, dict) else None
    return isinstance(told, dict) and all(told.get(x) == kept.get(x) for x in ("training", "evaluation", "adapter"))


def check_gates(plan: Plan, layout: Layout) -> list[str]:
    """Notes on earlier gates that the plan passes by; NotReady when one of them is closed.

    A stage that the plan does not contain must have passed with the data, base and code of now.
    """
    table = stages.load()
    notes: list[str] = []
    if plan.gate == "off":
        return notes
    last = table.names.index(plan.stages[-1])
    for stage in table.stages[:last]:
        if stage.name in plan.stages or is_skipped(plan, stage):
            continue
        why = _why_closed(plan, layout, table, stage)
        if not why:
            continue
        behind = next(name for name in plan.stages if table.names.index(name) > table.names.index(stage.name))
        sentence = f"the gate before stage {behind} is closed: stage {stage.name} {why}"
        if plan.gate == "strict":
            raise NotReady(f"{sentence}; run {stage.name} first (tag {stage.tag}), or set the gate to warn")
        notes.append(f"warning: {sentence}")
    return notes


def _why_closed(plan: Plan, layout: Layout, table: StageTable, stage: Stage) -> str:
    """Why an earlier stage's gate is closed, or an empty text when it is open."""
    record = read_stage(layout, stage.name)
    if record is None:
        return "has not run"
    if record["status"] == "skipped":
        return ""
    if record["status"] == "missed":
        return f"missed its gate ({'; '.join((record.get('gate') or {}).get('reasons', []))})"
    if record["status"] != "passed":
        return f"is {record['status']}"
    kept = record["fingerprint"]
    root = data_root(plan.data_root)
    parameters, _ = table.resolve(stage.name, plan.profile, plan.overrides)
    now_parts = {
        "data": digest.of_file(root / stage.data),
        "base": fingerprint.of_base(parameters, layout, corpus()),
        "modules": fingerprint.of_modules(fingerprint.TRAINING_MODULES),
        "gate": fingerprint.evaluation_parts(stage, table, parameters, root)["gate"],
    }
    words = {"modules": "trainer code", "base": "base model", "gate": "targets"}
    different = [words.get(name, name) for name in fingerprint.changed(kept["parts"], now_parts)]
    if different:
        return f"passed with other {' and '.join(different)}"
    if fingerprint.of_adapter(layout.adapters / stage.adapter) != kept.get("adapter"):
        return f"passed, but the files of {stage.adapter} are no longer those that passed"
    return ""


def check_data(plan: Plan, layout: Layout) -> list[data.Finding]:
    """The warnings on the data of the plan's stages; InputError with every fault."""
    table = stages.load()
    root = data_root(plan.data_root)
    findings: list[data.Finding] = []
    for name in plan.stages:
        findings += surveys.of_stage(root, table, table.stage(name), layout.cache).findings
    findings = list(dict.fromkeys(findings))
    data.raise_errors(findings)
    return findings
