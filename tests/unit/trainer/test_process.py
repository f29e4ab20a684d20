"""Who runs: the identity of a process, the lock, and ending what does not want to end."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer import process
from trainer.errors import Interrupted

Spawn = Callable[..., "subprocess.Popen[str]"]
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
POLITE = "import time; print('up', flush=True); time.sleep(60)"
HOLDER = (
    "import sys, time; from pathlib import Path; from trainer import process\n"
    "with process.locked(Path(sys.argv[1])): print('up', flush=True); time.sleep(float(sys.argv[2]))"
)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts Python code that says `up` when it is ready; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str, *words: str, **more: Any) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, **more)
        running.append(child)
        assert child.stdout is not None and child.stdout.readline() == "up\n"
        return child

    yield start
    for child in running:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def test_a_process_is_alive_until_it_ends(spawn: Spawn) -> None:
    child = spawn(POLITE)
    who = process.identity(child.pid)
    assert process.is_alive(who) and process.is_alive(process.identity())
    child.kill()
    deadline = time.monotonic() + 10
    while process.is_alive(who) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.is_alive(who), "a zombie that nobody has waited for does not run"
    child.wait()
    assert not process.is_alive(who) and process.start_time(child.pid) is None


@pytest.mark.parametrize(
    "change", [{"start_time": "1"}, {"boot_id": "another boot"}, {"pid": "7"}, {"start_time": None}]
)
def test_a_pid_that_was_given_to_somebody_else_is_not_ours(change: dict[str, Any]) -> None:
    who = process.identity()
    assert process.is_alive(who)
    assert not process.is_alive({**who, **change})


def test_nobody_is_not_alive() -> None:
    assert not process.is_alive(None) and not process.is_alive({})


def test_one_process_holds_the_lock_and_frees_it_by_ending(tmp_path: Path, spawn: Spawn) -> None:
    path = tmp_path / "state" / "supervisor.lock"
    assert not process.is_locked(path) and not path.exists(), "looking makes nothing"
    with process.locked(path):
        pass
    assert not process.is_locked(path)
    child = spawn(HOLDER, str(path), "60")
    assert process.is_locked(path)
    with pytest.raises(Interrupted, match="another process holds supervisor.lock") as caught, process.locked(path):
        pass
    assert caught.value.exit_code == 7
    child.kill()
    child.wait()
    assert not process.is_locked(path)
    with process.locked(path):
        assert process.is_locked(path)


def test_who_waits_for_the_lock_gets_it_when_it_is_let_go(tmp_path: Path, spawn: Spawn) -> None:
    path = tmp_path / "supervisor.lock"
    spawn(HOLDER, str(path), "0.5")
    with pytest.raises(Interrupted), process.locked(path):
        pass
    with process.locked(path, wait_seconds=10.0):
        assert process.is_locked(path)


def test_two_who_look_at_the_lock_do_not_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.lock"
    with process.locked(path):
        pass
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not process.is_locked(path)


def test_a_stubborn_process_is_killed_after_its_grace(spawn: Spawn) -> None:
    for code, least, signal_number in ((STUBBORN, 0.3, 9), (POLITE, 0.0, 15)):
        child = spawn(code)
        who = process.identity(child.pid)
        started = time.monotonic()
        assert process.end(who, grace_seconds=0.3) is True
        assert least <= time.monotonic() - started < 10
        assert child.wait() == -signal_number
        assert process.end(who, grace_seconds=0.3) is False, "it was gone before"


def test_end_leaves_somebody_elses_process_alone(spawn: Spawn) -> None:
    child = spawn(POLITE)
    assert process.end({**process.identity(child.pid), "start_time": "1"}, 0.1) is False
    assert child.poll() is None


def test_the_group_goes_with_its_leader(tmp_path: Path, spawn: Spawn) -> None:
    code = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], stdout=subprocess.PIPE, text=True); "
        "child.stdout.readline(); open(sys.argv[1], 'w').write(str(child.pid)); print('up', flush=True); time.sleep(60)"
    )
    leader = spawn(code, str(tmp_path / "pid"), start_new_session=True)
    follower = process.identity(int((tmp_path / "pid").read_text()))
    assert process.is_alive(follower)
    process.end_group(leader, grace_seconds=0.3)
    assert leader.poll() is not None
    deadline = time.monotonic() + 10
    while process.is_alive(follower) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process.is_alive(follower)


def test_a_lock_file_that_was_deleted_guards_nothing_and_is_taken_anew(tmp_path: Path, spawn: Spawn) -> None:
    path = tmp_path / "supervisor.lock"
    with process.locked(path) as stream:
        process.claim(stream, plan_id="p1")
        found = process.holder(path)
        assert found is not None and found["plan_id"] == "p1" and process.is_alive(found)
        held = [stream]
        process.renew(held, path, plan_id="p1")
        assert len(held) == 1, "nothing to do"
        path.unlink()
        assert not process.is_locked(path)
        process.renew(held, path, plan_id="p1")
        assert len(held) == 2 and process.is_locked(path) and process.holder(path) == found
        with pytest.raises(process.Locked, match=rf"pid {found['pid']}\) holds"), process.locked(path):
            pass
        held[1].close()


def test_a_plans_processes_are_known_by_exactly_its_marker(spawn: Spawn, tmp_path: Path) -> None:
    text = process.marker("p1", tmp_path)
    assert text != process.marker("p1", tmp_path / "x") and text.startswith("p1:")
    ours = spawn(POLITE, env={process.PLAN_VARIABLE: text}, start_new_session=True)
    for other in (f"{text}0", f"x{text}", ""):
        spawn(POLITE, env={process.PLAN_VARIABLE: other})
    spawn(POLITE, env={"OTHER": f"{process.PLAN_VARIABLE}={text}"})
    assert process.marked(text) == [process.identity(ours.pid)]
    assert process.end_all(lambda: process.marked(text), 5.0) == process.Ended(1, [])
    assert ours.wait(5) == -15 and process.marked(text) == []


def test_a_stopped_process_is_said_to_be_and_ends_all_the_same(spawn: Spawn) -> None:
    child = spawn(POLITE)
    who = process.identity(child.pid)
    assert process.state_of(child.pid) == ""
    process.send(who, 19)
    deadline = time.monotonic() + 10
    while not process.state_of(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.state_of(child.pid) == "was stopped by a signal"
    assert process.end(who, 5.0) and child.wait(5) == -15


def test_a_signal_goes_to_exactly_this_process(spawn: Spawn) -> None:
    child = spawn(POLITE)
    process.send({**process.identity(child.pid), "start_time": "1"}, 9)
    process.send({**process.identity(child.pid), "boot_id": "x"}, 9)
    process.send({**process.identity(), "pid": 2**22 - 1}, 9)
    assert child.poll() is None


def test_processor_time_is_that_of_a_process_and_what_is_below_it(spawn: Spawn) -> None:
    busy = spawn("print('up', flush=True)\nwhile True: pass")
    idle = spawn(POLITE)
    deadline = time.monotonic() + 20
    while process.cpu_seconds([busy.pid]) < 0.3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.cpu_seconds([busy.pid]) >= 0.3 > process.cpu_seconds([idle.pid]) - 0.25
    assert {busy.pid, idle.pid} <= set(process.descendants(process.identity()["pid"]))
    assert process.cpu_seconds([2**22 - 1]) == 0.0


def test_a_kernel_without_a_boot_id_still_tells_boots_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    who = process.identity()
    read = Path.read_text

    def hidden(path: Path, *words: Any, **more: Any) -> str:
        if path.name == "boot_id":
            raise FileNotFoundError(path)
        return read(path, *words, **more)

    monkeypatch.setattr(Path, "read_text", hidden)
    found = process.identity()
    assert found["boot_id"].startswith("first process at ") and process.is_alive(found)
    assert not process.is_alive(who), "another way of knowing is another boot"


def test_the_clock_of_this_boot_goes_on() -> None:
    first = process.boot_seconds()
    assert first > 0 and process.boot_seconds() >= first
