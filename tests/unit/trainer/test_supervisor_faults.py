"""What a rented box does to a running plan: time, kills, files that change, folders that move, odd environments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.fast_host import ENDLESS, FOREVER, FastHost, fast_host
from trainer import process
from trainer.state import derive_states

__all__ = ["fast_host"]  # a fixture


def is_gone(who: dict[str, Any], host: FastHost) -> bool:
    return bool(host.wait_for(lambda: not process.is_alive(who)))


# Time


def test_the_plans_time_holds_over_all_stages_and_closes_the_later_ones(fast_host: FastHost) -> None:
    fast_host.do("if job['stage'] == 'style':\n    while True: time.sleep(0.05)\ntime.sleep(0.2)")
    plan_id = fast_host.submit("sample", "style", "writing", plan_timeout_seconds=3)
    fast_host.supervise(plan_id)
    assert fast_host.end()[0] == 5
    assert fast_host.outcomes() == {"sample": ("passed", 0), "style": ("failed", 5), "writing": ("closed", 3)}
    assert fast_host.state("style")["message"] == (f"plan {plan_id} ran longer than plan_timeout_seconds = 3; raise it")
    assert fast_host.marked() == [] and derive_states(fast_host.events()) == {
        name: fast_host.state(name) for name in ("sample", "style", "writing")
    }


def test_the_plans_time_is_not_given_anew_to_each_attempt(fast_host: FastHost) -> None:
    fast_host.do("time.sleep(0.4)\nos.kill(os.getpid(), signal.SIGKILL)")
    fast_host.start("sample", parameters={"stage_attempts": 1000}, plan_timeout_seconds=2)
    assert fast_host.end()[0] == 5
    assert "plan_timeout_seconds = 2" in fast_host.state()["message"]
    assert len(fast_host.events("stage started")) >= 2


def test_a_worker_that_stands_still_is_told_and_not_ended(fast_host: FastHost) -> None:
    fast_host.do("end = time.monotonic() + 60\nwhile not (root / 'go').exists(): time.sleep(0.5)\n"
                 "begun = time.monotonic()\nwhile time.monotonic() < begun + 1.0: pass")  # fmt: skip
    fast_host.start("sample", parameters={"stall_timeout_seconds": 1})
    fast_host.wait_for_event("stalled", 3)
    issues = (fast_host.layout.logs / "issues.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(issues) == 1, "told again while it lasts, but one finding"
    status = fast_host.status()
    assert status["running"] and "stalled since" in status["lines"][1]
    assert fast_host.state()["stalled_since"]
    watched = fast_host.call("watch", "--plan", fast_host.plan()["plan_id"], "--stage", "sample", "--json")
    assert any("stalled for 00:0" in text for text in json.loads(watched.stdout)["lines"])
    (fast_host.root / "go").touch()
    fast_host.wait_for_event("moving")
    assert fast_host.end()[0] == 0
    assert fast_host.state()["stalled_since"] is None and fast_host.outcomes() == {"sample": ("passed", 0)}


def test_a_worker_that_computes_in_silence_is_not_stalled(fast_host: FastHost) -> None:
    fast_host.do("end = time.monotonic() + 3\nwhile time.monotonic() < end: pass")
    fast_host.start("sample", parameters={"stall_timeout_seconds": 1})
    assert fast_host.end()[0] == 0
    assert fast_host.events("stalled") == []


def test_a_worker_that_was_stopped_is_told_with_the_reason(fast_host: FastHost) -> None:
    fast_host.do("os.kill(os.getpid(), signal.SIGSTOP)")
    fast_host.start("sample", parameters={"stall_timeout_seconds": 1})
    assert fast_host.wait_for_event("stalled")["why"] == "was stopped by a signal"
    assert fast_host.cancel() == (0, f"plan {fast_host.plan()['plan_id']} was cancelled; 2 processes ended")
    assert fast_host.end()[0] == 7


# Kills


def test_who_kills_the_worker_is_not_guessed(fast_host: FastHost) -> None:
    fast_host.do("os.kill(os.getpid(), signal.SIGKILL)")
    fast_host.start("sample")
    assert fast_host.end()[0] == 7
    message = fast_host.state()["message"]
    assert "signal SIGKILL" in message and "for memory (limit" not in message


def test_supervisor_and_worker_killed_together_leave_nothing_and_are_lost(fast_host: FastHost) -> None:
    fast_host.do(f"child = spawn({FOREVER!r})\n(root / 'child').write_text(str(child.pid))\n{ENDLESS}")
    supervisor = fast_host.start("sample", "style")
    child = process.identity(int(fast_host.wait_for_file("child")))
    worker = fast_host.wait_for(lambda: fast_host.plan().get("worker"))
    for pid in (supervisor.pid, worker["pid"]):
        os.kill(pid, signal.SIGKILL)
    supervisor.wait()
    assert process.is_alive(child), "it has a session of its own"
    status = fast_host.status()
    assert not status["running"] and status["exit_code"] == 7
    assert fast_host.outcomes() == {"sample": ("lost", 7), "style": ("closed", 3)}
    assert is_gone(child, fast_host) and fast_host.marked() == []
    assert fast_host.status() == status, "looking again changes nothing"


def test_a_worker_that_outlives_its_supervisor_is_ended_and_only_it(fast_host: FastHost) -> None:
    fast_host.do("(root / 'up').write_text('x')\ntime.sleep(300)")  # does not ask to die with its parent
    supervisor = fast_host.start("sample")
    fast_host.wait_for_file("up")
    worker = fast_host.wait_for(lambda: fast_host.plan().get("worker"))
    variables = {process.PLAN_VARIABLE: fast_host.plan()["marker"] + "0"}
    stranger = subprocess.Popen(["sleep", "300"], env=variables, start_new_session=True)
    try:
        supervisor.kill()
        supervisor.wait()
        assert process.is_alive(worker)
        assert fast_host.status()["exit_code"] == 7
        assert not process.is_alive(worker) and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_two_supervisors_at_once_are_one(fast_host: FastHost) -> None:
    fast_host.do("(root / 'jobs').open('a').write('job\\n')\ntime.sleep(4)")
    plan_id = fast_host.submit("sample")
    pair = [fast_host.supervise(plan_id) for _ in range(2)]
    codes = sorted(item.wait(60) for item in pair)
    assert codes == [0, 7]
    assert (fast_host.root / "jobs").read_text(encoding="utf-8") == "job\n"
    assert [event["event"] for event in fast_host.events("plan started", "stage started")] == [
        "plan started", "stage started"
    ]  # fmt: skip


def test_a_stopped_supervisor_is_said_to_be_stopped_and_can_be_cancelled(fast_host: FastHost) -> None:
    fast_host.do(ENDLESS)
    supervisor = fast_host.start("sample")
    fast_host.wait_for_training()
    supervisor.send_signal(signal.SIGSTOP)
    status = fast_host.status()
    assert status["running"] and f"its supervisor (pid {supervisor.pid}) was stopped by a signal" in status["message"]
    assert fast_host.cancel()[1].endswith("was cancelled; 2 processes ended")
    assert fast_host.end()[0] == 7 and fast_host.outcomes() == {"sample": ("cancelled", 7)}


def test_a_closed_terminal_does_not_end_the_plan(fast_host: FastHost) -> None:
    fast_host.do("time.sleep(1)")
    supervisor = fast_host.start("sample")
    fast_host.wait_for_training()
    supervisor.send_signal(signal.SIGHUP)
    assert fast_host.end()[0] == 0


# Files


def damage(host: FastHost, how: str) -> None:
    """Something that happens to the state files of a running plan."""
    paths = [host.layout.plan, host.layout.stage("sample")]
    for path in paths:
        if how == "truncated":
            os.truncate(path, 20)
        elif how == "empty":
            os.truncate(path, 0)
        elif how == "garbage":
            path.write_bytes(b"\xff\x00" * 100)
        elif how == "newer":
            path.write_text('{"schema": 2}', encoding="utf-8")
        else:
            path.unlink()
            if how == "folder":
                path.mkdir()
                (path / "precious").touch()


@pytest.mark.parametrize("how", ["truncated", "empty", "garbage", "newer", "removed", "folder"])
def test_state_files_that_are_damaged_under_a_running_plan_are_written_again(fast_host: FastHost, how: str) -> None:
    fast_host.do("while not (root / 'go').exists(): time.sleep(0.05)")
    plan_id = fast_host.submit("sample")
    fast_host.supervise(plan_id)
    fast_host.wait_for_training()
    damage(fast_host, how)
    fast_host.wait_for_event("file mended", 2)
    watched = fast_host.call("watch", "--plan", plan_id, "--stage", "sample", "--wait-seconds", "0", "--json")
    assert json.loads(watched.stdout)["more"]
    (fast_host.root / "go").touch()
    assert fast_host.end()[0] == 0
    assert fast_host.outcomes() == {"sample": ("passed", 0)} and fast_host.state()["status"] == "passed"
    assert len(list(fast_host.layout.state.glob("*.moved-*/precious"))) == (2 if how == "folder" else 0)


def test_a_plan_whose_file_cannot_be_read_can_be_cancelled(fast_host: FastHost) -> None:
    fast_host.do(ENDLESS)
    supervisor = fast_host.start("sample")
    fast_host.wait_for_training()
    supervisor.send_signal(signal.SIGSTOP)  # so that it does not mend it
    whole = fast_host.layout.plan.read_bytes()
    os.truncate(fast_host.layout.plan, 20)
    refused = fast_host.call("status", "--json")
    assert refused.returncode == 7 and "is not JSON; restore it or move it away" in refused.stderr
    code, words = fast_host.cancel()
    assert code == 0 and "was cancelled" in words
    assert supervisor.wait(60) == 7 and fast_host.outcomes() == {"sample": ("cancelled", 7)}
    assert json.loads(whole)["plan_id"] == fast_host.plan()["plan_id"]


def test_an_event_log_that_is_removed_or_cut_goes_on(fast_host: FastHost) -> None:
    fast_host.do("while not (root / 'go').exists(): time.sleep(0.05)\nreport('note', text='last')")
    plan_id = fast_host.submit("sample")
    fast_host.supervise(plan_id)
    fast_host.wait_for_training()
    cursor = fast_host.layout.events.stat().st_size
    os.truncate(fast_host.layout.events, 30)
    (fast_host.root / "go").touch()
    assert fast_host.end()[0] == 0
    watched = fast_host.call("watch", "--plan", plan_id, "--stage", "sample", "--after", str(cursor * 9), "--json")
    lines = json.loads(watched.stdout)["lines"]
    assert lines[0] == "sample  last" and len(lines) == 2


def test_a_lock_that_is_deleted_does_not_let_another_in(fast_host: FastHost) -> None:
    fast_host.do(ENDLESS)
    supervisor = fast_host.start("sample")
    plan_id = fast_host.plan()["plan_id"]
    fast_host.wait_for_training()
    supervisor.send_signal(signal.SIGSTOP)  # so that it does not notice
    fast_host.layout.lock.unlink()
    assert fast_host.status()["running"], "its supervisor lives, lock or not"
    second = fast_host.call("supervise", "--plan", plan_id)
    assert second.returncode == 7 and f"another process (pid {supervisor.pid}) runs plan {plan_id}" in second.stderr
    asked = json.dumps(fast_host.line.request("sample"))
    assert json.loads(fast_host.call("submit", "--input", "-", "--json", stdin=asked).stdout)["action"] == "watch"
    supervisor.send_signal(signal.SIGCONT)
    fast_host.wait_for(lambda: process.is_locked(fast_host.layout.lock))
    assert fast_host.cancel()[0] == 0 and fast_host.end()[0] == 7


def test_a_project_that_is_moved_ends_and_says_so_in_its_new_place(fast_host: FastHost) -> None:
    fast_host.do(ENDLESS)
    fast_host.start("sample")
    fast_host.wait_for_training()
    marker = fast_host.plan()["marker"]
    new = fast_host.root.with_name("moved")
    fast_host.root.rename(new)
    assert fast_host.end()[0] == 7
    assert not fast_host.root.exists(), "the old place is not made again"
    record = json.loads((new / "outputs" / "state" / "plan.json").read_text(encoding="utf-8"))
    assert record["status"] == "ended" and f"was moved to {new} while" in record["outcomes"]["sample"]["message"]
    assert process.marked(marker) == []


def test_a_project_that_is_removed_ends_its_processes(fast_host: FastHost) -> None:
    fast_host.do(ENDLESS)
    fast_host.start("sample")
    fast_host.wait_for_training()
    marker = fast_host.plan()["marker"]
    shutil.rmtree(fast_host.root)
    assert fast_host.end()[0] == 7
    assert not fast_host.root.exists() and process.marked(marker) == []


def test_a_project_root_may_be_a_link(fast_host: FastHost) -> None:
    real, link = fast_host.root, fast_host.root.with_name("link")
    link.symlink_to(real)
    fast_host.root = link
    fast_host.start("sample")
    assert fast_host.end()[0] == 0 and fast_host.plan()["status"] == "ended"
    fast_host.root = real
    assert fast_host.status()["stages"]["sample"]["status"] == "passed"


def test_code_that_is_removed_under_the_plan_ends_it_before_the_next_stage(fast_host: FastHost) -> None:
    fast_host.do("(root / 'up').write_text('x')\nwhile not (root / 'go').exists(): time.sleep(0.05)")
    fast_host.start("sample", "style", "writing")
    fast_host.wait_for_file("up")
    away = fast_host.code.with_name("away")
    fast_host.code.rename(away)
    (fast_host.root / "go").touch()
    assert fast_host.end()[0] == 2
    fast_host.code = away
    assert fast_host.outcomes() == {"sample": ("passed", 0), "style": ("failed", 2), "writing": ("closed", 3)}
    assert "was made with the code" in fast_host.state("style")["message"]


def test_a_plan_is_carried_out_by_the_release_that_it_names_only(fast_host: FastHost) -> None:
    right = fast_host.code.name
    plan_id = fast_host.submit("sample", source_id="f" * 16)
    fast_host.supervise(plan_id)
    code, words = fast_host.end()
    assert code == 2 and f"names the source {'f' * 16}, and this code runs from {fast_host.code}" in words
    assert fast_host.outcomes() == {"sample": ("failed", 2)}
    fast_host.start("sample", source_id=right)
    assert fast_host.end()[0] == 0


def test_a_release_that_somebody_edited_is_not_run(fast_host: FastHost) -> None:
    table = fast_host.code / "trainer" / "stages.yml"
    was = table.read_text(encoding="utf-8")
    table.write_text(was + "# edited on the host\n", encoding="utf-8")
    fast_host.start("sample", source_id=fast_host.code.name)
    code, words = fast_host.end()
    assert code == 2 and "trainer/stages.yml" in words
    table.write_text(was, encoding="utf-8")
    fast_host.start("sample", source_id=fast_host.code.name)
    assert fast_host.end()[0] == 0


# Environments


def test_a_hostile_environment_changes_nothing(fast_host: FastHost, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "sitecustomize.py").write_text("print('noise')", encoding="utf-8")
    fast_host.environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(evil), "PYTHONSTARTUP": str(evil / "sitecustomize.py"),
        "PYTHONINSPECT": "1", "LANG": "C", "LC_ALL": "C", "TZ": "Pacific/Kiritimati", "TMPDIR": "/no/such/folder",
        "LD_PRELOAD": "/no/such/library.so", "HOME": "",
    }  # fmt: skip
    fast_host.do("report('note', text='电场')\nprint('电场')\nreport('note', text=json.dumps(dict(os.environ)))")
    plan_id = json.loads(
        fast_host.call(
            "submit", "--input", "-", "--json", stdin=json.dumps(fast_host.line.request("sample"))
        ).stdout.splitlines()[-1]
    )["plan_id"]  # fmt: skip
    del fast_host.environment["PYTHONINSPECT"]
    fast_host.supervise(plan_id, umask=0, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert fast_host.end()[0] == 0
    texts = [event["text"] for event in fast_host.events("note")]
    assert texts[0] == "电场"
    found = json.loads(texts[1])
    assert not {"PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "TMPDIR", "HOME"} & set(found)
    assert found[process.PLAN_VARIABLE] == fast_host.plan()["marker"]
    assert not any(path.stat().st_mode & 0o022 for path in fast_host.layout.state.iterdir())


# Checkpoints


def test_checkpoints_are_told_and_removed_when_the_adapter_is_in_its_place(fast_host: FastHost) -> None:
    fast_host.do(
        "folder = Path(job['checkpoints']) / 'step-40'\n"
        "resumed = folder.exists()\nfolder.mkdir(parents=True, exist_ok=True)\n"
        "if resumed: report('resumed', step=40, checkpoint='step-40', skipped=['step-60 (no manifest)'])\n"
        "else: report('checkpoint', step=40, seconds=0.1, bytes=10); os.kill(os.getpid(), signal.SIGKILL)"
    )
    fast_host.start("sample")
    assert fast_host.end()[0] == 7
    kept = fast_host.layout.checkpoints / "sample"
    assert (kept / "step-40").is_dir(), "the adapter is not there yet"
    (fast_host.layout.checkpoints / "style").mkdir()
    plan_id = fast_host.submit("sample")
    fast_host.supervise(plan_id)
    assert fast_host.end()[0] == 0
    assert not kept.exists() and (fast_host.layout.checkpoints / "style").is_dir()
    watched = fast_host.call("watch", "--plan", plan_id, "--stage", "sample", "--json")
    assert "sample  resumed from step 40 (passed over: step-60 (no manifest))" in json.loads(watched.stdout)["lines"]


# Disk and memory, where this machine lets us make small ones


def mounted(folder: Path, options: str) -> Any:
    """A small disk at a folder; skipped where we may not mount."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk needs root and the right to mount")


