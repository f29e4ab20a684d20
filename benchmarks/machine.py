"""What the benchmarks share: what a table was measured on (one line of Markdown), the base, and quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def described() -> str:
    """Machine, versions, date and commit; a changed working tree is named."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    load = f"load {os.getloadavg()[0]:.1f} when it began"
    parts = [
        f"{_cores()} cores",
        f"{_memory_gib():.0f} GiB",
        _processor(),
        _gpu(),
        load,
        f"Python {_python()}",
        libraries,
    ]
    return f"Machine: {', '.join(parts)}; {date.today().isoformat()}; commit {commit()}."


def commit() -> str:
    """The short commit of this checkout, with a word when files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", REPOSITORY, *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "trainer", "benchmarks", "data")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + (" with changes" if changed else "")


def embedded_base() -> Path:
    """The embedded base, built once and kept beside the environment for every benchmark."""
    from trainer.base import build

    return build(REPOSITORY / ".stagegate" / "bench" / "models", REPOSITORY / "data" / "corpus", say=lambda text: None)


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """The loops' own words go to a file."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with (folder / "output.log").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        warnings.simplefilter("ignore")
        yield


def _python() -> str:
    return platform.python_version()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "no GPU"
    return "; ".join(" driver ".join(line.split(", ")) for line in done.stdout.splitlines() if line) or "no GPU"
