"""State files and the event log: whole or nothing, and never a guess about what they say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from trainer import state
from trainer.state import Layout, StateError

STATE = {"schema": 1, "stage": "style", "status": "passed", "plan_id": "p1"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_record_is_read_back_as_it_was_written(layout: Layout) -> None:
    assert state.read_json(layout.plan) is None and state.read_stage(layout, "style") is None
    state.write_json(layout.stage("style"), {**STATE, "message": "电场 ε₀"})
    assert state.read_stage(layout, "style") == {**STATE, "message": "电场 ε₀"}
    state.write_json(layout.stage("style"), STATE)
    assert state.read_stage(layout, "style") == STATE
    assert names(layout.state) == ["style.json"], "nothing is left beside it"


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": object()}, {"x": "\ud83d"}])
def test_a_record_that_cannot_be_written_leaves_the_old_one(layout: Layout, value: Any) -> None:
    state.write_json(layout.plan, STATE)
    with pytest.raises((ValueError, TypeError)):
        state.write_json(layout.plan, value)
    assert state.read_json(layout.plan) == STATE and names(layout.state) == ["plan.json"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_in_the_middle_leaves_the_old_file(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    state.write_json(layout.plan, STATE)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError, match="No space"):
            state.write_json(layout.plan, {**STATE, "status": "failed"})
    assert state.read_json(layout.plan) == STATE and names(layout.state) == ["plan.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b'{"schema": 1, "stage"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a state"),
        (b'{"status": "passed"}', "is not a state"),
        (b'{"schema": "1"}', "is not a state"),
        (b'{"schema": 2}', "was written by a newer version (schema 2, known 1); nothing was started"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_state_stops_with_a_named_error(layout: Layout, content: bytes, words: str) -> None:
    layout.state.mkdir(parents=True)
    layout.plan.write_bytes(content)
    with pytest.raises(StateError) as caught:
        state.read_json(layout.plan)
    assert words in str(caught.value) and str(layout.plan) in str(caught.value)
    assert caught.value.exit_code == 7
    layout.plan.write_bytes(b'{"schema": 1}')
    assert state.read_json(layout.plan) == {"schema": 1}


@pytest.mark.parametrize("change", [{"status": "done"}, {"status": None}, {"stage": "writing"}])
def test_a_stage_state_of_another_stage_or_status_is_refused(layout: Layout, change: dict[str, Any]) -> None:
    state.write_json(layout.stage("style"), {**STATE, **change})
    with pytest.raises(StateError, match="is of stage .* with the status"):
        state.read_stage(layout, "style")


def test_a_state_file_that_is_a_folder_is_an_error_and_not_a_fresh_start(layout: Layout) -> None:
    layout.plan.mkdir(parents=True)
    with pytest.raises(StateError, match="cannot be read"):
        state.read_json(layout.plan)


def test_events_are_read_from_where_the_last_reading_ended(layout: Layout) -> None:
    assert state.read_events(layout) == ([], 0)
    first = state.append_event(layout, "plan started", plan_id="p1")
    events, cursor = state.read_events(layout)
    assert events == [first] and first["time"].endswith("+00:00")
    second = state.append_event(layout, "note", text="电场\n第二行")
    assert state.read_events(layout, cursor)[0] == [second]
    assert state.read_events(layout)[1] == layout.events.stat().st_size


def test_a_torn_last_line_is_passed_over_and_closed_by_the_next_event(layout: Layout) -> None:
    kept = state.append_event(layout, "plan started")
    with layout.events.open("ab") as stream:
        stream.write(b'{"time": "x", "event": "phase", "sta')
    events, cursor = state.read_events(layout)
    assert events == [kept], "half an event is not yet news"
    after = state.append_event(layout, "plan ended")
    assert state.read_events(layout, cursor)[0] == [after]
    assert state.read_events(layout)[0] == [kept, after]


def test_lines_that_are_no_events_are_passed_over(layout: Layout) -> None:
    kept = state.append_event(layout, "plan started")
    with layout.events.open("ab") as stream:
        stream.write(b'[1]\n{"time": "x"}\n{"event": 5}\nnull\n\xff\n')
    last = state.append_event(layout, "plan ended")
    assert state.read_events(layout)[0] == [kept, last]


def test_the_states_can_be_derived_from_the_events() -> None:
    started = {**STATE, "status": "running", "error": None, "attempt": 1}
    events: list[dict[str, Any]] = [
        {"event": "plan started"},
        {"event": "stage started", "stage": "style", "state": started},
        {"event": "phase", "stage": "style", "state": {"phase": "training"}},
        {"event": "progress", "stage": "style", "step": 1},
        {"event": "stage ended", "stage": "style", "state": {"status": "failed", "error": {"kind": "x"}, "phase": ""}},
        {"event": "stage started", "stage": "writing", "state": {"stage": "writing", "status": "closed"}},
    ]
    failed = {**started, "status": "failed", "phase": "", "error": {"kind": "x"}}
    assert state.derive_states(events) == {"style": failed, "writing": {"stage": "writing", "status": "closed"}}
    again = [*events, {"event": "stage started", "stage": "style", "state": {**started, "attempt": 2}}]
    assert state.derive_states(again)["style"] == {**started, "attempt": 2}, "an attempt begins with a clean state"


def test_events_lie_one_to_a_line_as_json(layout: Layout) -> None:
    for number in range(3):
        state.append_event(layout, "note", text=f"line\n{number}")
    lines = layout.events.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["line\n0", "line\n1", "line\n2"]


def test_every_path_of_the_layout_is_below_the_project_root(tmp_path: Path) -> None:
    found = Layout(tmp_path / "x" / ".." / "host")
    assert found.root == tmp_path / "host"
    assert found.relative(found.adapters / "adapter_style") == "outputs/adapter/adapter_style"
    assert found.relative(found.runs) == "outputs/training_sync" and found.relative(found.models) == "models"


def test_an_event_that_is_taken_in_pieces_is_whole(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:7]))
    kept = state.append_event(layout, "note", text="电场 " * 20)
    assert state.read_events(layout)[0] == [kept]


def test_a_log_that_became_shorter_is_read_from_its_start(layout: Layout) -> None:
    state.append_event(layout, "note", text="long " * 50)
    _, cursor = state.read_events(layout)
    layout.events.unlink()
    last = state.append_event(layout, "note", text="x")
    assert state.read_events(layout, cursor) == ([last], layout.events.stat().st_size)
    layout.move_to(layout.root.with_name("moved"))
    assert layout.events == layout.root / "outputs" / "state" / "events.jsonl"
