"""Which GPUs there are and how busy they are, as nvidia-smi tells it. No torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Any

WAIT_SECONDS = 5.0
SILENCE_SECONDS = 300.0  # a driver that does not answer is not asked again for so long
QUERY = ("--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
CARD_QUERIES = ("name,memory.total,compute_cap", "name,memory.total")  # drivers before 510 do not know the third

Card = tuple[str, int, "tuple[int, int] | None"]  # name, memory (MiB), compute capability where it is told
_LISTED = re.compile(r"^GPU (\d+): .*\(UUID: (GPU-[^)\s]+)\)")  # a line of `nvidia-smi -L`
_PART = re.compile(r"^\s+MIG ")  # below it: one part of a divided GPU

_hanging: list[tuple[float, subprocess.Popen[str]]] = []


def gpu_load() -> dict[str, Any]:
    """GPU use (percent) and memory (MiB) as nvidia-smi tells them; empty where there is none, or it hangs."""
    command = shutil.which("nvidia-smi")
    if not command or (_hanging and time.monotonic() - _hanging[-1][0] < SILENCE_SECONDS):
        return {}
    _hanging[:] = [item for item in _hanging if item[1].poll() is None]
    try:
        text = _answer([command, *QUERY])
        load, used, total = (int(value) for value in text.splitlines()[0].split(","))
    except (OSError, ValueError, IndexError):
        return {}
    return {"gpu_percent": load, "gpu_memory_mib": used, "gpu_memory_total_mib": total}


def count(environment: Mapping[str, str]) -> int:
    """How many GPUs CUDA shows to a process with this environment; 0 without an nvidia-smi that answers.

    CUDA_VISIBLE_DEVICES holds numbers or beginnings of UUIDs and is read up to the first that there is not; of
    GPUs that are divided a process is given one part (CUDA C++ Programming Guide, environment variables).
    """
    command = shutil.which("nvidia-smi")
    if not command:
        return 0
    try:
        lines = _answer([command, "-L"]).splitlines()
    except (OSError, ValueError):
        return 0
    there = [match.groups() for line in lines if (match := _LISTED.match(line))]
    divided = any(_PART.match(line) for line in lines)
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return min(len(there), 1) if divided else len(there)
    found: list[str] = []
    for word in (part.strip() for part in wanted.split(",")):
        if word.startswith("MIG-"):
            return min(len(there), 1)
        fitting = [
            uuid for number, uuid in there if word == number or (word.startswith("GPU-") and uuid.startswith(word))
        ]
        if len(fitting) != 1:
            break
        found += fitting
    return 0 if len(set(found)) < len(found) else min(len(found), 1) if divided else len(found)


def _answer(command: list[str]) -> str:
    """What a command prints, empty when it fails; one that hangs in the driver cannot even be killed."""
    asked = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        found, _ = asked.communicate(timeout=WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        asked.kill()
        _hanging.append((time.monotonic(), asked))
        return ""
    return found if asked.returncode == 0 else ""


def cards() -> list[Card]:
    """Every card as nvidia-smi tells it; empty where there is none, or it hangs."""
    command = shutil.which("nvidia-smi")
    for query in CARD_QUERIES if command else ():
        try:
            text = _answer([str(command), f"--query-gpu={query}", "--format=csv,noheader,nounits"])
            if text.strip():
                return [_card(line) for line in text.splitlines()]
        except (OSError, ValueError):
            continue
    return []


def _card(line: str) -> Card:
    name, memory, *more = (word.strip() for word in line.split(","))
    major, _, minor = more[0].partition(".") if more else ("", "", "")
    return name, int(memory), (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
