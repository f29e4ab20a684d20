"""The commands that look and tell: status, params, stages, diagnose, check, estimate, score. No torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer import (
    artifacts,
    config,
    diagnose,
    evaluate,
    ledger,
    outlook,
    precheck,
    process,
    recovery,
    stages,
    tables,
    watch,
)
from trainer import plan as plans
from trainer.answers import Arguments, answer
from trainer.cli import request_from
from trainer.errors import InputError
from trainer.state import Layout, StateError, read_stage


def status(arguments: Arguments, root: Path) -> int:
    layout = Layout(root)
    trouble = ""
    if not (layout.outputs / artifacts.COLLECTED).exists():
        try:
            recovery.mark_lost(layout)
        except recovery.Unwritten as problem:
            trouble = str(problem)
    record = plans.read_record(layout)
    states, unreadable = {}, []
    for name in stages.load().names:
        try:
            states[name] = read_stage(layout, name)
        except StateError as problem:
            unreadable.append(f"{name:<{watch.NAME_WIDTH}}unreadable: {problem}")
    code, message = 0, "no plan was submitted yet"
    if record and arguments.plan in ("", record["plan_id"]):
        code, message = ledger.verdict(record)
        if record["status"] != "ended":
            message = f"plan {record['plan_id']} is {record['status']}{_held_up(record)}"
    elif record:
        message = f"plan {arguments.plan} had nothing to do"
    if trouble or unreadable:
        code, message = 7, trouble or message
    found = {
        "plan": record,
        "running": plans.is_running(layout, record) if layout.state.exists() else False,
        "stages": {name: state for name, state in states.items() if state},
        "exit_code": code,
        "message": message,
        "lines": [message, *(_status_line(name, state) for name, state in states.items()), *unreadable],
    }
    answer(arguments, found)
    return 0


def _held_up(record: dict[str, Any]) -> str:
    """What keeps a living supervisor from its work (somebody stopped it), or an empty text."""
    who = record.get("supervisor") or {}
    why = process.state_of(who["pid"]) if process.is_alive(who) else ""
    return f"; its supervisor (pid {who['pid']}) {why}" if why else ""


def _status_line(name: str, state: dict[str, Any] | None) -> str:
    if state is None:
        return f"{name:<{watch.NAME_WIDTH}}never ran"
    measured = (state.get("gate") or {}).get("measured") or {}
    scores = ", ".join(f"{metric.replace('_', ' ')} {watch.figure(item)}" for metric, item in measured.items())
    shown = scores or state["message"] or state["phase"]
    if state.get("stalled_since"):
        shown += f", stalled since {state['stalled_since'][:16].replace('T', ' ')}"
    return f"{name:<{watch.NAME_WIDTH}}{state['status']:<10}{state['updated_at'][:16].replace('T', ' ')}  {shown}"


def params(arguments: Arguments, root: Path) -> int:
    """The parameters; with --input the checked overrides of a request (the controller's part)."""
    if arguments.input:
        request = request_from(arguments)
        stray = [name for name in request if name not in ("profile", "overrides")]
        config.raise_findings([f"the input has no field {name!r}" for name in stray])
        given = request.get("overrides") or {}
        if not isinstance(given, dict):
            raise InputError(f"the input's overrides are {given!r}; give an object of parameters")
        overrides = config.overrides_from(given, os.environ, "variable trainer_hp_{name}")
        for name in stages.load().names:
            stages.load().resolve(name, str(request.get("profile") or ""), overrides)
        print(json.dumps({"overrides": overrides}, ensure_ascii=False))
        return 0
    request = request_from(arguments)
    table = stages.load()
    stage = arguments.stage or table.names[-1]
    values, sources = table.resolve(stage, request["profile"], request["overrides"])
    rows = [
        {"name": name, "value": getattr(values, name), "source": sources[name], **tables.described(item)}
        for name, item in config.FIELDS.items()
    ]
    if arguments.markdown:
        print(tables.markdown_parameters())
    elif arguments.json:
        print(json.dumps({"stage": stage, "parameters": rows}, ensure_ascii=False))
    else:
        for row in rows:
            print(f"{row['name']} = {tables.literal(row['value'])}  [{row['source']}]\n    {row['help']}")
    return 0


def show_stages(arguments: Arguments, root: Path) -> int:
    if arguments.markdown:
        print(tables.markdown_stages())
        return 0
    records = [{**asdict(stage), "benchmarks": list(stage.benchmarks)} for stage in stages.load().stages]
    lines = [
        f"{r['name']:<{watch.NAME_WIDTH}}tag {r['tag']:<10} {r['adapter']:<18} "
        + ", ".join(f"{name.replace('_', ' ')} >= {value:.2f}" for name, value in r["gate"].items())
        for r in records
    ]
    answer(arguments, {"stages": records, "lines": lines})
    return 0


def show_diagnosis(arguments: Arguments, root: Path) -> int:
    text = arguments.log.read_text(encoding="utf-8", errors="replace")
    issues = diagnose.diagnose(text, exit_signal=None, error_kind=None, stage=arguments.stage)
    lines = [f"{issue.severity}: {issue.cause}\n  seen: {issue.symptom}\n  do:   {issue.action}" for issue in issues]
    answer(arguments, {"issues": [asdict(issue) for issue in issues], "lines": lines})
    return 0


def check(arguments: Arguments, root: Path) -> int:
    """Data, parameters, packages and base model, or the data alone; all findings at once."""
    request = request_from(arguments)
    if arguments.data_only:
        found = precheck.inspect_data(str(request.get("data_root") or ""))
    else:
        plan = plans.from_request(request)
        found = precheck.inspect(plan, Layout(root))
        if not found.errors and (line := outlook.brief(plan, Layout(root))):
            found.lines.insert(len(found.lines) - 1, line)  # the last one is the verdict on the data
    if arguments.json or not found.errors:
        answer(arguments, {"lines": found.lines, "findings": [item.as_dict() for item in found.findings]})
    found.raise_errors()
    return 0


def estimate(arguments: Arguments, root: Path) -> int:
    """What a plan would take here; HostUnfit when it cannot fit at all."""
    found = outlook.look(plans.from_request(request_from(arguments)), Layout(root))
    answer(arguments, found)
    outlook.refuse(found)
    return 0


def score(arguments: Arguments, root: Path) -> int:
    result = evaluate.score_files(arguments.benchmark, arguments.predictions)
    artifacts.write_score(arguments.output, result)
    for name, item in result["summary"].items():
        print(f"{name.replace('_', ' ')}: {watch.figure(item)}")
    return 0
