"""The supervisor's side of the worker: its process, the jobs it gets, the reports that come back. No torch.

Jobs and reports go through one socket, the worker's standard input: torchrun hands that on to the processes that
it starts, and closes every other descriptor.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer import gpu, memory, process, steps
from trainer.crew import TORCHRUN_VARIABLES
from trainer.errors import KINDS, HostUnfit, Interrupted, TrainingFailed

GRACE_SECONDS = 20.0
TICK_SECONDS = 0.5
# What the worker runs with unless the host says otherwise. GNU OpenMP's waiting threads spin for a moment only:
# a step of a small model on two cores took 0.24 s so (0.25 to 0.35 s with its default, 0.34 to 0.48 s when they
# sleep at once), and with one core busy otherwise 0.45 s (0.66 to 0.79 s, 0.41 s); medians of 14 steps, two runs.
WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
# Would run other code than the plan's in the worker, or keep it from ours.
FOREIGN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONSAFEPATH")
OOM_SCORE = "500"  # of 1000: the kernel that lacks memory ends the worker before the supervisor, which can tell of it

Report = dict[str, Any]


class WorkerLost(Interrupted):
    """The worker died; `exit_signal` is the signal that killed it, if one did, `kind` what is known of the cause."""

    def __init__(self, message: str, exit_signal: int | None = None, kind: str = "WorkerLost") -> None:
        super().__init__(message)
        self.exit_signal = exit_signal
        self.kind = kind


class Workshop:
    """At most one worker, started with the first job and kept for the next that wants as many processes.

    `environment` is what the worker gets beside and above the host's; `tick` is called at least every
    TICK_SECONDS while a job is carried out, and may end it by raising.
    """

    def __init__(
        self, project_root: Path, environment: Mapping[str, str] | None = None, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.project_root = project_root
        self.environment = dict(environment or {})
        self.tick = tick
        self.worker: subprocess.Popen[bytes] | None = None
        self.size = 1
        self.sizes: dict[int, tuple[int, str]] = {}
        self.line: socket.socket | None = None
        self.pending = b""
        self.kills: int | None = None

    def carry_out(
        self, job: dict[str, Any], log: Path, timeout_seconds: float, note: Callable[[Report], None]
    ) -> dict[str, Any]:
        """The worker's result of a job; every report before it goes to `note`.

        Errors: what the worker reported, TrainingFailed after the timeout, WorkerLost when it died, HostUnfit when
        the job wants more processes than there are GPUs.
        """
        self.kills = memory.kills()
        wanted = job.get("parameters", {}).get("num_processes", {}).get("value", 1)
        if wanted not in self.sizes:  # nvidia-smi takes its time, and GPUs do not come and go
            self.sizes[wanted] = processes(wanted, worker_environment(self.environment))
        size, reason = self.sizes[wanted]
        if size != self.size:
            self.close()
        self.size = size
        self._send({**job, "processes": {"value": size, "reason": reason}}, log)
        for report in self._received(job["stage"], timeout_seconds):
            if report["event"] == "finished":
                return dict(report["result"])
            if report["event"] == "failed":
                raise KINDS.get(report["kind"], TrainingFailed)(report["message"])
            note(report)
        raise self._lost()

    def _send(self, job: dict[str, Any], log: Path) -> None:
        if self.worker is None:
            self._start(log, self.environment)
        assert self.line is not None
        try:
            self.line.sendall((json.dumps(job, ensure_ascii=False) + "\n").encode())
        except ConnectionError:
            raise self._lost() from None

    def _start(self, log: Path, environment: Mapping[str, str]) -> None:
        command = [
            sys.executable, "-m", "trainer", "--project-root", str(self.project_root),
            "worker", "--report-descriptor", "0", "--processes", str(self.size),
        ]  # fmt: skip
        line, theirs = socket.socketpair()
        try:
            with theirs, log.open("ab") as output:
                self.worker = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=output, stderr=output, cwd=steps.code_root(),
                    env=crew_environment(worker_environment(environment), self.size), start_new_session=True,
                )  # fmt: skip
        except OSError:
            line.close()
            raise
        with contextlib.suppress(OSError):  # what it starts, torch and more of itself, inherits it
            Path(f"/proc/{self.worker.pid}/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
        self.line = line
        self.pending = b""

    def _received(self, stage: str, timeout_seconds: float) -> Iterator[Report]:
        """The reports as they come, until the worker closes its end."""
        deadline = time.monotonic() + timeout_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.line, selectors.EVENT_READ)  # type: ignore[arg-type]
            while (left := deadline - time.monotonic()) > 0:
                self.tick()
                if not selector.select(min(left, TICK_SECONDS)):
                    if self.worker is None or self.worker.poll() is not None:
                        return  # something that it started holds its end open
                    continue
                lines = self._read_lines()
                if lines is None:
                    return
                for line in lines:
                    yield _report(stage, line)
        raise TrainingFailed(f"stage {stage} ran longer than stage_timeout_seconds = {timeout_seconds:g}; raise it")

    def _read_lines(self) -> list[bytes] | None:
        """The whole lines that have come, None when the worker closed its end."""
        assert self.line is not None
        try:
            piece = self.line.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionError:  # it ended before it had read all that was sent to it
            return None
        if not piece:
            return None
        *lines, self.pending = (self.pending + piece).split(b"\n")
        return lines

    def identity(self) -> dict[str, Any] | None:
        """Who the worker is, None when there is none."""
        return None if self.worker is None else process.identity(self.worker.pid)

    def _lost(self) -> WorkerLost:
        """The error of a worker that is gone, with the signal that ended it."""
        assert self.worker is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.worker.wait(GRACE_SECONDS)
        code = self.worker.poll()
        self.close()
        number = -code if code is not None and code < 0 else None
        ended = f"signal {signal.Signals(number).name}" if number else f"exit code {code}"
        kind, cause = self._cause(number)
        return WorkerLost(
            f"the worker ended without a result ({ended}){cause}; the last lines of its log are in the state",
            number, kind,
        )  # fmt: skip

    def _cause(self, number: int | None) -> tuple[str, str]:
        """(kind of the error, words) on a killed worker: only the kernel's own count tells that it was for memory."""
        if number != signal.SIGKILL:
            return "WorkerLost", ""
        kills = memory.kills()
        if kills is None or self.kills is None:
            return "WorkerLost", ": killed, and this host does not tell whether for memory"
        if kills > self.kills:
            return "HostMemory", f": killed by the kernel for memory (limit {memory.limit_mib()} MiB)"
        return "WorkerLost", ": killed by somebody, not by the kernel for memory"

    def close(self, note: Callable[[Report], None] | None = None) -> None:
        """End the worker and everything in its group; what it reports meanwhile (a checkpoint) goes to `note`."""
        if self.worker is None or self.line is None:
            return
        with contextlib.suppress(OSError):
            self.line.shutdown(socket.SHUT_WR)
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.worker.pid, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.worker.poll() is None and time.monotonic() < deadline:
            self._hear(note)
            time.sleep(process.PAUSE_SECONDS)
        self._hear(note)
        process.end_group(self.worker, 0.0)
        self.line.close()
        self.worker = self.line = None

    def _hear(self, note: Callable[[Report], None] | None) -> None:
        """Read what the ending worker reports, so that a full pipe does not hold it up."""
        with contextlib.suppress(TrainingFailed, OSError):
            for line in self._read_lines() or []:
                report = _report("", line)
                if note and report["event"] == "checkpoint":
                    note(report)


