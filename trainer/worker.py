"""The worker: keeps the base model loaded and carries out one stage job after another.

Jobs come as JSON lines on standard input, reports go as JSON lines to a pipe of the supervisor, which alone
writes states. Standard output and error belong to the stage's log. Torch is imported with the first job.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from trainer import credentials, process, state
from trainer.errors import TrainerError
from trainer.job import Job, StageJob
from trainer.resident import Resident


class Worker:
    """The resident base and the way back to the supervisor."""

    def __init__(self, layout: state.Layout, report_descriptor: int) -> None:
        self.layout = layout
        self.report_stream = os.fdopen(report_descriptor, "w", encoding="utf-8", buffering=1)
        self.resident = Resident(layout, self.report)

    def report(self, event: str, **fields: Any) -> None:
        """Tell the supervisor; a supervisor that is gone ends the worker (nothing trains unseen)."""
        line = json.dumps({"event": event, **fields}, ensure_ascii=False)
        self.report_stream.write(credentials.scrub(line, credentials.known(self.layout)) + "\n")

    def run(self) -> int:
        """Carry out jobs until standard input ends; after a failed job the process is not used again."""
        for line in sys.stdin:
            job = json.loads(line)
            redirect_output(self.layout.root / job["log"])
            try:
                result = self.carry_out(job)
            except Exception as problem:  # reported with its kind; the traceback stands in the log
                with contextlib.suppress(OSError):  # the disk of the log may be what failed
                    traceback.print_exc()
                kind = type(problem).__name__
                sentence = str(problem).strip().splitlines()[0] if str(problem).strip() else kind
                if not isinstance(problem, TrainerError):
                    sentence = f"{kind}: {sentence}"
                lines = problem.lines if isinstance(problem, TrainerError) else []
                with contextlib.suppress(OSError):
                    print("\n".join(lines), file=sys.stderr, flush=True)
                self.report("failed", kind=kind, message=sentence)
                return 1
            self.report("finished", result=result)
        return 0

    def carry_out(self, job: Job) -> dict[str, Any]:
        """Train (or only score) one stage into the job's fresh folder; returns what its state records."""
        return StageJob(job, self.layout, self.resident, self.report).carry_out()


def redirect_output(path: Path) -> None:
    """Send standard output and error, also those of native libraries, to the end of a log file."""
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def main(project_root: Path, report_descriptor: int) -> int:
    """Entry of `python -m trainer worker`, started by the supervisor only."""
    process.die_with_parent()
    return Worker(state.Layout(project_root), report_descriptor).run()
