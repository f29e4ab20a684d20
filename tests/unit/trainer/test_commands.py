"""What each command that works does with sound input: its answer, what it writes, and what it leaves alone."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.command_line import FAILED, Call, answer_of
from trainer import artifacts, base, commands, process
from trainer.state import append_event, read_json, write_json

# --- plans ----------------------------------------------------------------------------------------------------------


def test_submit_answers_as_json_or_with_its_lines(call: Call, line: Any) -> None:
    found = answer_of(call("submit", "--input", "-", "--json", stdin=line.request()))
    assert set(found) == {"plan_id", "action", "lines"} and found["action"] == "start"
    line.finish()
    assert answer_of(call("submit", "--input", "-", "--json", stdin=line.request()))["action"] == "none"


def test_a_collected_copy_is_never_trained_in(call: Call, line: Any) -> None:
    line.layout.outputs.mkdir(parents=True)
    marker = line.layout.outputs / artifacts.COLLECTED
    marker.touch()
    for words in (["submit", "--input", "-"], ["cancel"], ["collect"]):
        code, _, err = call(*words, stdin=line.request())
        assert code == 2 and "is a copy that was collected from a host; name the host's folder" in err[-1]
    marker.unlink()
    assert call("submit", "--input", "-", stdin=line.request())[0] == 0


def test_cancel_answers_with_what_was_done(call: Call, line: Any) -> None:
    nothing = {"cancelled": False, "lines": ["no plan is running: nothing to cancel"]}
    assert answer_of(call("cancel", "--json")) == nothing
    plan_id = answer_of(call("submit", "--input", "-", "--json", stdin=line.request("sample")))["plan_id"]
    done = {"cancelled": True, "lines": [f"plan {plan_id} was cancelled before it began"]}
    assert answer_of(call("cancel", "--json")) == done
    assert answer_of(call("cancel", "--json")) == nothing
    assert call("cancel")[1] == "no plan is running: nothing to cancel\n"


# --- watching -------------------------------------------------------------------------------------------------------


def test_watch_answers_as_json_with_cursor_and_result(call: Call, line: Any) -> None:
    plan_id = line.record_plan("style", status="running")["plan_id"]
    words = ("watch", "--plan", plan_id, "--stage", "style", "--wait-seconds", "0", "--json")
    with process.locked(line.layout.lock):
        append_event(line.layout, "phase", plan_id=plan_id, stage="style", phase="loading")
        found = answer_of(call(*words))
    assert found["lines"] == ["style   loading"] and found["more"] is True and found["result"] is None
    line.record_plan("style", outcomes={"style": FAILED})
    plan_id = line.record_plan("style", outcomes={"style": FAILED})["plan_id"]
    found = answer_of(call("watch", "--plan", plan_id, "--stage", "style", "--after", str(found["cursor"]), "--json"))
    assert found["more"] is False and found["result"] == {"stage": "style", **FAILED}


def test_watch_ends_as_the_first_stage_that_did_not_end_well(call: Call, line: Any) -> None:
    closed = {"status": "closed", "message": "closed: stage style is failed", "exit_code": 3}
    line.record_plan("style", "writing", outcomes={"style": FAILED, "writing": closed})
    code, out, err = call("watch")
    assert (code, err) == (5, ["error: stage style broke"])
    assert out.splitlines() == ["style   stage style broke", "writing closed: stage style is failed"]
    assert call("watch", "--stage", "writing")[::2] == (3, ["error: closed: stage style is failed"])


def test_watch_of_a_plan_that_did_well(call: Call, line: Any) -> None:
    line.finish("sample")
    line.record_plan("sample", outcomes={"sample": {"status": "passed", "message": "open", "exit_code": 0}})
    code, out, err = call("watch")
    assert (code, err) == (0, []) and out.startswith("sample  passed on held-out questions: answered 1.000")


def test_ctrl_c_detaches_and_says_how_to_go_on(call: Call, line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line.record_plan("sample", status="running")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.watch, "follow", interrupt)
    code, _, err = call("watch")
    assert code == 7 and err[-1].startswith("error: detached")
    assert any(row.strip().startswith("watch it:") and str(line.layout.root) in row for row in err)


def test_run_submits_starts_and_watches(call: Call, line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def supervisor(command: list[str], **options: Any) -> None:
        assert options["start_new_session"] and options["cwd"] == commands.steps.code_root()
        started.append(command)
        record = read_json(line.layout.plan)
        assert record is not None and record["plan_id"] == command[-1]
        line.finish("sample")
        passed = {"status": "passed", "message": "the gate is open", "exit_code": 0}
        write_json(line.layout.plan, {**record, "status": "ended", "outcomes": {"sample": passed}})

    words = ("run", "--stages", "sample", "--data-root", str(line.data), "--set", f"model_name_or_path={line.base}")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", supervisor)
        code, out, err = call(*words)
    assert (code, err) == (0, []) and out.splitlines()[-1].startswith("sample  passed")
    assert started[0][1:3] == ["-m", "trainer"] and "supervise" in started[0]
    code, out, _ = call(*words)
    assert code == 0 and out.startswith("sample  ") and len(started) == 1, "nothing is started in vain"


def test_base_build_names_the_folder(call: Call, line: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []

    def build(models: Path, corpus: Path) -> Path:
        asked.extend([models, corpus])
        return models / "embedded-0"

    monkeypatch.setattr(base, "build", build)
    assert call("base", "build", "--corpus", str(tmp_path))[1].strip().endswith("models/embedded-0")
    assert asked == [line.layout.models, tmp_path]
