"""The books of a plan: event first, then file, and the log alone rebuilds every state."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from trainer import ledger, plan
from trainer.errors import Interrupted
from trainer.ledger import Ledger, verdict
from trainer.state import derive_states, read_events, read_json, read_stage, standing_result

FINGERPRINT = {"training": "t", "evaluation": "e", "adapter": "a", "parts": {}}
RESULT = {"gate": {"passed": True}, "fingerprint": FINGERPRINT, "summary": {}, "times": {}, "superseded": None}


def ledger_of(line: Any, *names: str, **more: Any) -> Ledger:
    """The books of a plan that has just begun."""
    record = line.record_plan(*names, status="running", **more)
    return Ledger(line.layout, plan.of_record(record), record)


def states_of(line: Any) -> dict[str, Any]:
    return {path.stem: read_json(path) for path in line.layout.state.glob("*.json") if path.stem != "plan"}


def assert_the_log_tells_the_states(line: Any) -> None:
    assert derive_states(read_events(line.layout)[0]) == states_of(line) != {}


def train(books: Ledger, name: str, status: str = "passed", code: int = 0) -> None:
    books.begin_stage(name, status="running", phase="starting", attempt=1, log="outputs/logs/x.log", mode="train")
    books.end_stage(name, status, "the gate is open", code, **RESULT)


def test_the_log_tells_the_states_through_every_change(line: Any) -> None:
    books = ledger_of(line, "sample", "style")
    books.begin_stage("style", status="running", phase="starting", attempt=1)
    assert_the_log_tells_the_states(line)
    books.set_stage("phase", "style", details={"rows": 28}, phase="training")
    assert_the_log_tells_the_states(line)
    books.end_stage("style", "passed", "the gate is open", 0, **RESULT)
    assert_the_log_tells_the_states(line)
    kept = standing_result(read_stage(line.layout, "style"))
    other = ledger_of(line, "sample", "style", gate="warn")
    other.end_stage("style", "closed", "closed: stage sample missed its gate", 3)
    assert_the_log_tells_the_states(line)
    assert read_stage(line.layout, "style") != kept
    assert kept is not None
    other.set_stage("stage restored", "style", **kept, phase="", superseded=None)
    assert_the_log_tells_the_states(line)
    assert standing_result(read_stage(line.layout, "style")) == kept


def test_details_are_in_the_event_only(line: Any) -> None:
    books = ledger_of(line, "sample")
    books.begin_stage("sample", status="running")
    books.set_stage("phase", "sample", details={"rows": 28}, phase="training")
    event = read_events(line.layout)[0][-1]
    assert (event["event"], event["rows"], event["plan_id"]) == ("phase", 28, books.plan.plan_id)
    assert "rows" not in states_of(line)["sample"] and states_of(line)["sample"]["phase"] == "training"


def test_a_stage_begins_with_a_clean_state_and_the_result_before_it(line: Any) -> None:
    books = ledger_of(line, "sample")
    books.begin_stage("sample", status="running", attempt=1)
    assert states_of(line)["sample"]["superseded"] is None, "there was none"
    books.end_stage("sample", "passed", "the gate is open", 0, **RESULT)
    before = standing_result(read_stage(line.layout, "sample"))
    books.begin_stage("sample", status="running", attempt=2)
    state = states_of(line)["sample"]
    assert state["superseded"] == before and before is not None and before["fingerprint"] == FINGERPRINT
    assert [state[name] for name in ("fingerprint", "gate", "summary", "ended_at", "error")] == [None] * 5
    books.end_stage("sample", "failed", "it broke", 5, error={"kind": "x"})
    books.begin_stage("sample", status="running", attempt=3)
    assert states_of(line)["sample"]["superseded"] == before, "a failed attempt does not take its place"


def test_a_stage_that_never_started_gets_a_state_of_its_own(line: Any) -> None:
    train(ledger_of(line, "sample"), "sample")
    books = ledger_of(line, "sample", gate="warn")
    books.end_stage("sample", "closed", "closed: because", 3)
    state = states_of(line)["sample"]
    assert (state["status"], state["plan_id"], state["attempt"]) == ("closed", books.plan.plan_id, 0)
    assert state["reason"] == state["message"] == "closed: because" and state["log"] is None
    assert state["superseded"]["status"] == "passed"


def test_the_end_of_an_attempt_that_is_followed_by_another_is_no_outcome(line: Any) -> None:
    books = ledger_of(line, "sample")
    books.begin_stage("sample", status="running", attempt=1)
    books.end_stage("sample", "lost", "the worker is gone", 7, final=False)
    assert plan.read_record(line.layout)["outcomes"] == {}  # type: ignore[index]
    books.end_stage("sample", "lost", "the worker is gone", 7)
    assert plan.read_record(line.layout)["outcomes"] == {  # type: ignore[index]
        "sample": {"status": "lost", "message": "the worker is gone", "exit_code": 7}
    }


def test_an_outcome_leaves_the_state_of_a_kept_stage_alone(line: Any) -> None:
    train(ledger_of(line, "sample"), "sample")
    before = line.layout.stage("sample").read_bytes()
    ledger_of(line, "sample", gate="warn").outcome("sample", "up to date", "up to date: unchanged", 0)
    assert line.layout.stage("sample").read_bytes() == before


def test_the_end_of_a_plan_is_in_its_file_and_in_the_log(line: Any) -> None:
    books = ledger_of(line, "sample", "style")
    train(books, "sample")
    train(books, "style", "missed", 6)
    assert books.close() == 6
    record = plan.read_record(line.layout)
    assert record is not None and record["status"] == "ended" and record["ended_at"]
    last = read_events(line.layout)[0][-1]
    assert (last["event"], last["exit_code"], last["message"]) == ("plan ended", 6, "the gate is open")


@pytest.mark.parametrize(
    ("codes", "found"),
    [([], 0), ([0, 0, 0], 0), ([0, 6, 3], 6), ([0, 3, 6, 7], 3), ([7], 7)],
)
def test_the_verdict_is_the_first_outcome_that_is_not_good(codes: list[int], found: int) -> None:
    names = ["writing", "sample", "all", "style"]  # the order they came in, not that of their names
    outcomes = {
        name: {"status": "x", "message": f"{name} ended with {code}", "exit_code": code}
        for name, code in zip(names, codes, strict=False)
    }
    code, message = verdict({"outcomes": outcomes})
    assert code == found
    wanted = f"{names[codes.index(found)]} ended with {found}" if found else "every stage is done"
    assert message == wanted


# A disk that takes nothing


class Disk:
    """Refuses what is written while it is full; `frees` makes the reserve count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
        self.full = False
        self.refused = 0
        self.number = number
        write_json, append = ledger.write_json, ledger.append_record
        monkeypatch.setattr(ledger, "write_json", lambda *words: self.check() or write_json(*words))
        monkeypatch.setattr(ledger, "append_record", lambda *words: self.check() or append(*words))
        monkeypatch.setattr(ledger, "PAUSE_SECONDS", 0.01)
        monkeypatch.setattr(ledger, "PATIENCE_SECONDS", 0.3)

    def check(self) -> None:
        if self.full:
            self.refused += 1
            raise OSError(self.number, os.strerror(self.number))


