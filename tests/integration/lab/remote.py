"""The playbook against a host of the lab: what a user starts, what the host's own files then say."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import LEARNING, REPOSITORY
from tests.lab import Controller, Host, Lab

ROOT = "/root/autodl-tmp/stagegate"
DATA = "/root/autodl-tmp/data"
BASE = "/root/autodl-tmp/base"
DEADLINE_SECONDS = 240.0  # generous: the machine is shared, and a worker's imports take most of a stage

LONG = {"trainer_hp_max_steps": 500}  # seconds of training, so that something can happen meanwhile
ONE = ("--tags", "sample")

Event = dict[str, Any]


def prepare(host: Host, base: Path, data: Path) -> None:
    """Give a host what the fault tests stand on: a small base model and rows to learn."""
    shutil.copytree(base, f"{host.root}{BASE}")
    shutil.copytree(data, f"{host.root}{DATA}")


class Remote:
    """One controller's view of one host, and the host's files behind its back."""

    def __init__(self, lab: Lab, host: Host, folder: Path, **variables: Any) -> None:
        self.lab = lab
        self.host = host
        self.folder = folder
        self.outputs = folder / "outputs"
        folder.mkdir(parents=True, exist_ok=True)
        self.inventory = lab.write_inventory(
            folder / "hosts.yml", host, project_root=ROOT, gpu_host_venv_dir=f"{ROOT}/venv"
        )
        self.variables = {
            "gpu_host_gate": "off",
            "artifacts_output_dir": str(self.outputs),
            "trainer_data_root": DATA,
            **{f"trainer_hp_{name}": value for name, value in LEARNING.items()},
            "trainer_hp_model_name_or_path": BASE,
            "trainer_hp_gate_questions": "trained",
            **variables,
        }

    # -- the controller ----------------------------------------------------------------------------------------

    def command(self, *words: str, playbook: str = "train_all", **variables: Any) -> list[str]:
        given = json.dumps({**self.variables, **variables})
        return ["ansible-playbook", "-i", str(self.inventory), f"playbooks/{playbook}.yml", "-e", given, *words]

    def start(self, *words: str, tty: bool = False, playbook: str = "train_all", **variables: Any) -> Controller:
        command = self.command(*words, playbook=playbook, **variables)
        return self.lab.controller(command, cwd=REPOSITORY, tty=tty)

    def run(self, *words: str, playbook: str = "train_all", **variables: Any) -> subprocess.CompletedProcess[str]:
        return self.lab.run(self.command(*words, playbook=playbook, **variables), cwd=REPOSITORY, timeout=600)

    # -- the host ----------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """The project root on the host's disk, also while it is off."""
        return Path(f"{self.host.root}{ROOT}")

    def trainer(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`python -m trainer` on the host, not over SSH."""
        command = f"cd {ROOT}/code && {ROOT}/venv/bin/python -m trainer --project-root {ROOT} {' '.join(words)}"
        return self.host.run(command, check=False, timeout=120)

    def status(self) -> dict[str, Any]:
        done = self.trainer("status", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def events(self) -> list[Event]:
        path = self.root / "outputs" / "state" / "events.jsonl"
        found: list[Event] = []
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):  # a torn line
                    found.append(json.loads(line))
        return found

    def state(self, stage: str) -> dict[str, Any]:
        return dict(json.loads((self.root / "outputs" / "state" / f"{stage}.json").read_text(encoding="utf-8")))

    def plan(self) -> dict[str, Any]:
        return dict(json.loads((self.root / "outputs" / "state" / "plan.json").read_text(encoding="utf-8")))

    def phases(self, phase: str) -> list[str]:
        """The stages that ever entered a phase, in order, with repetitions."""
        return [e["stage"] for e in self.events() if e["event"] == "phase" and e.get("phase") == phase]

    def wait_for(self, wanted: Callable[[Event], Any], seconds: float = DEADLINE_SECONDS) -> Event:
        """The first event that is wanted."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self.events():
                if wanted(event):
                    return event
            time.sleep(0.05)
        raise AssertionError(f"not seen in {seconds:g} s: {self.events()[-3:]}")

    def wait_for_step(self, stage: str, step: int = 1) -> Event:
        """Wait until a stage trains and has done so many steps."""
        return self.wait_for(
            lambda e: e["event"] == "progress" and e.get("stage") == stage and e.get("step", 0) >= step
        )

    def wait_until(self, happened: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, (
                f"did not happen in {seconds:g} s; the last events: {self.events()[-3:]}"
            )
            time.sleep(0.05)

    def training_processes(self) -> list[str]:
        """The supervisors and workers that run on the host."""
        lines = [line for _, line in self.host.processes()]
        return [line for line in lines if "-m trainer" in line and (" supervise " in line or " worker " in line)]


def error_of(output: str) -> str:
    """The last `error:` line of a run."""
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert lines, output[-2000:]
    return lines[-1]


def assert_trained_once(remote: Remote, stage: str = "sample") -> None:
    """One plan, one attempt, one training of the stage, which passed."""
    assert remote.state(stage)["status"] == "passed"
    assert remote.phases("training") == [stage]
    assert [e["stage"] for e in remote.events() if e["event"] == "stage started"] == [stage]
    assert [e["event"] for e in remote.events()].count("plan started") == 1
