"""The way to a host over SSH: first contact, keys, passwords, logins that write, outages, signals, two controllers.

The trainer is the stand-in of the tests of the line; everything else is what a rented host sees.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.line import ANSIBLE_PARTS, REPOSITORY
from tests.lab import Controller, Host

ROOT = "/root/autodl-tmp/stagegate"
HOST_VARIABLES = {
    "ansible_python_interpreter": "/root/miniconda3/bin/python",
    "gpu_host_venv_dir": "/root/miniconda3",
    "project_root": ROOT,
}


class Line:
    """A checkout with a stand-in trainer, and one host of the lab that REMOTE_HOST names."""

    def __init__(self, folder: Path, box: Host) -> None:
        self.folder, self.box, self.lab = folder, box, box.lab
        self.password = ""

    def environment(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {
            "REMOTE_HOST": f"ssh -p {self.box.port} root@{self.box.address}",
            "ANSIBLE_NOCOLOR": "1",
        }
        return {**found, "REMOTE_PASSWORD": self.password} if self.password else found

    def start(self, *words: str, playbook: str = "train_all", tty: bool = False, **more: str) -> Controller:
        command = ["ansible-playbook", "-i", "inventory/remote.yml", f"playbooks/{playbook}.yml", *words]
        return self.lab.controller(command, cwd=self.folder, env={**self.environment(), **more}, tty=tty)

    def run(self, *words: str, playbook: str = "train_all", **more: str) -> tuple[int, str]:
        """(exit code, output) of a run that has no terminal."""
        controller = self.start(*words, playbook=playbook, **more)
        return controller.wait(250), controller.output

    def outcomes(self, **outcomes: Any) -> None:
        self.box.run(f"mkdir -p {ROOT} && cat > {ROOT}/outcomes.json", input=json.dumps(outcomes))

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.box.run(f"cat {ROOT}/outputs/state/fake.json").stdout))

    def watched(self) -> list[str]:
        """Processes of the host that somebody asked for news."""
        return [command for _, command in self.box.processes() if "trainer" in command and " watch " in command]


@pytest.fixture
def line(tmp_path: Path, box: Host) -> Line:
    folder = tmp_path / "checkout"
    for part in ANSIBLE_PARTS:
        source, target = REPOSITORY / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copytree(REPOSITORY / "roles" / "gpu_host", folder / "roles" / "gpu_host")
    (folder / "roles" / "gpu_host" / "tasks" / "main.yml").write_text("---\n[]\n")  # it has tests of its own
    shutil.copytree(REPOSITORY / "tests" / "integration" / "fake_trainer", folder / "trainer")
    shutil.copy(REPOSITORY / "trainer" / "stages.yml", folder / "trainer")
    variables = folder / "inventory" / "host_vars" / "remote.yml"
    variables.parent.mkdir()
    variables.write_text(json.dumps(HOST_VARIABLES))
    return Line(folder, box)


def error_line(output: str) -> str:
    return next(row for row in reversed(output.splitlines()) if row.startswith("error: "))


def test_second_run_has_nothing_to_do_and_asks_little(line: Line) -> None:
    code, output = line.run()
    assert code == 0, output
    assert "Best model: adapter_x" in output
    code, output = line.run()
    assert (code, "changed=0 " in output) == (0, True), output
    assert line.state()["starts"] == 1


def test_changed_key_stops_and_is_replaced_only_when_confirmed(line: Line) -> None:
    assert line.run("--tags", "precheck")[0] == 0
    line.box.change_host_key()
    line.box.run("pkill -f '^sshd: root' || true")  # the shared connections of before
    code, output = line.run("--tags", "precheck")
    assert code == 4 and "is not the one that was trusted" in error_line(output)
    known = line.lab.home / ".ssh" / "known_hosts"
    before = known.read_text()
    code, output = line.run(playbook="trust")
    assert code == 2 and "no terminal" in error_line(output)
    assert "was trusted with another key" in output
    assert known.read_text() == before
    new = line.box.run("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[1]
    code, output = line.run(playbook="trust", TRUST_FINGERPRINT=new[:-4] + "AAAA")
    assert code == 2 and known.read_text() == before
    code, output = line.run(playbook="trust", TRUST_FINGERPRINT=new)
    assert code == 0 and "trusted from now on" in output, output
    assert line.run("--tags", "precheck")[0] == 0
    line.lab.pin_keys()


def test_unknown_key_is_trusted_on_a_terminal(line: Line) -> None:
    known = line.lab.home / ".ssh" / "known_hosts"
    known.write_text("")
    try:
        code, output = line.run("--tags", "precheck")
        assert code == 4 and "make trust" in error_line(output)
        asked = line.start(playbook="trust", tty=True)
        asked.wait_for("[yes/no]", timeout=150)
        time.sleep(0.5)  # the prompt throws away what was typed before it
        asked.write("yes\n")
        assert asked.wait(60) == 0, asked.output
        assert line.run("--tags", "precheck")[0] == 0
    finally:
        line.lab.pin_keys()


def test_password_alone_opens_the_host_and_is_never_shown(line: Line) -> None:
    line.box.password_only("pass word'${x}")
    code, output = line.run("--tags", "precheck")
    assert code == 4 and "REMOTE_PASSWORD" in error_line(output)
    line.password = "wrong-canary"
    code, output = line.run("--tags", "precheck", "-vvv")
    assert code == 4 and "REMOTE_PASSWORD" in error_line(output)
    assert "wrong-canary" not in output
    line.password = "pass word'${x}"
    code, output = line.run("-vvv", "--tags", "style")
    assert code == 0, output
    assert line.password not in output
    shown = [command for *_, command in line.box.all_processes()]
    assert not any(line.password in command for command in shown)


def test_untrusted_key_of_a_host_with_a_password_is_named(line: Line) -> None:
    line.box.password_only("secret")
    line.password = "secret"
    known = line.lab.home / ".ssh" / "known_hosts"
    known.write_text("")
    try:
        code, output = line.run("--tags", "precheck")
        assert code == 4 and "make trust" in error_line(output)
    finally:
        line.lab.pin_keys()
    line.box.change_host_key()
    code, output = line.run("--tags", "precheck")
    assert code == 4 and "is not the one that was trusted" in error_line(output)
    line.lab.pin_keys()


def test_login_that_writes_confuses_nothing(line: Line) -> None:
    line.box.noisy_login()
    code, output = line.run("--skip-tags", "collect")  # how files come home is the matter of its own tests
    assert code == 0, output
    assert "all: passed" in output and line.state()["starts"] == 1
    code, output = line.run(playbook="status")
    assert code == 0 and "running: False" in output


def test_host_that_is_off_is_named_at_once(line: Line) -> None:
    line.box.power_off()
    code, output = line.run("--tags", "precheck", ANSIBLE_TIMEOUT="3")
    assert code == 4 and line.box.address in error_line(output), output
    line.box.power_on()


def test_link_that_is_cut_during_the_launch_starts_exactly_one(line: Line) -> None:
    line.outcomes(stage_seconds=1.0)
    run = line.start("--tags", "style", ANSIBLE_TIMEOUT="5")
    line.box.cut_when(lambda: any("async_wrapper" in command for _, command in line.box.processes()), 60)
    time.sleep(5)
    line.box.mend()
    assert run.wait(120) == 0, run.output
    assert line.state()["starts"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_end_of_the_watching_leaves_nothing_that_asks(line: Line, number: signal.Signals) -> None:
    line.outcomes(stage_seconds=30.0)
    run = line.start("--tags", "style")
    run.wait_for("style: step 1/3", timeout=150)
    run.signal(number)
    assert run.wait(30) == 7, run.output
    assert "ansible-playbook -i inventory/remote.yml playbooks/cancel.yml" in run.output
    assert "error: interrupted" in run.output.splitlines()[-1]
    time.sleep(3)
    assert line.watched() == []
    assert line.state()["starts"] == 1 and line.state()["running"]


def test_wrapper_that_dies_leaves_the_supervisor_alone(line: Line) -> None:
    line.outcomes(stage_seconds=6.0)
    run = line.start("--tags", "style")
    run.wait_for("style: step 1/3", timeout=150)
    for pid, command in line.box.processes():
        if "async_wrapper" in command or "AnsiballZ" in command:
            line.box.run(f"kill -9 {pid}", check=False)  # a number of the host's own process tree
    assert run.wait(150) == 0, run.output
    assert "style: passed" in run.output and line.state()["starts"] == 1
