"""A worker of two processes below the real supervisor, with torch; what a job does is the test's own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.fast_host import FastHost
from trainer import process

# In the place of trainer/job.py: carries out <root>/do.py in each process.
JOB = """
import json, os, signal, sys, time
from pathlib import Path
from trainer import fingerprint
from trainer.errors import InputError, TrainingFailed
from trainer.state import write_json

Job = dict


class StageJob:
    def __init__(self, job, layout, resident, report, crew):
        self.names = {**globals(), "job": job, "root": layout.root, "report": report, "crew": crew}
        self.job, self.crew, self.report, self.root = job, crew, report, layout.root

    def carry_out(self):
        self.report("phase", phase="training", rows=2)
        self.crew.barrier()
        exec((self.root / "do.py").read_text(), self.names)
        if not self.crew.is_first:
            return {}
        folder = Path(self.job["folder"])
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_text(self.job["fingerprint"]["training"])
        gate = {"mode": self.job["gate"], "passed": True, "reasons": [], "questions": "trained"}
        mark = {**self.job["fingerprint"], "adapter": fingerprint.of_adapter(folder)}
        result = {"gate": gate, "fingerprint": mark}
        write_json(folder / f"eval_report_{self.job['stage']}.json", {"schema": 1, "plan_id": "", **result})
        return {**result, "summary": {}, "times": {}}
"""
TWO = {"num_processes": 2}
# What a process is, told by itself; then all wait for the test's end.
SHOWN = """
about = {"pid": os.getpid(), "rank": crew.rank, "variables": dict(os.environ), "session": os.getsid(0),
         "oom": Path("/proc/self/oom_score_adj").read_text().strip(), "input": os.readlink("/proc/self/fd/0"),
         "logs": [os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)], "choice": job["processes"]}
(root / f"about{crew.rank}.json").write_text(json.dumps(about))
"""
PRINTED = """
print('line of', crew.name, flush=True)
print('careful in', crew.rank, file=sys.stderr, flush=True)
"""
WAIT = SHOWN + "crew.barrier()\ntime.sleep(300)"


class TwoHost(FastHost):
    """A host whose worker is the real one, of as many processes as a plan asks for."""

    stand_in = ("job.py", JOB)

    def start_two(self, do: str, *names: str) -> Any:
        self.do(do)
        self.environment["TMPDIR"] = str(self.root.parent)
        return self.start(*(names or ("sample",)), parameters=TWO)

    def about(self) -> list[dict[str, Any]]:
        """What both processes told, once they have."""
        return [json.loads(self.wait_for_file(f"about{rank}.json")) for rank in (0, 1)]


@pytest.fixture
def host(tmp_path: Path, line: Any) -> Iterator[TwoHost]:
    found = TwoHost(tmp_path, line)
    yield found
    found.close()


def gone(host: TwoHost, *pids: int) -> bool:
    """Whether these, the worker and all that carries the plan's mark are gone, soon."""
    host.wait_for(lambda: host.marked() == [])
    return not any(process.start_time(pid) for pid in pids)


def test_two_processes_carry_a_plan_out_and_one_of_them_speaks(host: TwoHost) -> None:
    told = 'report("note", text=f"{crew.name} of {os.getppid()}")\nreport("note", text=str(crew.gather(crew.rank)))'
    host.start_two(f"{SHOWN}{told}\n{PRINTED}", "sample", "style")
    assert host.end() == (0, "")
    assert host.outcomes() == {"sample": ("passed", 0), "style": ("passed", 0)}
    worker = host.plan()["worker"]["pid"]
    texts = [event["text"] for event in host.events("note")]
    assert texts == [f"process 1 of 2 of {worker}", "[0, 1]"] * 2
    one, two = host.about()
    assert one["choice"] == two["choice"] == {"value": 2, "reason": "num_processes"}
    log = (host.root / host.state("style")["log"]).read_text(encoding="utf-8")
    assert [line for line in log.splitlines() if "of process" in line] == ["line of process 1 of 2"]
    assert "careful in 0" in log and "careful in 1" in log, "what goes wrong in one is not hidden"
    assert gone(host, one["pid"], two["pid"], worker)


