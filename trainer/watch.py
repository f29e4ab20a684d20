"""Following a stage from the event log: ready lines for a terminal, and how the stage ended. No torch."""

from __future__ import annotations

import time
from typing import Any

from trainer import plan as plans
from trainer.plan import START_SECONDS
from trainer.process import holder
from trainer.recovery import Unwritten, mark_lost
from trainer.state import Layout, read_events, read_stage

POLL_SECONDS = 0.25
NAME_WIDTH = 8

Event = dict[str, Any]


def follow(layout: Layout, plan_id: str, stage: str, after: int, wait_seconds: float) -> dict[str, Any]:
    """New lines on a stage since byte `after` of the event log, waiting up to `wait_seconds` for one.

    Returns {"lines", "cursor", "more", "result"}; `result` ({stage, status, exit_code, message}) comes with the
    last answer, when `more` is false.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        result = _result(layout, plan_id, stage)  # before the events: its last ones are then among them
        events, after = read_events(layout, after)
        lines = lines_of([e for e in events if e.get("plan_id") == plan_id and e.get("stage") == stage])
        if result is not None:
            lines += ended(stage, result, read_stage(layout, stage) or {})
        if result is not None or lines or time.monotonic() >= deadline:
            return {"lines": lines, "cursor": after, "more": result is None, "result": result}
        time.sleep(POLL_SECONDS)


def _result(layout: Layout, plan_id: str, stage: str) -> dict[str, Any] | None:
    record = plans.read_record(layout)
    if record is None or record["plan_id"] != plan_id:
        if (holder(layout.lock) or {}).get("plan_id") == plan_id:
            return None  # its file was removed under it: the supervisor writes it again
        return _without_plan(layout, record, stage)
    outcome = record["outcomes"].get(stage)
    runs = plans.is_running(layout, record)
    if stage == record["stages"][-1] and record["status"] == "running" and runs:
        return None  # the plan is over when its supervisor says so: what follows wants its last word
    if stage not in record["stages"]:
        outcome = {"status": "lost", "message": f"plan {plan_id} has no stage {stage}; submit it", "exit_code": 7}
    if outcome is None and record["status"] == "running" and not runs:
        try:
            mark_lost(layout)
        except Unwritten as problem:
            return {"stage": stage, "status": "lost", "message": str(problem), "exit_code": problem.exit_code}
        outcome = (plans.read_record(layout) or record)["outcomes"].get(stage)
    never_started = record["status"] == "submitted" and plans.age_seconds(record) > START_SECONDS
    if outcome is None and never_started and not runs:
        message = f"the supervisor of plan {plan_id} did not start; run the playbook again"
        outcome = {"status": "lost", "message": message, "exit_code": 7}
    if outcome is None and record["status"] == "ended":
        outcome = {"status": "lost", "message": f"plan {plan_id} ended without stage {stage}", "exit_code": 7}
    return None if outcome is None else {"stage": stage, **outcome}


def _without_plan(layout: Layout, record: dict[str, Any] | None, stage: str) -> dict[str, Any]:
    """How a stage stands whose plan was not written because nothing was to be done, or was replaced."""
    state = read_stage(layout, stage) or {}
    if state.get("status") == "passed":
        reason = f"data, base model, parameters and code are those of {state['plan_id']}"
        return {"stage": stage, "status": "up to date", "exit_code": 0, "message": f"up to date: {reason}"}
    if state.get("status") == "skipped":
        return {"stage": stage, "status": "skipped", "exit_code": 0, "message": state["message"]}
    other = f"plan {record['plan_id']} is there now" if record else "no plan is there"
    return {"stage": stage, "status": "lost", "exit_code": 7, "message": f"the plan is gone: {other}"}


def lines_of(events: list[Event]) -> list[str]:
    """One line for each change; of progress lines that arrived together only the last is news."""
    lines: list[str] = []
    for position, event in enumerate(events):
        following = events[position + 1] if position + 1 < len(events) else {}
        both = event["event"] == following.get("event") == "progress"
        if both and ("step" in event) == ("step" in following):
            continue
        text = line_of(event)
        if text:
            lines.append(f"{event['stage']:<{NAME_WIDTH}}{text}")
    return lines


def line_of(event: Event) -> str:
    """The text of one event without the stage's name, or an empty text when a terminal need not show it."""
    state = event.get("state") or {}
    if event["event"] == "stage started" and state.get("status") == "running":
        verb = "training" if state["mode"] == "train" else "scoring again"
        return f"{verb} ({state['reason']})"
    if event["event"] == "phase":
        rows = f", {event['rows']} rows" if "rows" in event else ""
        return f"{event['phase']}{rows}"
    if event["event"] in ("note", "not written"):
        return str(event["text"])
    if event["event"] == "checkpoint":
        return f"checkpoint at step {event['step']}"
    if event["event"] == "resumed":
        passed = event.get("skipped") or []
        return f"resumed from step {event['step']}" + (
            f" (passed over: {', '.join(map(str, passed))})" if passed else ""
        )
    if event["event"] == "out_of_memory" and event.get("during") == "answering":
        return f"out of memory with {event['batch']} questions at a time, going on with {event['next_batch']}"
    if event["event"] == "stalled":
        why = f" ({event['why']})" if event.get("why") else ""
        return f"stalled for {clock(event['seconds'])}: no report, no processor time{why}; ended only by the time limit"
    if event["event"] == "moving":
        return f"moving again after {clock(event['seconds'])}"
    if event["event"] == "progress":
        return _training_line(event) if "step" in event else _evaluating_line(event)
    return ""


def _training_line(event: Event) -> str:
    parts = [f"step {event['step']}/{event['steps']}", f"loss {event['loss']:.4f}"]
    parts.append(f"{event['steps_per_second']:.2f} it/s")
    if event.get("seconds_left") is not None:
        parts.append(f"{clock(event['seconds_left'])} left")
    if "gpu_percent" in event:
        used, total = event["gpu_memory_mib"] / 1024, event["gpu_memory_total_mib"] / 1024
        parts.append(f"GPU {event['gpu_percent']}% {used:.0f}/{total:.0f} GiB")
    return "  ".join(parts)


def _evaluating_line(event: Event) -> str:
    return f"answered {event['answered']}/{event['rows']} ({event['questions'].replace('_', ' ')})"


def clock(seconds: float) -> str:
    """Seconds as MM:SS, or H:MM:SS from an hour on."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def ended(stage: str, result: dict[str, Any], state: dict[str, Any]) -> list[str]:
    """The closing lines of a stage: its status with what its gate was judged on."""
    name = f"{stage:<{NAME_WIDTH}}"
    if result["status"] not in ("passed", "missed"):
        return [f"{name}{result['message']}"]
    gate = state.get("gate") or {}
    shown = ", ".join(
        f"{metric.replace('_', ' ')} {figure(item)} (target {gate['targets'][metric]:.2f})"
        for metric, item in (gate.get("measured") or {}).items()
    )
    asked = f" on {gate['questions'].replace('_', '-')} questions" if gate else ""
    lines = [f"{name}{result['status']}{asked}: {shown}" if shown else f"{name}{result['message']}"]
    if result["status"] == "missed":
        lines.append(f"{name}gate {gate.get('mode', '')}: {result['message']}")
    return lines


def figure(item: dict[str, Any]) -> str:
    """A metric as `0.923 n=28`, or `not measured`."""
    return "not measured" if item["value"] is None else f"{item['value']:.3f} n={item['n']}"
