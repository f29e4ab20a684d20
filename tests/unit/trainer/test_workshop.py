"""The supervisor's side of the worker, with small scripts in the worker's place."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer import process, workshop
from trainer.errors import HostUnfit, InputError, Interrupted, TrainerError, TrainingFailed
from trainer.workshop import WORKER_ENVIRONMENT, WorkerLost, Workshop

# Reads jobs as the worker does and answers the first with what the test puts below it.
FRAME = """#!{python} -S
import json, os, signal, sys, time
descriptor = int(sys.argv[sys.argv.index("--report-descriptor") + 1])
def say(text):
    os.write(descriptor, (text if isinstance(text, bytes) else text.encode()) + b"\\n")
def report(event, **fields):
    say(json.dumps({{"event": event, **fields}}))
for line in sys.stdin:
    job = json.loads(line)
"""
Hire = Callable[[str], Workshop]
FINISHED = 'report("finished", result={"stage": job["stage"], "worker": os.getpid()})'


@pytest.fixture
def hire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hire]:
    """Makes a workshop whose worker does for each job what the lines say."""
    shops: list[Workshop] = []
    frame = FRAME.format(python=sys.executable)

    def make(lines: str) -> Workshop:
        script = tmp_path / "worker"
        script.write_text(frame + "".join(f"    {line}\n" for line in lines.splitlines()), encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        shops.append(Workshop(tmp_path))
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()


def carry_out(shop: Workshop, folder: Path, seconds: float = 30.0, stage: str = "style") -> tuple[Any, list[Any]]:
    """(result, notes) of one job."""
    notes: list[dict[str, Any]] = []
    return shop.carry_out({"stage": stage, "text": "电场"}, folder / "x.log", seconds, notes.append), notes


def test_the_result_comes_back_and_every_report_before_it_is_noted(hire: Hire, tmp_path: Path) -> None:
    shop = hire('report("phase", phase="loading")\nreport("note", text=job["text"])\n' + FINISHED)
    result, notes = carry_out(shop, tmp_path)
    assert result["stage"] == "style"
    assert notes == [{"event": "phase", "phase": "loading"}, {"event": "note", "text": "电场"}]


def test_one_worker_does_one_job_after_another(hire: Hire, tmp_path: Path) -> None:
    shop = hire(FINISHED)
    assert shop.identity() is None
    first, _ = carry_out(shop, tmp_path, stage="sample")
    who = shop.identity()
    second, _ = carry_out(shop, tmp_path, stage="style")
    assert (first["stage"], second["stage"]) == ("sample", "style")
    assert first["worker"] == second["worker"] == who["pid"] and process.is_alive(who)  # type: ignore[index]
    shop.close()
    assert not process.is_alive(who) and shop.identity() is None
    shop.close()
    assert carry_out(shop, tmp_path)[0]["worker"] != first["worker"], "a closed workshop can be opened again"


def test_what_the_worker_says_on_its_own_is_in_the_log(hire: Hire, tmp_path: Path) -> None:
    shop = hire('print("step 1", flush=True)\nprint("careful", file=sys.stderr, flush=True)\n' + FINISHED)
    (tmp_path / "x.log").write_text("before\n", encoding="utf-8")
    carry_out(shop, tmp_path)
    assert (tmp_path / "x.log").read_text(encoding="utf-8") == "before\nstep 1\ncareful\n"


def test_the_host_has_the_last_word_on_the_environment(
    hire: Hire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    shop = hire('report("finished", result=dict(os.environ))')
    found, _ = carry_out(shop, tmp_path)
    assert found["GOMP_SPINCOUNT"] == WORKER_ENVIRONMENT["GOMP_SPINCOUNT"]
    assert found["TOKENIZERS_PARALLELISM"] == "true"


@pytest.mark.parametrize(
    ("kind", "error"),
    [("InputError", InputError), ("Interrupted", Interrupted), ("TrainingFailed", TrainingFailed),
     ("OutOfMemoryError", TrainingFailed)],
)  # fmt: skip
def test_a_reported_failure_is_raised_as_its_kind(
    hire: Hire, tmp_path: Path, kind: str, error: type[TrainerError]
) -> None:
    shop = hire(f'report("failed", kind="{kind}", message="what is wrong; what to do")')
    with pytest.raises(error, match="^what is wrong; what to do$") as caught:
        carry_out(shop, tmp_path)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("lines", "words", "number"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL", 9),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV", 11),
        ("sys.exit(0)", "exit code 0", None),
        ("sys.exit(3)", "exit code 3", None),
        ("""os.write(descriptor, b'{"event": "finished", "res')\nsys.exit(1)""", "exit code 1", None),
    ],
)
def test_a_worker_that_ends_without_a_result_is_lost(
    hire: Hire, tmp_path: Path, lines: str, words: str, number: int | None
) -> None:
    shop = hire(f'report("phase", phase="training")\n{lines}')
    with pytest.raises(WorkerLost) as caught:
        carry_out(shop, tmp_path)
    assert f"the worker ended without a result ({words})" in str(caught.value)
    assert (caught.value.exit_signal, caught.value.exit_code) == (number, 7)
    assert shop.identity() is None


def test_a_lost_worker_is_followed_by_another(hire: Hire, tmp_path: Path) -> None:
    shop = hire(f'os.path.exists("{tmp_path}/again") or os.kill(os.getpid(), signal.SIGKILL)\n{FINISHED}')
    with pytest.raises(WorkerLost):
        carry_out(shop, tmp_path)
    (tmp_path / "again").touch()
    assert carry_out(shop, tmp_path)[0]["stage"] == "style"


def test_a_worker_that_died_between_two_jobs_is_lost(hire: Hire, tmp_path: Path, is_gone: Callable[..., bool]) -> None:
    shop = hire(FINISHED)
    carry_out(shop, tmp_path)
    who = shop.identity()
    os.kill(who["pid"], signal.SIGTERM)  # type: ignore[index]
    assert is_gone(who)
    with pytest.raises(WorkerLost, match="signal SIGTERM"):
        carry_out(shop, tmp_path)


def test_a_child_that_holds_the_pipe_does_not_hide_the_end(
    hire: Hire, tmp_path: Path, is_gone: Callable[..., bool]
) -> None:
    shop = hire('child = os.fork()\nif not child: time.sleep(300)\nreport("note", pid=child)\nos._exit(4)')
    started = time.monotonic()
    children: list[dict[str, Any]] = []
    with pytest.raises(WorkerLost, match="exit code 4"):
        shop.carry_out(
            {"stage": "style"}, tmp_path / "x.log", 60.0, lambda note: children.append(process.identity(note["pid"]))
        )
    assert time.monotonic() - started < 20
    assert len(children) == 1 and is_gone(children[0]), "what the worker started ends with it"


@pytest.mark.parametrize("text", ["nonsense", "[1]", '{"phase": "loading"}', '{"event": 5}', "5", ""])
def test_what_is_no_report_fails_the_stage_and_not_the_supervisor(hire: Hire, tmp_path: Path, text: str) -> None:
    shop = hire(f"say({text!r})\n{FINISHED}")
    with pytest.raises(TrainingFailed, match="^the worker of stage style sent .*, which is no report; look at its log"):
        carry_out(shop, tmp_path)


def test_bytes_that_are_no_text_are_no_report_either(hire: Hire, tmp_path: Path) -> None:
    shop = hire("say(bytes([0xff, 0xfe]))")
    with pytest.raises(TrainingFailed, match="which is no report"):
        carry_out(shop, tmp_path)


def test_a_report_may_come_in_pieces_and_be_long(hire: Hire, tmp_path: Path) -> None:
    lines = """text = json.dumps({"event": "note", "text": "x" * 200000}).encode() + b"\\n"
