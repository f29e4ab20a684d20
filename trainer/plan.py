"""The plan: what was asked for, checked as a whole, written once, and what each stage of it has to do. No torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer import config, data, fingerprint, stages
from trainer.errors import InputError, Interrupted, NotReady
from trainer.process import is_locked
from trainer.stages import Stage, StageTable
from trainer.state import (
    SCHEMA,
    Layout,
    StateError,
    append_event,
    now,
    read_json,
    read_stage,
    standing_result,
    write_json,
)

REQUEST_FIELDS = (
    "stages", "profile", "overrides", "gate", "skip_sample", "data_root", "source_id",
)  # fmt: skip
SMOKE_STAGE = "sample"
CLOSING_SECONDS = 30.0  # a supervisor ends its worker within its grace of 20 s


@dataclass(frozen=True)
class Plan:
    """A submitted plan; `overrides` are {field: {value, source}}, paths are absolute or relative to the code."""

    plan_id: str
    created_at: str
    stages: list[str]
    profile: str
    overrides: dict[str, config.Override]
    gate: str
    skip_sample: bool
    data_root: str
    source_id: str
    code_hash: str

    def content(self) -> dict[str, Any]:
        """What was asked for, without when: two plans of the same content are the same job."""
        record = asdict(self)
        del record["plan_id"], record["created_at"]
        # Where a value came from does not make it another job.
        record["overrides"] = {name: item["value"] for name, item in self.overrides.items()}
        return record

    def covers(self, other: Plan) -> bool:
        """Whether this plan does all that `other` asks for."""
        mine, theirs = self.content(), other.content()
        return set(theirs.pop("stages")) <= set(mine.pop("stages")) and mine == theirs


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
            "training": fingerprint.of_value(self.training),
            "evaluation": fingerprint.of_value(self.evaluation),
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


def from_request(request: Mapping[str, Any]) -> Plan:
    """A plan from what a user asks for; InputError names every wrong part at once."""
    table = stages.load()
    findings = [
        f"the plan has no field {name!r}{config.suggestion(name, REQUEST_FIELDS)}"
        for name in request
        if name not in REQUEST_FIELDS
    ]
    gate = request.get("gate", "strict")
    gate = "off" if gate is False else gate or "strict"  # YAML reads a bare `off` as false
    if gate not in stages.GATE_MODES:
        hint = config.suggestion(str(gate), stages.GATE_MODES)
        findings.append(f"the gate is {gate!r}; choose one of {', '.join(stages.GATE_MODES)}{hint}")
    findings += _wrong_types(request)
    config.raise_findings(findings)
    overrides: dict[str, config.Override] = {}
    for name, item in (request.get("overrides") or {}).items():
        item = item if isinstance(item, Mapping) and "value" in item else {"value": item, "source": "request"}
        good, wrong = config.checked({name: item["value"]}, str(item.get("source", "request")))
        overrides.update(good)
        findings += wrong
    profile = request.get("profile") or ""
    names: list[str] = []
    try:
        names = table.ordered(request.get("stages") or table.names)
        for name in names:
            table.resolve(name, profile, overrides)
    except InputError as problem:
        findings += [*problem.lines, str(problem)]
    config.raise_findings(findings)
    moment = datetime.now(timezone.utc)
    plan = Plan(
        plan_id="",
        created_at=now(),
        stages=names,
        profile=profile,
        overrides=overrides,
        gate=gate,
        skip_sample=bool(request.get("skip_sample")),
        data_root=str(request.get("data_root") or ""),
        source_id=str(request.get("source_id") or ""),
        code_hash=fingerprint.of_code(),
    )
    short = fingerprint.of_value(plan.content())[:8]
    return Plan(**{**plan.__dict__, "plan_id": f"{moment:%Y%m%dT%H%M%S}-{short}"})


def _wrong_types(request: Mapping[str, Any]) -> list[str]:
    """Findings on fields of a JSON request that are no list, object, text or truth value as they should be."""
    found = []
    wanted = {"stages": (list, "a list of stage names"), "overrides": (Mapping, "an object of parameters"),
              "skip_sample": (bool, "true or false"), "profile": (str, "a text"), "data_root": (str, "a text"),
              "source_id": (str, "a text")}  # fmt: skip
    for name, (kind, words) in wanted.items():
        value = request.get(name)
        if value is not None and not isinstance(value, kind):
            found.append(f"the plan's {name} is {value!r}; give {words}")
    if isinstance(request.get("stages"), list):
        found += [f"the plan's stages hold {s!r}; give a name" for s in request["stages"] if not isinstance(s, str)]
    return found


def read_record(layout: Layout) -> dict[str, Any] | None:
    """The plan file: the plan's fields, `status` (submitted | running | ended), `outcomes` by stage, processes.

    StateError when the file cannot be trusted, None when nothing was ever submitted.
    """
    record = read_json(layout.plan)
    if record is None:
        return None
    missing = [name for name in (*Plan.__dataclass_fields__, "status", "outcomes") if name not in record]
    if missing or record["status"] not in ("submitted", "running", "ended"):
        raise StateError(f"the state file {layout.plan} is not a plan; restore it or move it away after a look")
    return record


def of_record(record: Mapping[str, Any]) -> Plan:
    """The plan that a plan file describes."""
    return Plan(**{name: record[name] for name in Plan.__dataclass_fields__})


def read_plan(layout: Layout) -> Plan | None:
    """The plan that was submitted last, or None."""
    record = read_record(layout)
    return None if record is None else of_record(record)


def check_code(plan: Plan) -> None:
    """InputError when this code is not the code that the plan was made with."""
    found = fingerprint.of_code()
    if found != plan.code_hash:
        raise InputError(
            f"the plan {plan.plan_id} was made with the code {plan.code_hash[:12]}, this is {found[:12]}; "
            "submit the plan again with this code"
        )


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
    training = fingerprint.training_parts(stage, parameters, root, base_hash, previous)
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
        words = {"previous": f"stage {changed_before or 'before it'}", "modules": "trainer code", "base": "base model"}
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
        "data": fingerprint.of_file(root / stage.data),
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


def check_data(plan: Plan) -> list[data.Finding]:
    """The warnings on the data of the plan's stages; InputError with every fault."""
    table = stages.load()
    root = data_root(plan.data_root)
    findings: list[data.Finding] = []
    for name in plan.stages:
        findings += data.check_stage(root, table, table.stage(name))
    findings = list(dict.fromkeys(findings))
    data.raise_errors(findings)
    return findings


