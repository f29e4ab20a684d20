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
from trainer.diagnose import read_issues
from trainer.report import (
    ABSENT,
    TRAINED_NOTE,
    duration,
    figure,
    gate_rows,
    lift_rows,
    render,
    score,
    target_cells,
)

MULTITASK = "adapter_multitask"
MISMATCH = "report does not match the adapter: not used"
KEY_POINTS, FORMAT = "key_point_coverage", "format_compliance"
OVERLAP = "95 % interval overlaps with that of"
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
        "problems": [*problems, *torn, *_unequal_benchmarks({"stages": records})[1]],
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


def _reports(context: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [stage["report"] for stage in context["stages"] if stage["report"]]


def held_out(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report's evaluations on held-out benchmarks, by benchmark."""
    return {e["name"]: e for e in report["evaluations"] if e["questions"] == "held_out"}


def _unequal_benchmarks(context: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The benchmarks on which adapters can be compared, and a sentence for each of the others."""
    rows: dict[str, set[tuple[str, ...]]] = {}
    for report in _reports(context):
        for name, evaluation in held_out(report).items():
            ids = tuple(sorted(str(row["id"]) for row in evaluation["result"]["rows"]))
            rows.setdefault(name, set()).add(ids)
    unequal = [name for name, kinds in rows.items() if len(kinds) > 1]
    sentence = "the adapters were scored on different rows of benchmark {}: not compared on it"
    return sorted(set(rows) - set(unequal)), [sentence.format(name) for name in unequal]


def _mean(report: Mapping[str, Any], benchmarks: Sequence[str], metric: str) -> float | None:
    """The mean of a metric over the benchmarks, None when one of them was not measured."""
    evaluations = held_out(report)
    values = [
        (evaluations[name]["result"]["summary"].get(metric) or {}).get("value")
        for name in benchmarks
        if name in evaluations
    ]
    known = [float(value) for value in values if value is not None]
    if not benchmarks or len(known) < len(benchmarks):
        return None
    return round(sum(known) / len(known), 12)  # equal means have to compare as equal


def best_model(context: Mapping[str, Any]) -> dict[str, str] | None:
    """{"adapter", "stage", "reason"} of the best adapter, None when none can be named.

    Among the adapters whose gate was passed: the highest mean key point coverage over the held-out
    benchmarks; then format compliance; on an exact tie the multitask adapter, then the earlier one.
    """
    return _choose(context)[0]


def _choose(context: Mapping[str, Any]) -> tuple[dict[str, str] | None, str]:
    passed = [
        stage
        for stage in context["stages"]
        if stage["report"] and stage["state"]["status"] == "passed"
        if stage["report"]["gate"]["passed"]
    ]
    if not passed:
        return None, "no adapter with a matching report has passed its gate"
    names = _unequal_benchmarks(context)[0]
    ranked = []
    for stage in passed:
        coverage = _mean(stage["report"], names, KEY_POINTS)
        if coverage is not None:
            compliance = _mean(stage["report"], names, FORMAT)
            rank = (coverage, -1.0 if compliance is None else compliance)
            ranked.append((*rank, stage["adapter"] == MULTITASK, stage))
    if not ranked:
        return None, "no adapter that passed was scored on every held-out benchmark"
    ranked.sort(key=lambda entry: entry[:3], reverse=True)
    best = ranked[0][-1]
    reason = _reason(ranked, names)
    return {"adapter": best["adapter"], "stage": best["name"], "reason": reason}, reason


def _reason(ranked: Sequence[tuple[Any, ...]], names: Sequence[str]) -> str:
    first, rest = ranked[0], ranked[1:]
    where = f"over the held-out benchmarks {' and '.join(names)}"
    text = f"mean key point coverage {figure(first[0])} {where}"
    if not rest:
        return f"the only adapter that passed its gate and was scored on all of them: {text}"
    second = rest[0]
    if first[0] > second[0]:
        text = f"highest {text}; next {second[-1]['adapter']} {figure(second[0])}"
    elif first[1] > second[1]:
        text = f"{text} as {second[-1]['adapter']}, and the higher format compliance"
        text += f" ({figure(first[1])} against {figure(second[1])})"
    else:
        why = "serves both tasks" if first[2] else "comes first in the line"
        text = f"{text}, an exact tie with {second[-1]['adapter']}, and it {why}"
    for entry in rest:
        where_equal = _overlaps(first[-1], entry[-1], names)
        if where_equal:
            text += f"; on {' and '.join(where_equal)} the {OVERLAP} {entry[-1]['adapter']}"
            text += ", so the order there may be chance"
    return text


def _overlaps(one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The benchmarks on which two stages' key point coverage overlaps, or has no interval."""
    found = []
    for name in names:
        first, second = (
            held_out(stage["report"])[name]["result"]["summary"][KEY_POINTS].get("ci95") for stage in (one, other)
        )
        if not first or not second or (first[0] <= second[1] and second[0] <= first[1]):
            found.append(name)
    return found


def build_summary(context: Mapping[str, Any]) -> str:
    """TRAINING_SUMMARY.md as text, from what `collect_context` returned."""
    chosen, why_not = _choose(context)
    names = sorted({name for report in _reports(context) for name in held_out(report)})
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
        trained=any(report["gate"]["questions"] == "trained" for report in _reports(context)),
        trained_note=TRAINED_NOTE,
        warnings=_warnings(context),
        lift=_lift(context),
        compared_head=["adapter", "gate", *names, "mean key point coverage"],
        compared=_compared(context, names) if names else [],
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


def outcome(context: Mapping[str, Any]) -> str:
    """One sentence: how the plan stands."""
    status = {stage["name"]: (stage["state"] or {}).get("status") for stage in context["stages"]}
    for word in ("unknown", "running", "pending", "failed", "lost", "cancelled", "missed"):
        hit = [name for name, found in status.items() if found == word]
        if hit:
            closed = [name for name, found in status.items() if found == "closed"]
            end = f"; closed behind it: {', '.join(closed)}" if closed else ""
            return f"{', '.join(hit)}: {'gate missed' if word == 'missed' else word}{end}"
    done = [name for name, found in status.items() if found == "passed"]
    other = [f"{name} {found or 'never ran'}" for name, found in status.items() if name not in done]
    if not done:
        return "No stage has passed" + (f" ({', '.join(other)})" if other else "")
    head = "All stages passed" if not other else f"Passed: {', '.join(done)}"
    return head + (f" ({', '.join(other)})" if other else "")


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


def _warnings(context: Mapping[str, Any]) -> list[str]:
    return [
        f"{report['adapter']} on {evaluation['name']}: {warning}"
        for report in _reports(context)
        for evaluation in report["evaluations"]
        for warning in evaluation.get("warnings") or []
    ]


def _lift(context: Mapping[str, Any]) -> list[list[object]]:
    rows = []
    for report in _reports(context):
        for evaluation in report["evaluations"]:
            summary = {
                metric: entry
                for metric, entry in evaluation["result"]["summary"].items()
                if metric in (KEY_POINTS, FORMAT)
            }
            if evaluation.get("base"):
                head = [report["stage"], evaluation["name"]]
                rows += [head + row for row in lift_rows(summary, evaluation["base"])]
    return rows


def _compared(context: Mapping[str, Any], names: Sequence[str]) -> list[list[object]]:
    """adapter × held-out benchmark, the base model first."""
    bases = {n: e.get("base") for report in _reports(context) for n, e in held_out(report).items()}
    rows: list[list[object]] = [
        ["no adapter (base model)", ABSENT, *(_pair(bases.get(name)) for name in names), ABSENT]
    ]
    for stage in context["stages"]:
        if stage["report"]:
            found = held_out(stage["report"])
            cells = [_pair(found[n]["result"]["summary"] if n in found else None) for n in names]
            mean = _mean(stage["report"], _unequal_benchmarks(context)[0], KEY_POINTS)
            rows.append([stage["adapter"], stage["state"]["status"], *cells, figure(mean)])
        else:
            note = stage["note"] if stage["present"] else "no adapter"
            rows.append([stage["adapter"], note, *[ABSENT] * len(names), ABSENT])
    return rows


def _pair(summary: Mapping[str, Any] | None) -> str:
    if not summary:
        return "not scored"
    return f"{score(summary.get(KEY_POINTS))}; format {score(summary.get(FORMAT))}"


def _common(
    context: Mapping[str, Any], part: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> list[tuple[str, Any, str]]:
    """name, value, stages: one row for what all reports share, else one for each value."""
    seen: dict[str, dict[str, tuple[object, list[str]]]] = {}
    reports = _reports(context)
    for report in reports:
        for name, value in part(report).items():
            entry = seen.setdefault(name, {}).setdefault(repr(value), (value, []))
            entry[1].append(report["stage"])
    return [
        (name, value, "every" if len(stages) == len(reports) else ", ".join(stages))
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


def next_steps(context: Mapping[str, Any]) -> list[str]:
    """What to do now; sentences with `code`, made from the outcome."""
    steps: list[str] = []
    for stage in context["stages"]:
        steps += _stage_steps(stage)
    for report in _reports(context):
        for name, evaluation in held_out(report).items():
            value, base = (
                (summary.get(KEY_POINTS) or {}).get("value")
                for summary in (evaluation["result"]["summary"], evaluation.get("base") or {})
            )
            if value is not None and base is not None and value <= base:
                steps.append(
                    f"{report['adapter']} is no better than the base model on {name}: add more and"
                    " more varied training rows, not more epochs."
                )
    if _warnings(context):
        steps.append("Take the leaked rows out of the training data or the benchmark.")
    chosen = best_model(context)
    if chosen and OVERLAP in chosen["reason"]:
        steps.append("Add rows to the benchmarks: the intervals overlap, so they do not decide.")
    states = [(stage["state"] or {}).get("status") for stage in context["stages"]]
    if (context["plan"] or {}).get("profile") == "embedded" and set(states) <= {
        "passed",
        "skipped",
    }:
        steps.append(
            "The line works. The tiny base is no tutor: put a GPU host into the inventory and run"
            " the same playbook there."
        )
    if not steps and "passed" not in states:
        steps.append("Nothing has passed yet: run `ansible-playbook playbooks/train_all.yml`.")
    if not steps:
        steps.append("Read the rows that missed something in the eval reports, then use the adapter.")
    return list(dict.fromkeys(steps))


def _stage_steps(stage: Mapping[str, Any]) -> list[str]:
    found = stage["state"] or {"status": "never"}
    name, status = stage["name"], found["status"]
    again = f"`ansible-playbook playbooks/train_all.yml --tags {stage['tag']}`"
    if status in ("failed", "lost"):
        log = found.get("log") or "its log"
        return [f"Stage {name} {status}: follow ISSUES.md and look at {log}, then run {again}."]
    if status == "missed":
        report = f"`Rows that missed something` in eval_report_{name}.md"
        return [f"Stage {name}: read {report}, then add rows like those, or train longer (num_train_epochs)."]
    if status in ("running", "pending"):
        return ["The plan is not at its end: collect again later with `--tags collect`."]
    if status == "cancelled":
        return [f"Stage {name} was cancelled: run the playbook to go on."]
    if status == "unknown":
        return [f"The state of stage {name} cannot be read: look at outputs/state/{name}.json."]
    if status == "passed" and not stage["report"]:
        return [f"Stage {name} has no report that matches its adapter: run {again}."]
    return []


def closing_lines(context: Mapping[str, Any], output_dir: str) -> list[str]:
    """The last lines for the terminal: where summary and adapters are, and the best model."""
    run = context.get("run")
    folder = output_dir.rstrip("/") or "."
    where = f"{folder}/training_sync/{run}/TRAINING_SUMMARY.md" if run else "none was collected yet"
    adapters = [stage["adapter"] for stage in context["stages"] if stage["present"]]
    listed = f"{folder}/adapter ({', '.join(adapters)})" if adapters else "none"
    chosen, why_not = _choose(context)
    best = f"{chosen['adapter']} ({chosen['reason']})" if chosen else f"none ({why_not})"
    return [f"Summary: {where}", f"Adapters: {listed}", f"Best model: {best}"]
