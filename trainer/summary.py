"""TRAINING_SUMMARY.md: what ran, what came out, which adapter is best and what to do next.

Only a report whose hashes are those of the recorded state speaks for a stage. The text depends on
the files alone and not on the clock, so that an unchanged tree gives an unchanged summary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer import state
from trainer.comparison import choose, comparable_benchmarks, compared, held_out, lift, reports
from trainer.issues import read_issues
from trainer.markdown import ABSENT, duration, render
from trainer.outcome import next_steps, outcome, warnings_of
from trainer.report import TRAINED_NOTE, gate_rows, target_cells

MISMATCH = "report does not match the adapter: not used"
SHOWN_ISSUES = 20


def collect_context(
    project_root: Path, stages: Sequence[Mapping[str, Any]], *, outputs: Path | None = None
) -> dict[str, Any]:
    """Everything the summary says, read from the outputs folder (default: project_root/outputs).

    `stages` are records with name, tag, title, adapter and gate. Returns {"plan", "stages": [{name,
    tag, title, adapter, state, report, note, present}], "issues", "problems", "run"}; `report` is
    None unless it belongs to the state, `note` says why. Missing and broken files are named in
    `problems`; nothing is raised for them.
    """
    root = outputs or state.Layout(project_root).outputs
    problems: list[str] = []
    plan = _read(root, "state/plan.json", problems)
    if plan is None and not problems:
        problems.append("outputs/state/plan.json is missing: no plan was ever submitted")
    records = [_stage(root, record, problems) for record in stages]
    issues, torn = read_issues(root / "logs" / "issues.jsonl")
    runs = sorted(path.parent.name for path in root.glob("training_sync/run_*/TRAINING_SUMMARY.md"))
    return {
        "plan": plan,
        "stages": records,
        "issues": issues,
        "problems": [*problems, *torn, *comparable_benchmarks({"stages": records})[1]],
        "run": runs[-1] if runs else None,
    }


def _read(root: Path, name: str, problems: list[str]) -> dict[str, Any] | None:
    try:
        return state.read_json(root / name)
    except state.StateError as problem:
        sentence = str(problem).replace(f"{root}/", "outputs/").replace("the state file ", "")
        problems.append(sentence)
        return None


def _stage(root: Path, record: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    name, adapter = record["name"], record["adapter"]
    before = len(problems)
    found = _read(root, f"state/{name}.json", problems)
    file = f"adapter/{adapter}/eval_report_{name}.json"
    report = _read(root, file, problems)
    finished = (found or {}).get("status") in ("passed", "missed")
    if finished and report is None and len(problems) == before:
        problems.append(f"outputs/{file} is missing although stage {name} has ended")
    used, note = _belongs(found, report, record)
    if report and not used and finished:
        problems.append(f"outputs/{file}: {note}")
    unreadable = found is None and (root / f"state/{name}.json").exists()
    return {
        **{key: record.get(key) for key in ("name", "tag", "title", "adapter")},
        "state": {"status": "unknown", "message": "its state cannot be read"} if unreadable else found,
        "report": report if used else None,
        "note": note,
        "present": (root / "adapter" / adapter / "adapter_model.safetensors").is_file(),
    }


def _belongs(
    found: Mapping[str, Any] | None, report: Mapping[str, Any] | None, record: Mapping[str, Any]
) -> tuple[bool, str]:
    """Whether the report speaks for the recorded state, and a sentence about it.

    All three hashes have to agree. Within one plan the attempt has to agree too; a report of an
    earlier plan with equal hashes is that of a stage which was up to date and not trained again.
    """
    if report is None:
        return False, "no report"
    if not {"gate", "evaluations", "fingerprint", "plan_id", "attempt"} <= set(report):
        return False, f"{MISMATCH} (it is no evaluation report)"
    if found is None or found.get("status") not in ("passed", "missed"):
        return False, f"{MISMATCH} (the stage has not ended with a score)"
    if report.get("stage") != record["name"] or report.get("adapter") != record["adapter"]:
        return False, f"{MISMATCH} (it is of stage {report.get('stage')})"
    hashes, recorded = report.get("fingerprint") or {}, found.get("fingerprint") or {}
    for part in ("adapter", "training", "evaluation"):
        if not hashes.get(part) or hashes[part] != recorded.get(part):
            return False, f"{MISMATCH} (other {part} hash)"
    same_plan = report.get("plan_id") == found.get("plan_id")
    if same_plan and report.get("attempt") != found.get("attempt"):
        return False, f"{MISMATCH} (of attempt {report.get('attempt')})"
    if found["status"] == "missed" and report["gate"]["passed"]:
        return False, f"{MISMATCH} (it says that the gate was passed)"
    return True, "" if same_plan else f"made by plan {report.get('plan_id')}, unchanged since"


def build_summary(context: Mapping[str, Any]) -> str:
    """TRAINING_SUMMARY.md as text, from what `collect_context` returned."""
    chosen, why_not = choose(context)
    names = sorted({name for report in reports(context) for name in held_out(report)})
    return render(
        "summary.md.j2",
        plan=context["plan"],
        headline=outcome(context),
        ran=[_ran_row(stage, context["plan"]) for stage in context["stages"]],
        gates=[
            [stage["name"], *target_cells(row)]
            for stage in context["stages"]
            if stage["report"]
            for row in gate_rows(stage["report"])
        ],
        trained=any(report["gate"]["questions"] == "trained" for report in reports(context)),
        trained_note=TRAINED_NOTE,
        warnings=warnings_of(context),
        lift=lift(context),
        compared_head=["adapter", "gate", *names, "mean key point coverage"],
        compared=compared(context, names) if names else [],
        best=chosen,
        why_not=why_not,
        environment=_common(context, lambda report: report.get("environment") or {}),
        parameters=_parameters(context),
        issues=context["issues"][-SHOWN_ISSUES:],
        earlier=max(0, len(context["issues"]) - SHOWN_ISSUES),
        notes=[f"{s['name']}: {s['note']}" for s in context["stages"] if s["report"] and s["note"]],
        problems=context["problems"],
        steps=next_steps(context),
    )


def _ran_row(stage: Mapping[str, Any], plan: Mapping[str, Any] | None) -> list[object]:
    found = stage["state"]
    if not found:
        return [stage["name"], "never ran", "no state is recorded", *[ABSENT] * 5]
    selected = not plan or stage["name"] in (plan.get("stages") or [])
    why = [found.get("reason"), found.get("message"), None if selected else "not in the last plan"]
    return [
        stage["name"],
        found["status"],
        "; ".join(dict.fromkeys(str(part) for part in why if part)) or ABSENT,
        found.get("attempt"),
        found.get("started_at"),
        found.get("ended_at"),
        duration(_seconds(found)),
        found.get("log"),
    ]


def _seconds(found: Mapping[str, Any]) -> float | None:
    try:
        begin, end = (datetime.fromisoformat(found[key]) for key in ("started_at", "ended_at"))
        return (end - begin).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def _common(
    context: Mapping[str, Any], part: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> list[tuple[str, Any, str]]:
    """name, value, stages: one row for what all reports share, else one for each value."""
    seen: dict[str, dict[str, tuple[object, list[str]]]] = {}
    used = reports(context)
    for report in used:
        for name, value in part(report).items():
            entry = seen.setdefault(name, {}).setdefault(repr(value), (value, []))
            entry[1].append(report["stage"])
    return [
        (name, value, "every" if len(stages) == len(used) else ", ".join(stages))
        for name, values in seen.items()
        for value, stages in values.values()
    ]


def _parameters(context: Mapping[str, Any]) -> list[list[object]]:
    """parameter, value, source, stages; what differs from a default first, what all share once."""

    def pairs(report: Mapping[str, Any]) -> dict[str, Any]:
        given = report.get("parameters") or {}
        return {name: (entry["value"], entry["source"]) for name, entry in given.items()}

    rows = [[name, *pair, stages] for name, pair, stages in _common(context, pairs)]
    if not rows:
        submitted = (context["plan"] or {}).get("overrides") or {}
        rows = [[n, e.get("value"), e.get("source"), "submitted"] for n, e in submitted.items()]
    changed = {row[0] for row in rows if row[2] != "default"}
    return sorted(rows, key=lambda row: row[0] not in changed)


def closing_lines(context: Mapping[str, Any], output_dir: str) -> list[str]:
    """The last lines for the terminal: where summary and adapters are, and the best model."""
    run = context.get("run")
    folder = output_dir.rstrip("/") or "."
    where = f"{folder}/training_sync/{run}/TRAINING_SUMMARY.md" if run else "none was collected yet"
    adapters = [stage["adapter"] for stage in context["stages"] if stage["present"]]
    listed = f"{folder}/adapter ({', '.join(adapters)})" if adapters else "none"
    chosen, why_not = choose(context)
    best = f"{chosen['adapter']} ({_brief(chosen['reason'])})" if chosen else f"none ({why_not})"
    return [f"Summary: {where}", f"Adapters: {listed}", f"Best model: {best}"]


def _brief(reason: str) -> str:
    """A reason for the terminal; what the summary says of every overlapping interval becomes a hint."""
    clauses = reason.split("; ")
    return "; ".join(clauses[:2]) + ("; the intervals overlap, see the summary" if len(clauses) > 2 else "")