def test_what_a_full_disk_does_not_take_is_written_later_in_order(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    books = ledger_of(line, "sample")
    books.begin_stage("sample", status="running", phase="starting", attempt=1)
    disk.full = True
    books.set_stage("phase", "sample", phase="training")
    books.hint("progress", stage="sample", step=1)
    assert disk.refused and states_of(line)["sample"]["phase"] == "starting"
    disk.full = False
    books.event("note", stage="sample", text="room again")
    assert [e["event"] for e in read_events(line.layout)[0]] == ["stage started", "phase", "not written", "note"]
    assert_the_log_tells_the_states(line)
    books.end_stage("sample", "passed", "the gate is open", 0, **RESULT)
    message = states_of(line)["sample"]["message"]
    assert message.startswith("the gate is open; the disk is full: ") and "bytes and" in message
    assert str(line.layout.events) in message and states_of(line)["sample"]["status"] == "passed"


def test_a_stage_that_cannot_be_written_down_does_not_begin(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    books = ledger_of(line, "sample")
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        books.begin_stage("sample", status="running", attempt=1)
    disk.full = False
    books.begin_stage("sample", status="running", attempt=1)


def test_the_reserve_is_given_up_for_the_last_words(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    books = ledger_of(line, "sample")
    books.make_reserve()
    reserve = sorted(line.layout.state.glob(".reserve-*"))
    assert len(reserve) == ledger.RESERVE_FILES and all(p.stat().st_size == ledger.RESERVE_BYTES for p in reserve)
    books.begin_stage("sample", status="running", attempt=1)
    disk.full = True
    books.set_stage("phase", "sample", phase="training")
    assert len(list(line.layout.state.glob(".reserve-*"))) == len(reserve), "not for a phase"
    give_up = books.give_up_reserve

    def freeing() -> bool:
        disk.full = False
        return give_up()

    monkeypatch.setattr(books, "give_up_reserve", freeing)
    books.end_stage("sample", "failed", "it broke", 5)
    assert states_of(line)["sample"]["status"] == "failed" and list(line.layout.state.glob(".reserve-*")) == []
    assert books.close() == 5


def test_a_disk_that_stays_as_it_is_ends_the_waiting_once(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, errno.EROFS)
    books = ledger_of(line, "sample", "style")
    books.begin_stage("sample", status="running", attempt=1)
    disk.full = True
    books.end_stage("sample", "failed", "it broke", 5)
    refused = disk.refused
    books.end_stage("style", "closed", "closed", 3)
    assert disk.refused - refused < 5, "it was tried long enough before"
    with pytest.raises(Interrupted, match=r"\(it broke.*\) is not written: .*Read-only file system"):
        books.close()
    assert states_of(line)["sample"]["status"] == "running", "nothing half-true"


def test_files_that_others_changed_are_mended(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MEND_SECONDS", -1.0)
    books = ledger_of(line, "sample")
    books.update(status="running")
    books.begin_stage("sample", status="running", attempt=1)
    before = states_of(line)
    books.mend()
    assert [e["event"] for e in read_events(line.layout)[0]] == ["stage started"], "nothing to mend"
    line.layout.stage("sample").write_text("", encoding="utf-8")
    line.layout.plan.unlink()
    books.mend()
    assert states_of(line) == before and plan.read_record(line.layout) == books.record


def test_a_file_that_is_not_understood_is_not_replaced(line: Any) -> None:
    books = ledger_of(line, "sample")
    line.layout.stage("sample").write_text('{"schema": 2}', encoding="utf-8")
    books.end_stage("sample", "failed", "it cannot begin", 7)
    assert line.layout.stage("sample").read_text(encoding="utf-8") == '{"schema": 2}'
    assert plan.read_record(line.layout)["outcomes"]["sample"]["status"] == "failed"  # type: ignore[index]
