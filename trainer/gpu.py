"""How busy the GPU is, as nvidia-smi tells it. No torch."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

WAIT_SECONDS = 5.0
SILENCE_SECONDS = 300.0  # a driver that does not answer is not asked again for so long
QUERY = ("--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
CARD_QUERIES = ("name,memory.total,compute_cap", "name,memory.total")  # drivers before 510 do not know the third

Card = tuple[str, int, "tuple[int, int] | None"]  # name, memory (MiB), compute capability where it is told

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
