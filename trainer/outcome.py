"""How a plan stands in one sentence, and what its user does next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.comparison import KEY_POINTS, OVERLAP, best_model, held_out, reports


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


def warnings_of(context: Mapping[str, Any]) -> list[str]:
    """The warnings of all reports, each with its adapter and benchmark."""
    return [
        f"{report['adapter']} on {evaluation['name']}: {warning}"
        for report in reports(context)
        for evaluation in report["evaluations"]
        for warning in evaluation.get("warnings") or []
    ]


def next_steps(context: Mapping[str, Any]) -> list[str]:
    """What to do now; sentences with `code`, made from the outcome."""
    steps: list[str] = []
    for stage in context["stages"]:
        steps += _stage_steps(stage)
    for report in reports(context):
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
    if any(": leakage: " in warning for warning in warnings_of(context)):
        steps.append("Take the leaked rows out of the training data or the benchmark.")
    chosen = best_model(context)
    if chosen and OVERLAP in chosen["reason"]:
        steps.append("Add rows to the benchmarks: the intervals overlap, so they do not decide.")
    states = [(stage["state"] or {}).get("status") for stage in context["stages"]]
    if (context["plan"] or {}).get("profile") == "embedded" and set(states) <= {"passed", "skipped"}:
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
