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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer import process, steps
from trainer.errors import KINDS, Interrupted, TrainingFailed

GRACE_SECONDS = 20.0
# What the worker runs with unless the host says otherwise. GNU OpenMP's waiting threads spin for a moment only:
# a step of a small model on two cores took 0.24 s so (0.25 to 0.35 s with its default, 0.34 to 0.48 s when they
# sleep at once), and with one core busy otherwise 0.45 s (0.66 to 0.79 s, 0.41 s); medians of 14 steps, two runs.
WORKER_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


class WorkerLost(Interrupted):
    """The worker died; `exit_signal` is the signal that killed it, if one did."""

    def __init__(self, message: str, exit_signal: int | None = None) -> None:
        super().__init__(message)
        self.exit_signal = exit_signal


class Workshop:
    """At most one worker process, started with the first job and kept for the next."""

    def __init__(self, project_root: Path) -> None:
        self.project_root = project_root
        self.worker: subprocess.Popen[str] | None = None
        self.reports: Any = None

    def carry_out(
        self, job: dict[str, Any], log: Path, timeout_seconds: float, note: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """The worker's result of a job; every report before it goes to `note`.

        Errors: what the worker reported, TrainingFailed after the timeout, WorkerLost when it died.
        """
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
            self._start(log)
        assert self.worker is not None and self.worker.stdin is not None
        try:
            self.worker.stdin.write(json.dumps(job, ensure_ascii=False) + "\n")
            self.worker.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _start(self, log: Path) -> None:
        reading, writing = os.pipe()
        command = [
            sys.executable, "-m", "trainer", "--project-root", str(self.project_root),
            "worker", "--report-descriptor", str(writing),
        ]  # fmt: skip
        with log.open("ab") as output:
            self.worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(writing,),
                cwd=steps.code_root(), env={**WORKER_ENVIRONMENT, **os.environ}, text=True, start_new_session=True,
            )  # fmt: skip
        os.close(writing)
        os.set_blocking(reading, False)
        self.reports = os.fdopen(reading, "rb", buffering=0)

    def _received(self, stage: str, timeout_seconds: float) -> Iterator[dict[str, Any]]:
        """The reports as they come, until the worker closes its end."""
        deadline = time.monotonic() + timeout_seconds
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.reports, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                if not selector.select(min(left, 1.0)):
                    if self.worker is None or self.worker.poll() is not None:
                        return  # something that it started holds its end open
                    continue
                piece = self.reports.read(1 << 16)
                if piece == b"":
                    return
                *lines, pending = (pending + (piece or b"")).split(b"\n")
                for line in lines:
                    yield _report(stage, line)
        raise TrainingFailed(f"stage {stage} ran longer than stage_timeout_seconds = {timeout_seconds:g}; raise it")

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
        return WorkerLost(
            f"the worker ended without a result ({ended}); the last lines of its log are in the state", number
        )

    def close(self) -> None:
        """End the worker and everything it started."""
        if self.worker is not None:
            with contextlib.suppress(OSError):
                if self.worker.stdin:
                    self.worker.stdin.close()
            process.end_group(self.worker, GRACE_SECONDS)
            self.reports.close()
            self.worker = None


def _report(stage: str, line: bytes) -> dict[str, Any]:
    """A report of the worker; TrainingFailed when the line is none, which would end the supervisor otherwise."""
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("event"), str):
            return found
    raise TrainingFailed(f"the worker of stage {stage} sent {line[:80]!r}, which is no report; look at its log")
