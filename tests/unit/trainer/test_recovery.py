"""Plans whose supervisor is gone, and cancelling in each situation that a plan can be in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainer import plan, process, recovery
from trainer.errors import Interrupted
from trainer.ledger import Ledger
from trainer.state import derive_states, read_events, read_stage, standing_result, write_json

REPOSITORY = Path(recovery.__file__).resolve().parents[1]
ENDLESS = 1_000_000  # steps: a stage that runs until somebody ends it
NOTHING = ["no plan is running: nothing to cancel"]
# Holds the lock as a supervisor does, and ends or does not end when it is asked to.
HOLDER = """
import pathlib, signal, sys, time
from trainer import process
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with process.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


@contextmanager
def holder(line: Any, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(line.layout.lock), *words]
    found = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert found.stdout is not None and found.stdout.readline() == "held\n"
        # A zombie counts as gone, but somebody has to take note of it.
        threading.Thread(target=found.wait, daemon=True).start()
        yield found
    finally:
        found.kill()
        found.wait()
        found.stdout.close()  # type: ignore[union-attr]


def record_of(line: Any) -> dict[str, Any]:
    record = plan.read_record(line.layout)
    assert record is not None
    return record


def running(line: Any, *names: str) -> Ledger:
    """The books of a running plan whose first stage is in training, with a log."""
    record = line.record_plan(*names, status="running")
    books = Ledger(line.layout, plan.of_record(record), record)
    log = line.layout.logs / "train_sample_x.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("{'loss': 1.0}\nlast words\n", encoding="utf-8")
    books.begin_stage(
        names[0], status="running", phase="training", attempt=1, log=line.layout.relative(log), mode="train"
    )
    return books


def outcomes(line: Any) -> dict[str, tuple[str, int]]:
    return {name: (item["status"], item["exit_code"]) for name, item in record_of(line)["outcomes"].items()}


# A supervisor that is gone


def test_nothing_is_lost_where_nothing_runs(line: Any) -> None:
    assert not recovery.mark_lost(line.layout)
    assert not line.layout.root.exists(), "looking makes no folders"
    for status in ("submitted", "ended"):
        before = line.record_plan("sample", status=status)
        assert not recovery.mark_lost(line.layout)
        assert record_of(line) == before and not line.layout.lock.exists()


def test_the_running_stage_of_a_dead_supervisor_is_lost_and_the_rest_closed(line: Any) -> None:
    running(line, "sample", "style", "writing")
    assert recovery.mark_lost(line.layout)
    assert outcomes(line) == {"sample": ("lost", 7), "style": ("closed", 3), "writing": ("closed", 3)}
    state = read_stage(line.layout, "sample")
    assert state is not None and state["error"]["log_tail"] == ["{'loss': 1.0}", "last words"]
    assert "its supervisor ended without a word" in state["message"] and state["phase"] == ""
    assert record_of(line)["status"] == "ended"
    assert (line.layout.logs / "issues.jsonl").read_text(encoding="utf-8")
    files = {name: read_stage(line.layout, name) for name in ("sample", "style", "writing")}
    assert derive_states(read_events(line.layout)[0]) == files
    events = read_events(line.layout)[0]
    assert not recovery.mark_lost(line.layout) and read_events(line.layout)[0] == events, "once is enough"


def test_a_plan_that_somebody_holds_is_not_lost(line: Any) -> None:
    running(line, "sample")
    with process.locked(line.layout.lock):
        assert not recovery.mark_lost(line.layout)
    assert record_of(line)["status"] == "running"
    assert recovery.mark_lost(line.layout)


def test_a_stage_between_two_attempts_is_lost_and_so_is_one_that_had_not_begun(line: Any) -> None:
    books = running(line, "sample", "style")
    books.end_stage("sample", "lost", "the worker is gone", 7, final=False)
    assert recovery.mark_lost(line.layout)
    assert outcomes(line) == {"sample": ("lost", 7), "style": ("closed", 3)}
    line.record_plan("sample", status="running", gate="warn")
    assert recovery.mark_lost(line.layout)
    assert outcomes(line) == {"sample": ("lost", 7)}, "no earlier gate is to blame that the plan did not come to it"


