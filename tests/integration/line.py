"""A checkout whose trainer is a stand-in: the whole playbook in seconds, on a host that is a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
ANSIBLE_PARTS = [
    "ansible.cfg", "inventory", "playbooks", "action_plugins", "callback_plugins",
    "filter_plugins", "train_all.yml", "roles/trainer", "roles/checkout", "roles/artifacts",
]  # fmt: skip
MISSED = {"status": "missed", "exit_code": 6, "message": "key point coverage 0.71 < 0.90"}


class Line:
    """A copy of the project's Ansible files with a stand-in trainer, and its embedded host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = folder / ".stagegate" / "host"

    def command(self, *words: str, playbook: str = "playbooks/train_all.yml") -> list[str]:
        return [str(Path(sys.executable).parent / "ansible-playbook"), playbook, *words]

    def environment(self, **more: str) -> dict[str, str]:
        # The parameters and switches of whoever runs the tests must not reach the run.
        names = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        return {**kept, "ANSIBLE_NOCOLOR": "1", "TERM": "xterm", **more}

    def run(
        self, *words: str, playbook: str = "playbooks/train_all.yml", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words, playbook=playbook),
            cwd=self.folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*words), cwd=self.folder, env=self.environment(), text=True, **more)

    def outcomes(self, **outcomes: Any) -> None:
        self.host.mkdir(parents=True, exist_ok=True)
        (self.host / "outcomes.json").write_text(json.dumps(outcomes))

    def forget(self) -> None:
        """No stage has ever run on the host; its code stays."""
        shutil.rmtree(self.host / "outputs", ignore_errors=True)
        (self.host / "submitted.jsonl").unlink(missing_ok=True)

    def submitted(self) -> list[dict[str, Any]]:
        path = self.host / "submitted.jsonl"
        return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []

    def state(self) -> dict[str, Any]:
        path = self.host / "outputs" / "state" / "fake.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.splitlines()[-1]
