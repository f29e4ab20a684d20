"""Cancelling in every moment of a plan, and hosts that come back: nothing left running, nothing said that is not so."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.unit.trainer.fast_host import ENDLESS, FOREVER, FastHost, fast_host
from trainer import process, recovery
from trainer.errors import Interrupted
from trainer.state import Layout, write_json

__all__ = ["fast_host"]  # a fixture
# A worker that writes a checkpoint when it is asked to end, and takes some time for it.
POLITE = """
def end(number, frame):
    time.sleep(1)
    report('checkpoint', step=40, seconds=1.0, bytes=10)
    (root / 'saved').write_text('step 40')
    os._exit(143)
signal.signal(signal.SIGTERM, end)
(root / 'up').write_text('x')
while True: time.sleep(0.05)
"""


def cancelled(host: FastHost) -> str:
    return f"plan {host.plan()['plan_id']} was cancelled"


def test_a_cancelled_worker_gets_its_time_for_a_checkpoint(fast_host: FastHost) -> None:
    fast_host.do(POLITE)
    fast_host.start("sample", "style")
    fast_host.wait_for_file("up")
    code, words = fast_host.cancel()
    assert code == 0 and words == f"{cancelled(fast_host)}; 2 processes ended"
    assert (fast_host.root / "saved").exists()
    assert [event["step"] for event in fast_host.events("checkpoint")] == [40]
    assert fast_host.end()[0] == 7
    assert fast_host.outcomes() == {"sample": ("cancelled", 7), "style": ("closed", 3)}
    before = fast_host.events()
    assert fast_host.cancel() == (0, "no plan is running: nothing to cancel") and fast_host.events() == before


ORPHAN = "import subprocess; subprocess.Popen(['sleep', '300'], env={}, start_new_session=True)"


def test_nothing_is_left_whatever_its_session_and_its_environment(fast_host: FastHost) -> None:
    fast_host.do(
        f"children = [spawn({FOREVER!r}), spawn({FOREVER!r}, env={{}})]\n"
        f"assert spawn({ORPHAN!r}).wait() == 0\n"
        "(root / 'pids').write_text(json.dumps([child.pid for child in children]))\n" + ENDLESS
    )
    supervisor = fast_host.start("sample")
    pids = json.loads(fast_host.wait_for_file("pids"))
    below = process.descendants(supervisor.pid)
    assert len(below) == 4 and set(pids) < set(below), "the orphan is below the supervisor, too"
    who = [process.identity(pid) for pid in below]
    assert fast_host.cancel()[0] == 0
    assert fast_host.end()[0] == 7
    assert [item for item in who if process.is_alive(item)] == []


def test_two_who_cancel_at_once_are_both_answered(fast_host: FastHost) -> None:
    fast_host.do(ENDLESS)
    fast_host.start("sample")
    fast_host.wait_for_event("phase")
    pair = [
        subprocess.Popen(fast_host.command("cancel"), cwd=fast_host.code, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [item.communicate(timeout=60)[0].strip() for item in pair]
    assert [item.returncode for item in pair] == [0, 0]
    assert any(words.startswith(cancelled(fast_host)) for words in said)
    assert fast_host.end()[0] == 7
    assert fast_host.outcomes() == {"sample": ("cancelled", 7)}
    assert len(fast_host.events("plan ended")) == 1


def test_a_plan_that_is_cancelled_while_it_begins_trains_nothing(fast_host: FastHost) -> None:
    fast_host.do("(root / 'up').write_text('x')")
    fast_host.start("sample", "style")
    code, words = fast_host.cancel()
    assert code == 0
    last, _ = fast_host.end()
    if "before it began" in words or "was cancelled" in words:
        assert last in (7, -15) and ("cancelled", 7) in fast_host.outcomes().values()
    assert fast_host.plan()["status"] == "ended" and not process.is_locked(fast_host.layout.lock)


def test_what_cannot_be_ended_is_named(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record = line.record_plan("sample", status="running")
    marker = process.marker(record["plan_id"], line.layout.root)
    child = subprocess.Popen([sys.executable, "-c", FOREVER], env={process.PLAN_VARIABLE: marker})
    try:
        monkeypatch.setattr(process, "send", lambda who, number: None)
        monkeypatch.setattr(process, "KILL_SECONDS", 0.2)
        monkeypatch.setattr(recovery, "LEFT_SECONDS", 0.2)
        with pytest.raises(Interrupted, match=rf"cannot be ended: pid {child.pid} \(python.*\) goes on") as caught:
            recovery.cancel(line.layout)
        assert caught.value.exit_code == 7 and line.layout.plan.exists()
    finally:
        child.kill()
        child.wait()


def test_leftovers_of_a_plan_that_ended_are_ended_too(line: Any) -> None:
    record = line.record_plan("sample", status="ended")
    marker = process.marker(record["plan_id"], line.layout.root)
    child, other = (
        subprocess.Popen([sys.executable, "-c", FOREVER], env={process.PLAN_VARIABLE: text})
        for text in (marker, f"{marker}x")
    )
    try:
        assert recovery.cancel(line.layout) == ["no plan is running: nothing to cancel; 1 process ended"]
        assert child.wait(10) and other.poll() is None
    finally:
        for item in (child, other):
            item.kill()
            item.wait()


def test_stages_without_their_plan_are_lost_and_nothing_else_changes(
    line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "MEND_SECONDS", 0.05)
    line.finish()
    state = json.loads(line.layout.stage("style").read_text(encoding="utf-8"))
    assert not recovery.mark_lost(line.layout)
    write_json(line.layout.stage("style"), {**state, "status": "running"})
    with process.locked(line.layout.lock):
        assert not recovery.mark_lost(line.layout), "somebody works here"
    assert recovery.mark_lost(line.layout)
    found = json.loads(line.layout.stage("style").read_text(encoding="utf-8"))
    assert (found["status"], found["exit_code"]) == ("lost", 7) and "plan.json is gone" in found["message"]
    assert not recovery.mark_lost(line.layout) and not line.layout.plan.exists()


def test_a_loss_that_cannot_be_written_down_is_told_all_the_same(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record = line.record_plan("sample", status="running")

    def full(*_: Any) -> None:
        raise OSError(30, "Read-only file system", str(line.layout.plan))

    monkeypatch.setattr("trainer.ledger.append_record", full)
    with pytest.raises(recovery.Unwritten, match=rf"plan {record['plan_id']} is lost: .*Read-only file system"):
        recovery.mark_lost(line.layout)
    assert json.loads(line.layout.plan.read_text(encoding="utf-8"))["status"] == "running"


def test_a_restart_of_the_machine_is_noticed_at_once(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    record = line.record_plan("sample", "style", status="running")
    books = {**record, "supervisor": process.identity(), "worker": process.identity()}
    write_json(line.layout.plan, books)
    assert not recovery.mark_lost(line.layout), "its supervisor lives"
    write_json(line.layout.plan, {**books, "supervisor": {**process.identity(), "boot_id": "another boot"},
                                  "worker": {**process.identity(), "boot_id": "another boot"}})  # fmt: skip
    assert recovery.mark_lost(line.layout)
    assert process.is_alive(process.identity()), "a process that has the worker's number by now is not ours"
    assert Layout(line.layout.root).lock.exists()