def test_what_had_an_outcome_keeps_it_and_results_that_stand_are_kept(line: Any) -> None:
    line.finish()
    kept = standing_result(read_stage(line.layout, "writing"))
    books = running(line, "style", "writing", "all")
    books.outcome("style", "up to date", "up to date: unchanged", 0)
    assert recovery.mark_lost(line.layout)
    assert outcomes(line) == {"style": ("up to date", 0), "writing": ("lost", 7), "all": ("closed", 3)}
    assert kept is not None and standing_result(read_stage(line.layout, "writing")) == kept
    assert line.modes("sample", "style", "writing", "all", gate="off") == dict.fromkeys(
        ("sample", "style", "writing", "all"), "keep"
    )


# Cancelling


def test_where_no_plan_runs_there_is_nothing_to_cancel(line: Any) -> None:
    assert recovery.cancel(line.layout) == NOTHING
    assert not line.layout.root.exists()
    before = line.record_plan("sample", status="ended")
    assert recovery.cancel(line.layout) == NOTHING and record_of(line) == before


def test_a_plan_that_nobody_has_begun_is_not_begun_any_more(line: Any) -> None:
    plan_id = line.submit("sample", "style")["plan_id"]
    assert recovery.cancel(line.layout) == [f"plan {plan_id} was cancelled before it began"]
    assert record_of(line)["status"] == "ended"
    assert outcomes(line) == {"sample": ("cancelled", 7), "style": ("cancelled", 7)}
    last = read_events(line.layout)[0][-1]
    assert (last["event"], last["exit_code"]) == ("plan ended", 7)
    assert recovery.cancel(line.layout) == NOTHING
    assert line.submit("sample", "style")["action"] == "start"


def test_a_plan_whose_supervisor_is_gone_is_written_down_as_lost(line: Any) -> None:
    plan_id = running(line, "sample", "style").plan.plan_id
    assert recovery.cancel(line.layout) == [f"plan {plan_id} was lost already: its state says so now"]
    assert outcomes(line) == {"sample": ("lost", 7), "style": ("closed", 3)}
    assert recovery.cancel(line.layout) == NOTHING


def test_a_running_supervisor_and_its_worker_are_ended(line: Any, is_gone: Callable[..., bool]) -> None:
    books = running(line, "sample", "style")
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    threading.Thread(target=orphan.wait, daemon=True).start()
    with holder(line) as supervisor:
        who, worker = process.identity(supervisor.pid), process.identity(orphan.pid)
        books.update(supervisor=who, worker=worker)
        assert recovery.cancel(line.layout) == [f"plan {books.plan.plan_id} was cancelled; 2 processes ended"]
        assert not process.is_alive(who) and not process.is_alive(worker)
    assert outcomes(line) == {"sample": ("cancelled", 7), "style": ("closed", 3)}, "it had no time to say so itself"


def test_a_supervisor_that_does_not_listen_is_killed(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "GRACE_SECONDS", -4.9)  # 0.2 s, all in all
    books = running(line, "sample")
    with holder(line, "stubborn") as supervisor:
        books.update(supervisor=process.identity(supervisor.pid))
        assert recovery.cancel(line.layout) == [f"plan {books.plan.plan_id} was cancelled; 1 process ended"]
        assert supervisor.wait(10) == -signal.SIGKILL
    assert record_of(line)["status"] == "ended"


def test_a_process_that_only_has_the_number_of_the_supervisor_is_left_alone(line: Any) -> None:
    books = running(line, "sample")
    stranger = {**process.identity(), "start_time": "1"}
    books.update(supervisor=stranger, worker=stranger)
    with holder(line) as other, pytest.raises(Interrupted, match="that is not the supervisor of plan"):
        recovery.cancel(line.layout)
    assert process.is_alive(process.identity()) and other.returncode in (None, -signal.SIGKILL)
    assert record_of(line)["status"] == "running", "not called cancelled while somebody holds its lock"