half = len(text) // 2
sent = 0
while sent < len(text):
    sent += os.write(descriptor, text[sent:half] if sent < half else text[sent:])
    time.sleep(0.01)
"""
    result, notes = carry_out(hire(lines + FINISHED), tmp_path)
    assert result["stage"] == "style" and [len(note["text"]) for note in notes] == [200000]


def test_a_job_that_takes_too_long_is_given_up(hire: Hire, tmp_path: Path) -> None:
    shop = hire('while True:\n    report("note", text="still here")\n    time.sleep(0.02)')
    started = time.monotonic()
    with pytest.raises(TrainingFailed) as caught:
        carry_out(shop, tmp_path, seconds=0.5)
    assert str(caught.value) == "stage style ran longer than stage_timeout_seconds = 0.5; raise it"
    assert 0.4 < time.monotonic() - started < 10
    who = shop.identity()
    shop.close()
    assert not process.is_alive(who)


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("counts", "kind", "words"),
    [
        ([3, 4], "HostMemory", "killed by the kernel for memory (limit 512 MiB)"),
        ([3, 3], "WorkerLost", "killed by somebody, not by the kernel for memory"),
        ([None, None], "WorkerLost", "this host does not tell whether for memory"),
    ],
)
def test_the_kernel_is_named_only_when_its_count_moved(
    hire: Hire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[Any], kind: str, words: str
) -> None:
    monkeypatch.setattr(workshop.memory, "kills", lambda: counts.pop(0))
    monkeypatch.setattr(workshop.memory, "limit_mib", lambda: 512)
    with pytest.raises(WorkerLost) as caught:
        carry_out(hire(KILLED), tmp_path)
    assert words in str(caught.value) and caught.value.kind == kind


def test_another_end_is_not_the_kernels_though_its_count_moved(
    hire: Hire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = [3, 4]
    monkeypatch.setattr(workshop.memory, "kills", lambda: counts.pop(0))
    with pytest.raises(WorkerLost) as caught:
        carry_out(hire("os.kill(os.getpid(), signal.SIGTERM)"), tmp_path)
    assert "memory" not in str(caught.value) and caught.value.kind == "WorkerLost"


def test_what_the_ending_worker_reports_is_noted_and_does_not_hold_it_up(hire: Hire, tmp_path: Path) -> None:
    lines = """def end(number, frame):
    for _ in range(300): report("note", text="x" * 1000)
    report("checkpoint", step=7)
    os._exit(143)
