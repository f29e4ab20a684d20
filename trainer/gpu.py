"""How busy the GPU is, as nvidia-smi tells it. No torch."""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

WAIT_SECONDS = 5.0
SILENCE_SECONDS = 300.0  # a driver that does not answer is not asked again for so long
QUERY = ("--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")

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
