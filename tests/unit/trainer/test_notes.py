"""A worker's reports and its silence, as states, events and issues."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer import notes, plan
from trainer.diagnose import Issue
from trainer.ledger import Ledger
from trainer.notes import Notes, record_issues
from trainer.state import read_events, read_stage


@pytest.fixture
def books(line: Any) -> Ledger:
    record = line.record_plan("style", status="running")
    found = Ledger(line.layout, plan.of_record(record), record)
    found.begin_stage("style", status="running", attempt=1)
    return found


def kinds(books: Ledger) -> list[str]:
    return [event["event"] for event in read_events(books.layout)[0]][1:]


def test_a_phase_is_a_state_and_names_the_worker(books: Ledger) -> None:
    who = {"pid": 1, "boot_id": "b", "start_time": "1"}
    Notes(books, "style", lambda: who, 100.0)({"event": "phase", "phase": "training", "rows": 28})
    state = read_stage(books.layout, "style")
    assert state is not None and state["phase"] == "training" and "rows" not in state
    assert books.record["worker"] == who
    assert read_events(books.layout)[0][-1]["rows"] == 28


def test_progress_is_told_now_and_then_and_at_its_end(books: Ledger) -> None:
    note = Notes(books, "style", lambda: None, 100.0)
    for step in range(1, 101):
        note({"event": "progress", "step": step, "steps": 100})
    assert [event["step"] for event in read_events(books.layout)[0] if event["event"] == "progress"] == [1, 100]


def test_what_a_worker_reports_cannot_change_whose_event_it_is(books: Ledger) -> None:
    note = Notes(books, "style", lambda: None, 100.0)
    note(
        {"event": "checkpoint", "step": 40, "stage": "all", "plan_id": "x", "time": "0", "state": {"status": "passed"}}
    )
    last = read_events(books.layout)[0][-1]
    assert (last["event"], last["step"], last["stage"], last["plan_id"]) == (
        "checkpoint", 40, "style", books.plan.plan_id
    )  # fmt: skip
    assert "state" not in last and last["time"] != "0"


def test_a_stall_is_a_state_an_issue_and_told_again(books: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    note = Notes(books, "style", lambda: None, 100.0)
    news = [("stalled", 100.0), None, ("stalled", 200.0), ("moving", 250.0), ("stalled", 100.0)]
    monkeypatch.setattr(note.stall, "look", lambda: news.pop(0))
    since = []
    for _ in range(5):
        note.look()
        since.append(bool((read_stage(books.layout, "style") or {})["stalled_since"]))
    assert since == [True, True, True, False, True]
    assert kinds(books) == ["stalled", "stalled", "moving", "stalled"]
    path = books.layout.logs / "issues.jsonl"
    found = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    assert [item["severity"] for item in found] == ["warning", "warning"]


def test_issues_that_cannot_be_written_are_an_event(books: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    issue = Issue("t", "training", "style", "error", "s", "c", "a")

    def broken(*_: Any) -> None:
        raise LookupError("the template is gone")

    monkeypatch.setattr(notes.diagnose, "append_issues", broken)
    record_issues(books, [issue])
    assert "the template is gone" in read_events(books.layout)[0][-1]["text"]