signal.signal(signal.SIGTERM, end)
report("phase", phase="training")
time.sleep(60)"""
    shop = hire(lines)
    noted: list[Any] = []

    def note(report: dict[str, Any]) -> None:
        noted.append(report)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shop.carry_out({"stage": "style"}, tmp_path / "x.log", 30.0, note)
    started = time.monotonic()
    shop.close(noted.append)
    assert noted[-1] == {"event": "checkpoint", "step": 7} and len(noted) == 2
    assert time.monotonic() - started < workshop.GRACE_SECONDS


def test_a_tick_ends_a_job_by_raising(hire: Hire, tmp_path: Path) -> None:
    shop = hire("time.sleep(60)")
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 2:
            raise InputError("enough")

    shop.tick = tick
    with pytest.raises(InputError, match="enough"):
        carry_out(shop, tmp_path)


def test_the_workers_own_variables_win_and_foreign_code_is_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in workshop.FOREIGN_VARIABLES:
        monkeypatch.setenv(name, "/evil")
    monkeypatch.setenv("TMPDIR", "/no/such/folder")
    monkeypatch.setenv("TOKEN", "host")
    found = workshop.worker_environment({"TOKEN": "plan"})
    assert not {*workshop.FOREIGN_VARIABLES, "TMPDIR"} & set(found)
    assert found["TOKEN"] == "plan" and found["PATH"] == os.environ["PATH"] and found["PYTHONUTF8"] == "1"


# More than one process


@pytest.mark.parametrize(
    ("wanted", "gpus", "expected"),
    [
        (0, 0, (1, "no GPU")),
        (0, 1, (1, "one GPU")),
        (0, 4, (4, "one for each of 4 GPUs")),
        (1, 4, (1, "num_processes")),
        (4, 4, (4, "num_processes")),
        (2, 0, (2, "num_processes")),
    ],
)
def test_the_number_of_processes_follows_the_gpus_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, wanted: int, gpus: int, expected: tuple[int, str]
) -> None:
    monkeypatch.setattr(workshop.gpu, "count", lambda _: gpus)
    assert workshop.processes(wanted, {}) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "num_processes is 3, but the worker sees 2 GPUs here; set it to 0 or at most 2"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"},
         ("num_processes is 3, but the worker sees 2 GPUs here (CUDA_VISIBLE_DEVICES is '0,1'); "
          "set it to 0 or at most 2")),
    ],
)  # fmt: skip
def test_more_processes_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(workshop.gpu, "count", lambda _: 2)
    with pytest.raises(HostUnfit) as caught:
        workshop.processes(3, environment)
    assert str(caught.value) == words


def test_each_process_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert workshop.crew_environment({"A": "b"}, 1) == {"A": "b"}
    assert workshop.crew_environment({}, 2) == {"OMP_NUM_THREADS": "4"}
    assert workshop.crew_environment({}, 16) == {"OMP_NUM_THREADS": "1"}
    assert workshop.crew_environment({"OMP_NUM_THREADS": "3"}, 2) == {"OMP_NUM_THREADS": "3"}, "the host's word"


SHOWN = """report("finished", result={"pid": os.getpid(), "words": sys.argv, "job": job["processes"],
    "variables": {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}})"""


def test_the_worker_is_told_how_many_it_is_to_be(hire: Hire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop.gpu, "count", lambda _: 0)
    for name in ("RANK", "WORLD_SIZE"):  # of a job of somebody else, in which the supervisor was started
        monkeypatch.setenv(name, "3")
    shop = hire(SHOWN)

    def ask(count: int) -> Any:
        job = {"stage": "style", "parameters": {"num_processes": {"value": count, "source": "test"}}}
        return shop.carry_out(job, tmp_path / "x.log", 30.0, lambda _: None)

    one, again, two = ask(1), ask(0), ask(2)
    assert one["pid"] == again["pid"] != two["pid"], "another number asks for another worker"
    assert one["words"][-2:] == ["--processes", "1"] and two["words"][-2:] == ["--processes", "2"]
    assert two["job"] == {"value": 2, "reason": "num_processes"}
    assert two["variables"] == {"RANK": None, "WORLD_SIZE": None}
