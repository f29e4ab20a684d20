"""What a terminal shows of a stage, and how it is told that the stage has ended."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from trainer import process, watch
from trainer.state import append_event, read_stage, write_json

PASSED = {"status": "passed", "message": "the gate is open", "exit_code": 0}
PROGRESS = {"event": "progress", "stage": "style", "loss": 0.5, "steps_per_second": 1.5, "seconds_left": 60.0}


def progress(step: int, **more: Any) -> dict[str, Any]:
    return {**PROGRESS, "step": step, "steps": 20, **more}


def answered(count: int, questions: str = "trained") -> dict[str, Any]:
    return {"event": "progress", "stage": "style", "answered": count, "rows": 40, "questions": questions}


def follow(line: Any, plan_id: str, stage: str = "style", after: int = 0, wait: float = 0.0) -> dict[str, Any]:
    return watch.follow(line.layout, plan_id, stage, after, wait)


def say(line: Any, plan_id: str, event: str, stage: str = "style", **fields: Any) -> None:
    append_event(line.layout, event, plan_id=plan_id, stage=stage, **fields)


# --- lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"event": "stage started", "state": {"status": "running", "mode": "train", "reason": "changed: data"}},
         "training (changed: data)"),
        ({"event": "stage started", "state": {"status": "running", "mode": "evaluate", "reason": "x"}},
         "scoring again (x)"),
        ({"event": "stage started", "state": {"status": "closed"}}, ""),
        ({"event": "phase", "phase": "loading"}, "loading"),
        ({"event": "phase", "phase": "training", "rows": 28}, "training, 28 rows"),
        ({"event": "note", "text": "embedded base: step 50/200"}, "embedded base: step 50/200"),
        (progress(3), "step 3/20  loss 0.5000  1.50 it/s  01:00 left"),
        (progress(3, seconds_left=None), "step 3/20  loss 0.5000  1.50 it/s"),
        (progress(3, seconds_left=3725, gpu_percent=98, gpu_memory_mib=21811, gpu_memory_total_mib=24576),
         "step 3/20  loss 0.5000  1.50 it/s  1:02:05 left  GPU 98% 21/24 GiB"),
        (answered(12), "answered 12/40 (trained)"),
        ({"event": "checkpoint", "step": 40, "seconds": 1.0, "bytes": 10}, "checkpoint at step 40"),
        ({"event": "resumed", "step": 40, "checkpoint": "step-40", "skipped": []}, "resumed from step 40"),
        ({"event": "resumed", "step": 40, "skipped": ["step-60 (torn)"]},
         "resumed from step 40 (passed over: step-60 (torn))"),
        ({"event": "stalled", "seconds": 1800.0, "why": ""},
         "stalled for 30:00: no report, no processor time; ended only by the time limit"),
        ({"event": "stalled", "seconds": 60.0, "why": "was stopped by a signal"},
         "stalled for 01:00: no report, no processor time (was stopped by a signal); ended only by the time limit"),
        ({"event": "moving", "seconds": 90.0}, "moving again after 01:30"),
        ({"event": "not written", "text": "the disk is full: x"}, "the disk is full: x"),
        (answered(12, "base model"), "answered 12/40 (base model)"),
        ({"event": "out_of_memory", "during": "answering", "batch": 64, "next_batch": 32, "message": "x"},
         "out of memory with 64 questions at a time, going on with 32"),
        ({"event": "stage ended", "state": {"status": "passed"}}, ""),
        ({"event": "stage kept", "status": "up to date"}, ""),
        ({"event": "an event of a newer version"}, ""),
    ],
)  # fmt: skip
def test_each_kind_of_event_has_its_line(event: dict[str, Any], text: str) -> None:
    assert watch.line_of(event) == text
    assert watch.lines_of([{"stage": "style", **event}]) == ([f"style   {text}"] if text else [])


def test_ordinary_lines_fit_a_narrow_terminal() -> None:
    gpu = {"gpu_percent": 100, "gpu_memory_mib": 142000, "gpu_memory_total_mib": 143771}
    new = {"status": "running", "mode": "train", "reason": "it was not trained before"}
    events = [
        {"event": "stage started", "state": new},
        {"event": "phase", "phase": "evaluating", "rows": 57},
        progress(100, steps=100, loss=12.3456, **gpu),
        answered(40, "base model"),
    ]  # fmt: skip
    for event in events:
        found = watch.lines_of([{**event, "stage": "writing"}])
        assert len(found) == 1 and len(found[0]) <= 80, found


def test_of_progress_that_arrived_together_only_the_last_is_news() -> None:
    phase = {"event": "phase", "stage": "style", "phase": "evaluating"}
    events = [progress(1), progress(2), progress(3), phase, answered(1), answered(9), answered(40)]
    shown = [text.split("  ")[1].strip() for text in watch.lines_of(events)]
    assert [text.split()[1] for text in watch.lines_of(events)] == ["step", "evaluating", "answered"]
    assert len(shown) == 3 and "3/20" in watch.lines_of(events)[0] and "40/40" in watch.lines_of(events)[2]
    assert len(watch.lines_of([progress(2), answered(1)])) == 2, "of two kinds each is news"


def test_seconds_are_shown_as_a_clock() -> None:
    assert [watch.clock(s) for s in (-1, 0, 59.9, 61, 3600, 90061)] == [
        "00:00", "00:00", "00:59", "01:01", "1:00:00", "25:01:01",
    ]  # fmt: skip


# --- following ------------------------------------------------------------------------------------------------------


def test_lines_come_once_and_the_result_after_the_last_of_them(line: Any) -> None:
    record = line.record_plan("sample", "style", "writing", status="running")
    plan_id = record["plan_id"]
    with process.locked(line.layout.lock):
        say(line, plan_id, "phase", phase="training", rows=2)
        say(line, plan_id, "phase", phase="loading", stage="sample")
        say(line, "another plan", "phase", phase="loading")
        first = follow(line, plan_id)
        assert first["lines"] == ["style   training, 2 rows"] and first["more"] and first["result"] is None
        nothing = follow(line, plan_id, after=first["cursor"])
        assert nothing["lines"] == [] and nothing["more"] and nothing["cursor"] == first["cursor"]
        line.finish("sample", "style")
        say(line, plan_id, "note", text="last words")
        write_json(line.layout.plan, {**record, "outcomes": {"style": PASSED}})
        last = follow(line, plan_id, after=first["cursor"])
    assert not last["more"] and last["result"] == {"stage": "style", **PASSED}
    assert last["lines"][0] == "style   last words"
    figures = "key point coverage 1.000 n=11 (target 0.90), format compliance 1.000 n=11 (target 0.95)"
    assert last["lines"][1:] == [f"style   passed on held-out questions: {figures}"]


def test_the_last_stage_has_ended_when_the_supervisor_has_closed_its_plan(line: Any) -> None:
    line.finish("sample", "style")
    record = line.record_plan("sample", "style", status="running", outcomes={"sample": PASSED, "style": PASSED})
    with process.locked(line.layout.lock):
        assert follow(line, record["plan_id"], "sample")["result"] == {"stage": "sample", **PASSED}
        assert follow(line, record["plan_id"])["more"], "its plan is not written as ended yet"
        write_json(line.layout.plan, {**record, "status": "ended"})
        assert follow(line, record["plan_id"])["result"] == {"stage": "style", **PASSED}


def test_watching_waits_for_news_and_no_longer(line: Any) -> None:
    plan_id = line.record_plan("style", status="running")["plan_id"]
    with process.locked(line.layout.lock):
        speaker = threading.Timer(0.3, say, (line, plan_id, "phase"), {"phase": "loading"})
        speaker.start()
        started = time.monotonic()
        found = follow(line, plan_id, wait=20.0)
        assert found["lines"] == ["style   loading"] and 0.2 < time.monotonic() - started < 10
        speaker.join()
        started = time.monotonic()
        assert follow(line, plan_id, after=found["cursor"], wait=0.3)["lines"] == []
        assert 0.3 <= time.monotonic() - started < 5


def test_a_missed_gate_shows_the_figures_and_why(line: Any) -> None:
    line.finish("sample")
    line.finish("style", status="missed")
    missed = {"status": "missed", "message": "stage style missed its gate: 0.5", "exit_code": 6}
    plan_id = line.record_plan("style", outcomes={"style": missed})["plan_id"]
    found = follow(line, plan_id)
    assert found["result"] == {"stage": "style", **missed}
    assert "missed on held-out questions: key point coverage 0.500 n=11 (target 0.90)" in found["lines"][0]
    assert found["lines"][1] == "style   gate strict: stage style missed its gate: 0.5"


@pytest.mark.parametrize(
    ("status", "code"), [("up to date", 0), ("skipped", 0), ("closed", 3), ("failed", 5), ("cancelled", 7)]
)
def test_every_other_end_is_one_line_with_its_message(line: Any, status: str, code: int) -> None:
    outcome = {"status": status, "message": f"why it is {status}", "exit_code": code}
    plan_id = line.record_plan("style", outcomes={"style": outcome})["plan_id"]
    found = follow(line, plan_id)
    assert found["lines"] == [f"style   why it is {status}"] and found["result"] == {"stage": "style", **outcome}


def test_a_plan_with_nothing_to_do_tells_that_its_stages_are_up_to_date(line: Any) -> None:
    line.finish()
    answer = line.submit()
    assert answer["action"] == "none"
    found = follow(line, answer["plan_id"])
    assert found["result"]["status"] == "up to date" and found["result"]["exit_code"] == 0
    assert found["lines"][0].startswith("style   up to date: data, base model, parameters and code are those of")
    state = read_stage(line.layout, "sample")
    assert state is not None
    write_json(line.layout.stage("sample"), {**state, "status": "skipped", "message": "skipped as asked for"})
    assert follow(line, answer["plan_id"], "sample")["result"]["status"] == "skipped"


def test_a_plan_that_is_gone_is_lost(line: Any) -> None:
    found = follow(line, "20260101T000000-00000000")
    assert found["result"]["status"] == "lost" and found["result"]["exit_code"] == 7
    assert found["lines"] == ["style   the plan is gone: no plan is there"]
    other = line.record_plan("style")["plan_id"]
    assert f"plan {other} is there now" in follow(line, "20260101T000000-00000000")["lines"][0]


def test_a_plan_that_never_started_is_given_up_after_a_while(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_id = line.submit("sample")["plan_id"]
    assert follow(line, plan_id, "sample")["more"], "its supervisor may still be starting"
    monkeypatch.setattr(watch, "START_SECONDS", -1.0)
    with process.locked(line.layout.lock):
        assert follow(line, plan_id, "sample")["more"], "somebody holds the lock: it has just started"
    found = follow(line, plan_id, "sample")
    assert found["result"]["status"] == "lost" and found["result"]["exit_code"] == 7
    assert "did not start; run the playbook again" in found["lines"][0]


def test_a_plan_whose_supervisor_is_gone_is_written_down_as_lost(line: Any) -> None:
    line.finish("sample", "style")
    record = line.record_plan("style", "writing", status="running")
    state = read_stage(line.layout, "style")
    assert state is not None
    write_json(line.layout.stage("style"), {**state, "status": "running", "plan_id": record["plan_id"]})
    with process.locked(line.layout.lock):
        assert follow(line, record["plan_id"])["more"]
    found = follow(line, record["plan_id"])
    assert found["result"]["status"] == "lost" and found["result"]["exit_code"] == 7
    assert follow(line, record["plan_id"], "writing")["result"]["status"] == "closed"
    written = read_stage(line.layout, "style")
    assert written is not None and written["status"] == "lost"


def test_a_stage_that_the_plan_does_not_contain_is_not_waited_for(line: Any) -> None:
    plan_id = line.record_plan("style", status="running")["plan_id"]
    with process.locked(line.layout.lock):
        assert follow(line, plan_id)["more"]
        found = follow(line, plan_id, "writing", wait=60.0)
    assert found["result"]["exit_code"] == 7 and "has no stage writing" in found["lines"][0]
