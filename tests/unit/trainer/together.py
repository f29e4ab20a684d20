"""Processes of a crew that do what a test writes: `start` runs its lines in each of them, below the real launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import process
from trainer.crew import MEETING_VARIABLE

REPOSITORY = Path(process.__file__).resolve().parents[1]
DEADLINE_SECONDS = 120.0  # imports on a machine that is shared
# `me` is the crew; what is put into `told` comes back.
FRAME = """
import json, os, signal, sys, time
from pathlib import Path
from trainer import crew, launcher
from trainer.errors import TrainerError
launcher.stay_with_parent()
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
(folder / f"pid{{rank}}").write_text(str(os.getpid()))
told = {{}}
try:
{lines}
except TrainerError as problem:
    told["error"] = [type(problem).__name__, str(problem)]
(folder / f"told{{rank}}.json").write_text(json.dumps(told))
os._exit(0)
"""
LAUNCH = """
import sys
from trainer import launcher
sys.exit(launcher.main([sys.executable, *sys.argv[2:]], int(sys.argv[1]), 1))
"""


@dataclass
class Outcome:
    """How a crew ended: the launcher's exit code (negative: a signal), its notes, and what each rank told."""

    code: int
    notes: list[str]
    told: list[dict[str, Any]]
    errors: str
    pids: list[int]


@dataclass
class Together:
    """A crew under way in a folder of its own."""

    folder: Path
    size: int
    launcher: subprocess.Popen[str] = field(repr=False)

    def end(self) -> Outcome:
        output, errors = self.launcher.communicate(timeout=DEADLINE_SECONDS)
        notes = [json.loads(line)["text"] for line in output.splitlines()]
        paths = [self.folder / f"told{rank}.json" for rank in range(self.size)]
        told = [json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in paths]
        return Outcome(self.launcher.returncode, notes, told, errors, self.pids())

    def pids(self) -> list[int]:
        """Of the processes, by rank, as soon as all are there."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        paths = [self.folder / f"pid{rank}" for rank in range(self.size)]
        while not all(path.exists() and path.read_text() for path in paths):
            assert time.monotonic() < deadline and self.launcher.poll() in (None, 0), "the processes did not come"
            time.sleep(0.05)
        return [int(path.read_text()) for path in paths]


def start(folder: Path, lines: str, size: int = 2) -> Together:
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "script.py"
    script.write_text(FRAME.format(lines="".join(f"    {line}\n" for line in lines.splitlines())), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name != MEETING_VARIABLE}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(size), str(script), str(folder)], cwd=REPOSITORY, text=True,
        env={**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    return Together(folder, size, launcher)


def run(folder: Path, lines: str, size: int = 2) -> Outcome:
    return start(folder, lines, size).end()
