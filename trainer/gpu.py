"""How busy the GPU is, as nvidia-smi tells it. No torch."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any


def gpu_load() -> dict[str, Any]:
    """GPU use (percent) and memory (MiB) as nvidia-smi tells them; empty where there is none."""
    command = shutil.which("nvidia-smi")
    if not command:
        return {}
    query = ["--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run([command, *query], capture_output=True, text=True, timeout=5, check=True)
        load, used, total = (int(value) for value in found.stdout.splitlines()[0].split(","))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return {}
    return {"gpu_percent": load, "gpu_memory_mib": used, "gpu_memory_total_mib": total}
