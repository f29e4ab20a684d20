"""The plan: what was asked for, checked as a whole and written once. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from trainer import config, content, digest, fingerprint, stages
from trainer.errors import InputError, Interrupted
from trainer.process import Locked, boot_id, boot_seconds, is_alive, is_locked, locked
from trainer.state import SCHEMA, Layout, StateError, append_event, now, read_json, read_stage, write_json
from trainer.steps import check_data, check_gates, code_root, is_skipped, steps

REQUEST_FIELDS = (
    "stages", "profile", "overrides", "gate", "skip_sample", "data_root", "source_id", "plan_timeout_seconds",
)  # fmt: skip
SINCE_THEN = ("plan_timeout_seconds",)  # fields that the files of earlier versions do not have
# A submitted plan whose supervisor has not taken the lock after this long was never started.
START_SECONDS = 60.0
LOCK_WAIT_SECONDS = 2.0  # others who only look or write hold it for a moment
PLAN_TIMEOUT_SECONDS = 259200  # three days
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
    plan_timeout_seconds: int = PLAN_TIMEOUT_SECONDS  # since the supervisor began, over all stages and attempts

    def content(self) -> dict[str, Any]:
        """What was asked for, without when and for how long: two plans of the same content are the same job."""
        record = asdict(self)
        del record["plan_id"], record["created_at"], record["plan_timeout_seconds"]
        # Where a value came from does not make it another job.
        record["overrides"] = {name: item["value"] for name, item in self.overrides.items()}
        return record

    def covers(self, other: Plan) -> bool:
        """Whether this plan does all that `other` asks for."""
        mine, theirs = self.content(), other.content()
        return set(theirs.pop("stages")) <= set(mine.pop("stages")) and mine == theirs


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
    limit, wrong = _whole_seconds(request.get("plan_timeout_seconds"))
    findings += wrong
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
        plan_timeout_seconds=limit,
    )
    short = digest.of_value(plan.content())[:8]
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


def _whole_seconds(value: Any) -> tuple[int, list[str]]:
    """The plan's time limit (a number, or the text that a command line makes of it) and findings on it."""
    if value is None:
        return PLAN_TIMEOUT_SECONDS, []
    try:
        found = 0 if isinstance(value, bool) else int(str(value))
    except ValueError:
        found = 0
    wrong = f"the plan's plan_timeout_seconds is {value!r}; give a whole number of seconds, at least 1"
    return found, [] if found >= 1 else [wrong]


def read_record(layout: Layout) -> dict[str, Any] | None:
    """The plan file: the plan's fields, `status` (submitted | running | ended), `outcomes` by stage, processes.

    StateError when the file cannot be trusted, None when nothing was ever submitted.
    """
    record = read_json(layout.plan)
    if record is None:
        return None
    missing = {*Plan.__dataclass_fields__, "status", "outcomes"} - {*record, *SINCE_THEN}
    if missing or record["status"] not in ("submitted", "running", "ended"):
        raise StateError(f"the state file {layout.plan} is not a plan; restore it or move it away after a look")
    return record


def of_record(record: Mapping[str, Any]) -> Plan:
    """The plan that a plan file describes."""
    return Plan(**{name: record[name] for name in Plan.__dataclass_fields__ if name in record})


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


def check_source(plan: Plan) -> None:
    """InputError when the plan names a source and this code is not the release of that source, as it was published."""
    here = code_root()
    if plan.source_id and (here.parent.name != "releases" or here.name != plan.source_id):
        raise InputError(
            f"the plan {plan.plan_id} names the source {plan.source_id}, and this code runs from {here}; "
            f"start it from releases/{plan.source_id}, or submit it again with this code"
        )
    if plan.source_id:
        content.check_release(here, plan.source_id)


def is_running(layout: Layout, record: Mapping[str, Any] | None) -> bool:
    """Whether somebody carries out a plan here; a supervisor whose lock file was deleted counts, too."""
    if is_locked(layout.lock):
        return True
    return record is not None and record["status"] == "running" and is_alive(record.get("supervisor"))


def age_seconds(record: Mapping[str, Any]) -> float:
    """How long ago a plan was submitted, whatever the machine's clock says since; infinite before a restart."""
    submitted = record.get("submitted") or {}
    if submitted.get("boot_id") != boot_id():
        return float("inf")
    return boot_seconds() - float(submitted["boot_seconds"])


def submit(request: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Check a request as a whole and write it as the plan, unless it is running or done already.

    Returns {"plan_id", "action": start | watch | none, "lines"}: start a supervisor, watch the one that runs,
    or nothing to do. The same plan, submitted a moment ago and not yet started, is answered again: whoever of
    two starts it first carries it out. Errors: InputError, NotReady (a closed gate), Interrupted (another plan
    is running).
    """
    plan = from_request(request)
    _wait_for_last_word(layout)
    if answer := _running(plan, layout):
        return answer
    lines = [str(finding) for finding in check_data(plan, layout)]
    lines += check_gates(plan, layout)
    if _is_done(plan, layout):
        return _answer(plan, "none", lines)
    try:
        with locked(layout.lock, LOCK_WAIT_SECONDS):
            return _write_down(plan, layout, lines)
    except Locked:
        if answer := _running(plan, layout):
            return answer
        raise


def _running(plan: Plan, layout: Layout) -> dict[str, Any] | None:
    """The answer when a plan that does all this is running, None when none is; Interrupted when another one is."""
    record = read_record(layout)
    if record is None or not is_running(layout, record):
        return None
    current = of_record(record)
    if not current.covers(plan):
        raise Interrupted(
            f"plan {current.plan_id} is running here with other stages, parameters or code; "
            "look at it with `status`, end it with `cancel`, or wait for its end"
        )
    lines = [f"plan {current.plan_id} is running: watching it"]
    if current.plan_timeout_seconds != plan.plan_timeout_seconds:
        lines.append(f"its plan_timeout_seconds stays {current.plan_timeout_seconds}")
    return _answer(current, "watch", lines)


def _write_down(plan: Plan, layout: Layout, lines: list[str]) -> dict[str, Any]:
    """Write the plan, under the lock; one that was submitted a moment ago and does all this is kept."""
    record = read_record(layout)
    if record and record["status"] == "submitted" and age_seconds(record) < START_SECONDS:
        current = of_record(record)
        if current.covers(plan):
            return _answer(current, "start", lines)
    submitted = {"boot_id": boot_id(), "boot_seconds": boot_seconds()}
    record = {"schema": SCHEMA, **asdict(plan), "status": "submitted", "outcomes": {}, "submitted": submitted}
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