def test_the_supervisors_rules_hold_for_each_process(host: TwoHost) -> None:
    host.start_two(WAIT)
    one, two = host.about()
    marker = host.plan()["marker"]
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    for about in (one, two):
        variables = about["variables"]
        assert (variables[process.PLAN_VARIABLE], variables["OMP_NUM_THREADS"]) == (marker, share)
        assert (about["oom"], variables["PYTHONUTF8"]) == ("500", "1")
    log = str(host.root / host.state()["log"])
    assert one["logs"] == [log, log] and two["logs"] == ["/dev/null", log]
    assert one["input"].startswith("socket:") and two["input"] == "/dev/null"
    worker = host.plan()["worker"]["pid"]
    assert {one["pid"], two["pid"]} <= set(process.descendants(worker)), "its processor time is theirs"
    code, words = host.cancel()
    assert code == 0 and "was cancelled" in words
    assert host.end()[0] == 7 and host.outcomes() == {"sample": ("cancelled", 7)}
    assert gone(host, one["pid"], two["pid"], worker)


def test_one_that_is_killed_makes_the_stage_lost_and_ends_all(host: TwoHost) -> None:
    host.start_two(SHOWN + "crew.barrier()\nif crew.rank == 1: os.kill(os.getpid(), 9)\ncrew.barrier()")
    one, two = host.about()
    assert host.end()[0] == 7
    state = host.state()
    assert (state["status"], state["error"]["kind"]) == ("lost", "WorkerLost")
    assert "the worker ended without a result (signal SIGKILL)" in state["message"]
    assert [event["text"] for event in host.events("note")] == [
        f"process 2 of 2 (pid {two['pid']}) ended first, by signal SIGKILL; so the others were ended"
    ]
    assert gone(host, one["pid"], two["pid"])


@pytest.mark.parametrize(
    ("do", "kind", "sentence"),
    [
        ('if crew.rank == 1: raise InputError("row 7 is no row; repair it")\ncrew.barrier()',
         "InputError", "process 2 of 2: row 7 is no row; repair it"),
        ('if crew.rank == 1: raise ValueError("five")\ncrew.barrier()',
         "TrainingFailed", "process 2 of 2: ValueError: five"),
        ('raise TrainingFailed("the loss is nan at step 3; lower the learning rate")',
         "TrainingFailed", "the loss is nan at step 3; lower the learning rate"),
        ('if crew.rank == 0: raise InputError("row 7 is no row; repair it")\ncrew.barrier()',
         "InputError", "row 7 is no row; repair it"),
    ],
)  # fmt: skip
def test_what_fails_in_one_is_the_stages_failure(host: TwoHost, do: str, kind: str, sentence: str) -> None:
    host.start_two(do)
    code, _ = host.end()
    state = host.state()
    assert (state["status"], state["error"]["kind"]) == ("failed", kind)
    assert state["message"] == sentence
    assert code == (2 if kind == "InputError" else 5)
    assert gone(host)


def test_a_killed_supervisor_leaves_no_process(host: TwoHost) -> None:
    supervisor = host.start_two(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WAIT}")
    one, two = host.about()
    worker = host.wait_for(lambda: host.plan().get("worker"))["pid"]
    supervisor.kill()
    supervisor.wait()
    deadline = time.monotonic() + 20
    while any(process.start_time(pid) for pid in (one["pid"], two["pid"], worker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(host, one["pid"], two["pid"], worker)
    assert host.status()["exit_code"] == 7


def test_sigterm_lets_each_process_end_its_step(host: TwoHost) -> None:
    """As cancel does: what the first one reports meanwhile is still heard."""
    do = f"""
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
{SHOWN}
while not crew.any(bool(asked)): time.sleep(0.05)
report("checkpoint", step=3)
crew.barrier()
raise SystemExit(143)
"""
    host.start_two(do)
    host.about()
    code, words = host.cancel()
    assert code == 0, words
    assert host.end()[0] == 7 and host.outcomes() == {"sample": ("cancelled", 7)}
    assert [event["step"] for event in host.events("checkpoint")] == [3]
    assert gone(host)
