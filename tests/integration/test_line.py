"""The whole playbook against a stand-in for the trainer: order, tags, exit codes, Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.integration.line import MISSED, Line, error_line

STAGES = ["sample", "style", "writing", "all"]


def test_whole_line_trains_collects_and_closes(
    trained: tuple[Line, subprocess.CompletedProcess[str]],
) -> None:
    line, done = trained
    assert done.returncode == 0, done.stdout + done.stderr
    assert line.submitted()[0]["stages"] == STAGES
    assert line.submitted()[0]["source_id"] == (line.host / "code").resolve().name
    summary = line.folder / "outputs" / "training_sync" / "run_fake" / "TRAINING_SUMMARY.md"
    assert summary.exists()
    recap, closing = done.stdout.split("PLAY RECAP")
    assert [recap.index(f"{stage}: passed") for stage in STAGES] == sorted(
        recap.index(f"{stage}: passed") for stage in STAGES
    )
    assert closing.splitlines()[-2:] == [f"Summary: {summary}", "Best model: adapter_x"]
    assert not list((line.host / "outputs" / "cache").glob("export_*"))
    assert not list((line.host / "releases").glob(".incoming*"))


def test_second_run_changes_nothing(trained: tuple[Line, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    again = Line(tmp_path / "again")
    shutil.copytree(trained[0].folder, again.folder, symlinks=True)
    done = again.run()
    assert done.returncode == 0, done.stderr
    assert "changed=0 " in done.stdout
    assert again.state()["starts"] == 1
    assert "Best model: adapter_x" in done.stdout


def test_one_tag_runs_one_stage_and_reads_the_environment(line: Line) -> None:
    done = line.run(
        "--tags", "style", "-e", "trainer_hp_learning_rate=1e-4", playbook="train_all.yml",
        NUM_TRAIN_EPOCHS="3", LEARNING_RATE="9", TRAIN_SYNC_SKIP_SAMPLE="yes",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = line.submitted()[0]
    assert plan["stages"] == ["style"]
    assert plan["skip_sample"] is True
    assert plan["profile"] == "embedded"
    values = {name: found["value"] for name, found in plan["overrides"].items()}
    assert values == {"learning_rate": "1e-4", "num_train_epochs": "3"}
    assert "Best model" not in done.stdout


def test_skipping_a_tag_leaves_the_others(line: Line) -> None:
    (line.folder / "trainer" / "new.txt").write_text("a change that must reach the host")
    done = line.run("--skip-tags", "writing,collect")
    assert done.returncode == 0, done.stderr
    assert line.submitted()[0]["stages"] == ["sample", "style", "all"]
    assert (line.host / "code" / "trainer" / "new.txt").exists()


def test_collect_alone_leaves_the_host_as_it_is(line: Line) -> None:
    (line.folder / "trainer" / "newer.txt").write_text("a change that is not asked for")
    done = line.run("--tags", "collect")
    assert done.returncode == 0, done.stderr
    assert "Best model: adapter_x" in done.stdout
    assert not (line.host / "code" / "trainer" / "newer.txt").exists()


def test_missed_gate_closes_the_rest_and_still_collects(line: Line) -> None:
    line.outcomes(stages={"style": MISSED}, stage_seconds=0.1)
    done = line.run()
    assert done.returncode == 6
    assert "writing: closed" in done.stdout and "all: closed" in done.stdout
    assert "Best model: adapter_x" in done.stdout
    assert error_line(done) == "error: stage style: key point coverage 0.71 < 0.90"


def test_warn_goes_on_and_ends_non_zero(line: Line) -> None:
    line.outcomes(stages={"style": MISSED}, stage_seconds=0.1)
    done = line.run("-e", "trainer_gate=warn", "--tags", "style,writing")
    assert done.returncode == 6
    assert "writing: passed" in done.stdout


def test_misspelt_parameter_is_refused_before_the_host_is_touched(fresh: Line) -> None:
    done = fresh.run("-e", "trainer_hp_learning_rat=1")
    assert done.returncode == 2
    assert error_line(done).startswith("error: unknown parameter learning_rat")
    assert not fresh.host.exists()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [(3, "stage writing is closed: style has not passed"), (7, "plan7 runs on this host")],
)
def test_refused_plan_ends_with_its_code(line: Line, code: int, sentence: str) -> None:
    line.outcomes(submit={"exit_code": code, "message": sentence})
    done = line.run("--tags", "writing")
    assert done.returncode == code
    assert error_line(done) == f"error: {sentence}"
    assert line.state() == {}


def test_check_mode_starts_nothing(line: Line) -> None:
    done = line.run("--check")
    assert done.returncode == 0, done.stderr
    assert line.submitted() == []


def test_check_mode_on_a_host_without_code(fresh: Line) -> None:
    done = fresh.run("--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not fresh.host.exists()


def test_question_without_a_terminal_is_refused_before_anything_starts(line: Line) -> None:
    done = line.run("-e", "trainer_confirm_after_sample=true")
    assert done.returncode == 2
    assert "no terminal" in error_line(done)
    assert line.submitted() == []


def test_assumed_yes_submits_in_two_parts(line: Line) -> None:
    words = ["-e", "trainer_confirm_after_sample=true", "--skip-tags", "multitask,collect"]
    done = line.run(*words, TRAIN_SYNC_ASSUME_YES="1")
    assert done.returncode == 0, done.stderr
    assert [plan["stages"] for plan in line.submitted()] == [["sample"], ["style", "writing"]]


@pytest.mark.parametrize(("answer", "code", "plans"), [("y\n", 0, 2), ("n\n", 7, 1)])
def test_answer_on_a_terminal_decides(line: Line, answer: str, code: int, plans: int) -> None:
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    words = ["-e", "trainer_confirm_after_sample=true"]
    words += ["--skip-tags", "precheck,writing,multitask,collect"]
    process = line.start(*words, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=own_terminal)
    os.close(theirs)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(ours, 4096)
    time.sleep(0.5)  # the prompt throws away what was typed before it
    os.write(ours, answer.encode())
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the terminal's other end is closed
        pass
    assert process.wait(60) == code, shown.decode()
    assert len(line.submitted()) == plans


def test_ctrl_c_leaves_the_plan_running_and_the_next_run_watches_it(line: Line) -> None:
    line.outcomes(stage_seconds=2.0)
    process = line.start(stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    for text in process.stdout:  # lines of a task that still runs
        if "sample: step 1/3" in text:
            break
    assert line.state()["stages"]["sample"]["status"] == "pending"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 7
    assert "playbooks/status.yml" in stderr and "playbooks/cancel.yml" in stderr
    assert stderr.splitlines()[-1].startswith("error: interrupted")
    assert line.state()["running"]
    done = line.run("--skip-tags", "collect")
    assert done.returncode == 0, done.stderr
    assert line.state()["starts"] == 1
    assert "all: passed" in done.stdout


def test_several_hosts_are_told_apart(line: Line) -> None:
    beside = line.folder.parent  # what lies in the checkout goes to the hosts
    hosts = {
        name: {"project_root": str(beside / name), "trainer_gate": gate}
        for name, gate in (("one", "strict"), ("two", "off"))
    }
    shared = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "gpu_host_venv_dir": sys.prefix,
    }
    inventory = {"gpu_hosts": {"hosts": hosts, "vars": shared}}
    (line.folder / "hosts.json").write_text(json.dumps(inventory))
    for name in hosts:
        (beside / name).mkdir()
        outcomes = {"stages": {"style": MISSED}, "stage_seconds": 0.1}
        (beside / name / "outcomes.json").write_text(json.dumps(outcomes))
    done = line.run("-i", "hosts.json", "--tags", "style,collect")
    assert done.returncode == 6
    assert "[one] style: step 1/3" in done.stdout and "[two] style: step 1/3" in done.stdout
    assert error_line(done) == "error: [one] stage style: key point coverage 0.71 < 0.90"
    for name in hosts:
        assert (line.folder / "outputs" / name / "training_sync" / "run_fake").is_dir()


@pytest.mark.parametrize("playbook", ["status", "cancel", "collect"])
def test_small_playbooks(trained: tuple[Line, subprocess.CompletedProcess[str]], playbook: str) -> None:
    done = trained[0].run(playbook=f"playbooks/{playbook}.yml")
    assert done.returncode == 0, done.stderr
    shown = {"status": "running: False", "cancel": "nothing runs", "collect": "Best model"}
    assert shown[playbook] in done.stdout


def test_status_without_code_says_what_to_do(fresh: Line) -> None:
    done = fresh.run(playbook="playbooks/status.yml")
    assert done.returncode == 3
    assert "playbooks/train_all.yml" in error_line(done)


def test_tags_are_listed(fresh: Line) -> None:
    done = fresh.run("--list-tags")
    assert "[always, collect, multitask, precheck, sample, style, writing]" in done.stdout


# An ssh that reaches this machine, and answers nothing while the file `cut` lies beside it.
FAKE_SSH = """#!/bin/sh
for word; do [ "$word" = -O ] && exit 0; done
[ -e "$(dirname "$0")/cut" ] && { echo "Connection timed out" >&2; exit 255; }
for word; do command=$word; done
exec sh -c "$command"
"""


def test_cut_connection_is_waited_out(line: Line) -> None:
    ssh, cut = line.folder / "ssh", line.folder / "cut"
    ssh.write_text(FAKE_SSH)
    ssh.chmod(0o755)
    words = ["-e", f"ansible_connection=ssh ansible_ssh_executable={ssh} ansible_ssh_retries=0"]
    words += ["-e", "ansible_ssh_transfer_method=piped", "--tags", "style"]
    line.outcomes(stage_seconds=3.0)
    process = line.start(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    shown = ""
    for text in process.stdout:
        shown += text
        if "style: step 1/3" in text:
            cut.touch()
        if "host unreachable for 00:00, the plan goes on there" in text:
            cut.unlink()
    assert process.wait(30) == 0, shown
    assert "host reachable again after 00:0" in shown
    assert "style: passed" in shown