@pytest.mark.parametrize(("options", "fill"), [
    ("size=3m", "open(root / 'filler', 'wb').write(b'x' * (8 << 20))"),
    ("size=8m,nr_inodes=90", "[open(root / f'filler-{number}', 'wb') for number in range(200)]"),
])  # fmt: skip
def test_a_disk_that_fills_up_leaves_a_true_state(fast_host: FastHost, options: str, fill: str) -> None:
    fast_host.line.layout.root.mkdir(exist_ok=True)
    mounted(fast_host.root, options)
    try:
        fast_host.do(f"try: {fill}\nexcept OSError: pass\nfor step in range(9): report('note', text=str(step))\n"
                     "raise OSError(28, 'No space left on device')")  # fmt: skip
        fast_host.start("sample", "style")
        assert fast_host.end()[0] == 5
        message = fast_host.state()["message"]
        assert fast_host.outcomes() == {"sample": ("failed", 5), "style": ("closed", 3)}
        assert "the disk is full: " in message and "inodes free" in message and str(fast_host.root) in message
        assert fast_host.status()["message"] == message and fast_host.plan()["status"] == "ended"
    finally:
        subprocess.run(["umount", "-l", str(fast_host.root)], check=True)


def test_a_worker_that_the_kernel_kills_for_memory_is_told_so(fast_host: FastHost) -> None:
    group = Path("/sys/fs/cgroup/memory") / f"stagegate-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(160 << 20), encoding="ascii")
    except OSError:
        pytest.skip("a memory limit needs root and cgroups of version 1")
    try:
        fast_host.do("x = bytearray(600 << 20)")
        plan_id = fast_host.submit("sample")
        fast_host.supervise(plan_id, preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
        assert fast_host.end()[0] == 7
        assert "killed by the kernel for memory (limit 160 MiB)" in fast_host.state()["message"]
        issues = (fast_host.layout.logs / "issues.jsonl").read_text(encoding="utf-8")
        assert "memory" in json.loads(issues.splitlines()[0])["cause"]
    finally:
        fast_host.close()
        fast_host.wait_for(lambda: not (group / "cgroup.procs").read_text(encoding="ascii"))
        group.rmdir()
