"""A host whose trainer is the real one but for its worker, which does what a test writes: real processes, no torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer import content, process
from trainer.state import Layout, read_events, read_stage

REPOSITORY = Path(process.__file__).resolve().parents[1]
DEADLINE_SECONDS = 40.0  # generous: the machine is shared
# In the place of trainer/worker.py: carries out <root>/do.py for each job.
WORKER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from trainer import fingerprint, process
from trainer.state import write_json


def main(root, descriptor):
    def report(event, **fields):
        os.write(descriptor, (json.dumps({"event": event, **fields}) + "\\n").encode())

    def spawn(code, **more):
        return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **more)

    def write_adapter(job):
        folder = Path(job["folder"])
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_text(job["fingerprint"]["training"])
        gate = {"mode": job["gate"], "passed": True, "reasons": [], "questions": "trained"}
        mark = {**job["fingerprint"], "adapter": fingerprint.of_adapter(folder)}
        result = {"gate": gate, "fingerprint": mark}
        write_json(folder / f"eval_report_{job['stage']}.json", {"schema": 1, "plan_id": job["plan_id"], **result})
        return {**result, "summary": {}, "times": {}}

    for line in sys.stdin:
        job = json.loads(line)
        names = {**globals(), "root": root, "job": job, "report": report, "spawn": spawn}
        report("phase", phase="training", rows=2)
        try:
            exec((root / "do.py").read_text(), names)
            report("finished", result=write_adapter(job))
        except Exception as problem:
            report("failed", kind=type(problem).__name__, message=f"{type(problem).__name__}: {problem}")
            return 1
    return 0
"""
ENDLESS = "process.die_with_parent()\nwhile True:\n    time.sleep(0.05)\n"
FOREVER = "import time; time.sleep(300)"


class FastHost:
    """`do` is what the worker does for each job; everything else is the real thing."""

    stand_in = ("worker.py", WORKER)

    def __init__(self, folder: Path, line: Any) -> None:
        self.root = line.layout.root
        self.root.mkdir(parents=True, exist_ok=True)
        self.line = line
        self.layout = Layout(self.root)
        fresh = folder / "releases" / "fresh"
        shutil.copytree(REPOSITORY / "trainer", fresh / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
        (fresh / "trainer" / self.stand_in[0]).write_text(self.stand_in[1], encoding="utf-8")
        shipped = content.entries(fresh, content.walked_files(fresh))
        content.write_record(fresh, shipped, content.Origin())
        self.code = fresh.rename(fresh.with_name(content.source_id(shipped)))
        self.supervisors: list[subprocess.Popen[str]] = []
        self.environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.do("pass")

    def do(self, code: str) -> None:
        (self.root / "do.py").write_text(code, encoding="utf-8")

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "trainer", "--project-root", str(self.root), *words]

    def call(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=self.code, env=self.environment, input=stdin, capture_output=True, text=True,
            timeout=DEADLINE_SECONDS, check=False,
        )  # fmt: skip

    def submit(self, *names: str, **request: Any) -> str:
        """Submit a plan that is to be started; returns its id."""
        done = self.call("submit", "--input", "-", "--json", stdin=json.dumps(self.line.request(*names, **request)))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["action"] == "start"
        return str(found["plan_id"])

    def supervise(self, plan_id: str, **more: Any) -> subprocess.Popen[str]:
        options = {"cwd": self.code, "env": self.environment, "start_new_session": True, **more}
        supervisor = subprocess.Popen(
            self.command("supervise", "--plan", plan_id), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip
        self.supervisors.append(supervisor)
        return supervisor

    def start(self, *names: str, **request: Any) -> subprocess.Popen[str]:
        return self.supervise(self.submit(*names, **request))

    def end(self) -> tuple[int, str]:
        """(exit code, last line of standard error) of the last supervisor."""
        _, errors = self.supervisors[-1].communicate(timeout=DEADLINE_SECONDS)
        return self.supervisors[-1].returncode, (errors.splitlines() or [""])[-1]

    def cancel(self) -> tuple[int, str]:
        done = self.call("cancel", "--json")
        return done.returncode, json.loads(done.stdout)["lines"][0] if done.returncode == 0 else done.stderr.strip()

    def status(self) -> dict[str, Any]:
        done = self.call("status", "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def plan(self) -> dict[str, Any]:
        return dict(json.loads(self.layout.plan.read_text(encoding="utf-8")))

    def state(self, name: str = "sample") -> dict[str, Any]:
        return dict(read_stage(self.layout, name) or {})

    def outcomes(self) -> dict[str, tuple[str, int]]:
        return {name: (item["status"], item["exit_code"]) for name, item in self.plan()["outcomes"].items()}

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.layout)[0] if event["event"] in kinds or not kinds]

    def wait_for(self, wanted: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            if found := wanted():
                return found
            time.sleep(0.02)
        raise AssertionError(f"not seen in {DEADLINE_SECONDS:g} s: {self.events()[-3:]}")

    def wait_for_event(self, kind: str, count: int = 1) -> dict[str, Any]:
        return dict(self.wait_for(lambda: len(self.events(kind)) >= count and self.events(kind)[count - 1]))

    def wait_for_training(self) -> None:
        """Until the state file says so, which is written behind the event."""
        self.wait_for(lambda: self.layout.stage("sample").exists() and self.state()["phase"] == "training")

    def wait_for_file(self, name: str) -> str:
        path = self.root / name
        return str(self.wait_for(lambda: path.exists() and path.read_text(encoding="utf-8")))

    def marked(self) -> list[process.Identity]:
        """What carries the mark of the plan."""
        marker = self.plan().get("marker")  # none before a supervisor has begun
        return process.marked(marker) if marker else []

    def close(self) -> None:
        for supervisor in self.supervisors:
            for number in (signal.SIGCONT, signal.SIGTERM):
                if supervisor.poll() is None:
                    supervisor.send_signal(number)
            try:
                supervisor.wait(10)
            except subprocess.TimeoutExpired:
                supervisor.kill()
                supervisor.wait()
            if supervisor.stderr:
                supervisor.stderr.close()
        if self.layout.plan.is_file():
            process.end_all(self.marked, 0.0)


@pytest.fixture
def fast_host(tmp_path: Path, line: Any) -> Iterator[FastHost]:
    host = FastHost(tmp_path, line)
    yield host
    host.close()