def submit(request: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Check a request as a whole and write it as the plan, unless it is running or done already.

    Returns {"plan_id", "action": start | watch | none, "lines"}: start a supervisor, watch the one that runs,
    or nothing to do. Errors: InputError, NotReady (a closed gate), Interrupted (another plan is running).
    """
    plan = from_request(request)
    _wait_for_last_word(layout)
    current = read_plan(layout)
    if current and is_locked(layout.lock):
        if current.covers(plan):
            return _answer(current, "watch", [f"plan {current.plan_id} is running: watching it"])
        raise Interrupted(
            f"plan {current.plan_id} is running here with other stages, parameters or code; "
            "look at it with `status`, end it with `cancel`, or wait for its end"
        )
    lines = [str(finding) for finding in check_data(plan)]
    lines += check_gates(plan, layout)
    if _is_done(plan, layout):
        return _answer(plan, "none", lines)
    record = {"schema": SCHEMA, **asdict(plan), "status": "submitted", "outcomes": {}}
    write_json(layout.plan, record)
    append_event(layout, "plan submitted", plan_id=plan.plan_id, stages=plan.stages, gate=plan.gate)
    return _answer(plan, "start", lines)


def _wait_for_last_word(layout: Layout) -> None:
    """Let a supervisor whose stages have all ended close its plan: a moment later it is gone."""
    deadline = time.monotonic() + CLOSING_SECONDS
    while time.monotonic() < deadline:
        record = read_record(layout)
        ended = record is not None and all(name in record["outcomes"] for name in record["stages"])
        if not ended or not is_locked(layout.lock):
            return
        time.sleep(0.1)


def _is_done(plan: Plan, layout: Layout) -> bool:
    """Whether nothing is left to be done or written down: every stage stands as passed, or skipped as asked."""
    for step in steps(plan, layout):
        record = read_stage(layout, step.stage.name) or {}
        if is_skipped(plan, step.stage):
            if record.get("status") != "skipped":
                return False
        elif step.mode != "keep" or record.get("status") != "passed":
            return False
    return True


def _answer(plan: Plan, action: str, lines: list[str]) -> dict[str, Any]:
    return {"plan_id": plan.plan_id, "action": action, "lines": lines}