def test_a_supervisor_that_is_just_beginning_is_waited_for(line: Any) -> None:
    plan_id = line.submit("sample")["plan_id"]
    with holder(line) as supervisor:
        record = {**record_of(line), "status": "running", "supervisor": process.identity(supervisor.pid)}
        begins = threading.Timer(0.3, write_json, (line.layout.plan, record))
        begins.start()
        assert recovery.cancel(line.layout) == [f"plan {plan_id} was cancelled; 1 process ended"]
        begins.join()
        assert not process.is_alive(record["supervisor"]), "it is ended, not only said to be"
    assert record_of(line)["status"] == "ended"


def test_a_lock_without_a_plan_behind_it_is_said_and_nothing_is_called_cancelled(
    line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "BEGINNING_SECONDS", 0.2)
    line.submit("sample")
    with process.locked(line.layout.lock), pytest.raises(Interrupted, match="another process holds"):
        recovery.cancel(line.layout)
    assert record_of(line)["status"] == "submitted"
    assert "before it began" in recovery.cancel(line.layout)[0]


# With real processes


def test_a_supervisor_that_is_killed_takes_its_worker_along(make_host: Any, is_gone: Callable[..., bool]) -> None:
    host = make_host()
    plan = host.submit("sample", "style", max_steps=ENDLESS, stage_attempts=2)
    supervisor = host.start(plan["plan_id"])
    host.wait_for(lambda event: event["event"] == "phase")
    first = host.plan()["worker"]
    os.kill(first["pid"], signal.SIGKILL)
    # The stage has two attempts: a lost worker is followed by another one.
    host.wait_for(lambda event: event["event"] == "stage started" and event["state"]["attempt"] == 2)
    host.wait_for_training("sample")
    second = host.plan()["worker"]
    assert first != second
    assert host.states()["sample"]["status"] == "running"
    # Whoever watches is not told that the stage is over because its first worker is.
    assert host.plan()["outcomes"] == {}
    watched = host.run("watch", "--plan", plan["plan_id"], "--stage", "sample", "--wait-seconds", "0", "--json")
    assert json.loads(watched.stdout)["more"]

    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait(30)
    assert is_gone(second)
    status = host.status()
    assert not status["running"]
    assert (status["stages"]["sample"]["status"], status["stages"]["style"]["status"]) == ("lost", "closed")
    assert status["exit_code"] == 7
    assert "its supervisor ended without a word" in status["message"]
    assert status["stages"]["sample"]["error"]["log_tail"]
    assert derive_states(host.events()) == host.states()
    assert host.status() == status  # looking again changes nothing

    again = host.submit("sample")
    assert again["action"] == "start"
    assert host.run("cancel", "--json").returncode == 0
    late = host.start(again["plan_id"])
    assert late.wait(60) == 7  # cancelled before it began: it is not started late


def test_a_cancelled_plan_leaves_no_process(make_host: Any, is_gone: Callable[..., bool]) -> None:
    host = make_host()
    nothing = host.run("cancel", "--json")
    assert (nothing.returncode, json.loads(nothing.stdout)["lines"]) == (0, ["no plan is running: nothing to cancel"])
    plan = host.submit("sample", "style", max_steps=ENDLESS)
    supervisor = host.start(plan["plan_id"])
    host.wait_for_training("sample")
    worker = host.plan()["worker"]
    assert process.is_alive(worker)
    done = host.run("cancel", "--json")
    said = f"plan {plan['plan_id']} was cancelled; 2 processes ended"
    assert (done.returncode, json.loads(done.stdout)["lines"]) == (0, [said])
    assert supervisor.wait(5) == 7
    assert not process.is_alive(worker)
    states = host.states()
    assert (states["sample"]["status"], states["style"]["status"]) == ("cancelled", "closed")
    assert host.plan()["status"] == "ended"
    assert not (host.layout.logs / "issues.jsonl").exists()  # somebody wished it
    assert derive_states(host.events()) == host.states()
    before = host.events()
    twice = host.run("cancel", "--json")
    assert (twice.returncode, json.loads(twice.stdout)["lines"]) == (0, ["no plan is running: nothing to cancel"])
    assert host.events() == before
