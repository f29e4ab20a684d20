"""The worker: keeps the base model loaded and carries out one stage job after another.

Jobs come as JSON lines on standard input, reports go as JSON lines to the supervisor, which alone writes states.
Standard output and error belong to the stage's log. Torch is imported with the first job.

Of several processes the first one reads the jobs and speaks for all; the others tell nothing but their failure.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer import credentials, launcher, state
from trainer.crew import ALONE, Crew, PeerGone, joined
from trainer.errors import TrainerError
from trainer.job import Job, StageJob
from trainer.resident import Resident

# What fails in one process often fails in all of them: the first one's own words are to come first. One that was
# left alone waits as long for torchrun to see who ended, and to end it as well.
AFTER_YOU_SECONDS = 2.0
LONGEST_SENTENCE = 4000  # of those that do not speak: one write that no other can tear apart


class Worker:
    """The resident base and the way back to the supervisor."""

    def __init__(self, layout: state.Layout, report_descriptor: int, crew: Crew = ALONE) -> None:
        self.layout = layout
        self.crew = crew
        self.report_stream = os.fdopen(report_descriptor, "w", encoding="utf-8", buffering=1)
        self.resident = Resident(layout, self.report, crew)

    def join(self, crew: Crew) -> None:
        """Become one of several; those that do not speak leave the jobs, and what is printed, to the first."""
        self.crew = self.resident.crew = crew
        if crew.size > 1:  # transformers finds the others, and takes the missing wrapper for a mistake
            unknowing = logging.getLogger("transformers.training_args")
            unknowing.addFilter(lambda record: "parallel_mode" not in record.getMessage())
        if not crew.is_first:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(nothing, 1)
            os.close(nothing)
            warnings.simplefilter("ignore")  # one of each is enough; errors are not hidden
            os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")

    def report(self, event: str, **fields: Any) -> None:
        """Tell the supervisor; a supervisor that is gone ends the worker (nothing trains unseen)."""
        if self.crew.is_first:
            self._tell(event, **fields)

    def _tell(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, **fields}, ensure_ascii=False)
        self.report_stream.write(credentials.scrub(line, credentials.known(self.layout)) + "\n")

    def run(self) -> int:
        """Carry out jobs until standard input ends; after a failed job the process is not used again."""
        for line in self._jobs():
            job = json.loads(line)
            redirect_output(self.layout.root / job["log"], (1, 2) if self.crew.is_first else (2,))
            try:
                result = self.carry_out(job)
            except Exception as problem:
                self.fail(problem)
                return 1
            self.report("finished", result=result)
        self.crew.leave()
        return 0

    def _jobs(self) -> Iterator[str]:
        """The lines of standard input, as the first process reads them."""
        while line := self.crew.once(sys.stdin.readline):
            yield line

    def fail(self, problem: Exception) -> None:
        """Report what ended a job, with its kind; the traceback stands in the log."""
        with contextlib.suppress(OSError):  # the disk of the log may be what failed
            traceback.print_exception(problem)
        if not self.crew.is_first or isinstance(problem, PeerGone):
            time.sleep(AFTER_YOU_SECONDS)
        if isinstance(problem, PeerGone):
            return
        kind = type(problem).__name__
        sentence = str(problem).strip().splitlines()[0] if str(problem).strip() else kind
        if not isinstance(problem, TrainerError):
            sentence = f"{kind}: {sentence}"
        lines = problem.lines if isinstance(problem, TrainerError) else []
        with contextlib.suppress(OSError):
            print("\n".join(lines), file=sys.stderr, flush=True)
        if not self.crew.is_first:
            sentence = f"{self.crew.name}: {sentence}"[:LONGEST_SENTENCE]
        self._tell("failed", kind=kind, message=sentence)

    def carry_out(self, job: Job) -> dict[str, Any]:
        """Train (or only score) one stage into the job's fresh folder; returns what its state records."""
        return StageJob(job, self.layout, self.resident, self.report, self.crew).carry_out()


def redirect_output(path: Path, descriptors: Sequence[int] = (1, 2)) -> None:
    """Send standard output and error, also those of native libraries, to the end of a log file."""
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number in descriptors:
        os.dup2(descriptor, number)
    os.close(descriptor)


def main(project_root: Path, report_descriptor: int) -> int:
    """Entry of `python -m trainer worker`, started by the supervisor, or once for each process by the launcher."""
    launcher.stay_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a log is read while it grows, and its writer may be killed
        sys.stdout.reconfigure(line_buffering=True)
    worker = Worker(state.Layout(project_root), os.dup(report_descriptor))
    try:
        worker.join(joined())
    except Exception as problem:
        worker.fail(problem)
        return 1
    if worker.crew.size < 2:
        return worker.run()
    code: Any = 1
    try:
        code = worker.run()
    except SystemExit as end:  # after SIGTERM and a checkpoint
        code = end.code
    except PeerGone as problem:  # between two jobs
        worker.fail(problem)
    except Exception:
        traceback.print_exc()
    finally:
        _end_at_once(code if isinstance(code, int) else 1)
    return 1


def _end_at_once(code: int) -> None:
    """End without the interpreter's own end, in which the threads that connect the processes would abort it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