def worker_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The worker's variables: the host's without what would run foreign code, ours where it says nothing, and `more`.

    Texts are UTF-8 whatever the host's language; a temporary folder that is not there is not named.
    """
    foreign = {*FOREIGN_VARIABLES, *TORCHRUN_VARIABLES}  # the supervisor may be started in somebody else's job
    host = {name: value for name, value in os.environ.items() if name not in foreign}
    for name in ("TMPDIR", "HOME"):
        if not os.path.isdir(host.get(name, "/")):
            del host[name]
    return {**WORKER_ENVIRONMENT, **host, "PYTHONUTF8": "1", **more}


def crew_environment(environment: dict[str, str], size: int) -> dict[str, str]:
    """The variables of one of `size` processes: a share of the cores, where torchrun would give each a single one."""
    if size < 2:
        return environment
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // size)), **environment}


def processes(wanted: int, environment: Mapping[str, str]) -> tuple[int, str]:
    """(how many processes share the stages, why): `wanted`, or for 0 one for each GPU that the worker would see.

    HostUnfit when a host with GPUs has fewer of them; without a GPU any number is taken as it is.
    """
    gpus = gpu.count(environment)
    if gpus and wanted > gpus:
        shown = environment.get("CUDA_VISIBLE_DEVICES")
        limit = f" (CUDA_VISIBLE_DEVICES is {shown!r})" if shown is not None else ""
        raise HostUnfit(
            f"num_processes is {wanted}, but the worker sees {gpus} GPU{'s' * (gpus > 1)} here{limit}; "
            f"set it to 0 or at most {gpus}"
        )
    if wanted:
        return wanted, "num_processes"
    return max(gpus, 1), f"one for each of {gpus} GPUs" if gpus > 1 else "one GPU" if gpus else "no GPU"


def _report(stage: str, line: bytes) -> Report:
    """A report of the worker; TrainingFailed when the line is none, which would end the supervisor otherwise."""
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("event"), str):
            return found
    raise TrainingFailed(f"the worker of stage {stage} sent {line[:80]!r}, which is no report; look at its log")
