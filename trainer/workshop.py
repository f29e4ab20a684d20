"""The supervisor's side of the worker: its process, the jobs it gets, the reports that come back. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer import memory, process, steps
from trainer.errors import KINDS, Interrupted, TrainingFailed

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
    """At most one worker process, started with the first job and kept for the next.

    `environment` is what the worker gets beside and above the host's; `tick` is called at least every
    TICK_SECONDS while a job is carried out, and may end it by raising.
    """

    def __init__(
        self, project_root: Path, environment: Mapping[str, str] | None = None, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.project_root = project_root
        self.environment = dict(environment or {})
        self.tick = tick
        self.worker: subprocess.Popen[str] | None = None
        self.reports: Any = None
        self.pending = b""
        self.kills: int | None = None

    def carry_out(
        self, job: dict[str, Any], log: Path, timeout_seconds: float, note: Callable[[Report], None]
    ) -> dict[str, Any]:
        """The worker's result of a job; every report before it goes to `note`.

        Errors: what the worker reported, TrainingFailed after the timeout, WorkerLost when it died.
        """
        self.kills = memory.kills()
        self._send(job, log)
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
        assert self.worker is not None and self.worker.stdin is not None
        try:
            self.worker.stdin.write(json.dumps(job, ensure_ascii=False) + "\n")
            self.worker.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _start(self, log: Path, environment: Mapping[str, str]) -> None:
        reading, writing = os.pipe()
        command = [
            sys.executable, "-m", "trainer", "--project-root", str(self.project_root),
            "worker", "--report-descriptor", str(writing),
        ]  # fmt: skip
        try:
            with log.open("ab") as output:
                self.worker = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(writing,),
                    cwd=steps.code_root(), env=worker_environment(environment), encoding="utf-8",
                    start_new_session=True,
                )  # fmt: skip
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.worker.pid}/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
        os.set_blocking(reading, False)
        self.reports = os.fdopen(reading, "rb", buffering=0)
        self.pending = b""

    def _received(self, stage: str, timeout_seconds: float) -> Iterator[Report]:
        """The reports as they come, until the worker closes its end."""
        deadline = time.monotonic() + timeout_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.reports, selectors.EVENT_READ)
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
        piece = self.reports.read(1 << 16)
        if piece == b"":
            return None
        *lines, self.pending = (self.pending + (piece or b"")).split(b"\n")
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
        if self.worker is None:
            return
        with contextlib.suppress(OSError):
            if self.worker.stdin:
                self.worker.stdin.close()
        for number in (signal.SIGTERM, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.worker.pid, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.worker.poll() is None and time.monotonic() < deadline:
            self._hear(note)
            time.sleep(process.PAUSE_SECONDS)
        self._hear(note)
        process.end_group(self.worker, 0.0)
        self.reports.close()
        self.worker = None

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
    host = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    for name in ("TMPDIR", "HOME"):
        if not os.path.isdir(host.get(name, "/")):
            del host[name]
    return {**WORKER_ENVIRONMENT, **host, "PYTHONUTF8": "1", **more}


def _report(stage: str, line: bytes) -> Report:
    """A report of the worker; TrainingFailed when the line is none, which would end the supervisor otherwise."""
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("event"), str):
            return found
    raise TrainingFailed(f"the worker of stage {stage} sent {line[:80]!r}, which is no report; look at its log")
