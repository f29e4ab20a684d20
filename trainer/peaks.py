"""The most memory that a stage took: of the GPU as torch counts it, of the process as the kernel does.

Torch is asked only where it is loaded already.
"""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def reset() -> None:
    """Begin to count anew. A kernel that does not allow it goes on with the process' peak until now."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5", encoding="ascii")  # the peak becomes what is resident now (proc(5))
    if torch := _cuda():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def measured() -> dict[str, int]:
    """Bytes: `peak_process_bytes` (resident) and `peak_memory_bytes`, that of the device the model is on.

    On a GPU the latter is what torch has reserved at most, on the fullest card and without CUDA's own context, and
    `peak_allocated_bytes` what of it was in use; without a GPU it is that of the process.
    """
    found = {}
    if resident := _resident():
        found = {"peak_memory_bytes": resident, "peak_process_bytes": resident}
    if torch := _cuda():
        cards = range(torch.cuda.device_count())
        found["peak_memory_bytes"] = max(int(torch.cuda.max_memory_reserved(card)) for card in cards)
        found["peak_allocated_bytes"] = max(int(torch.cuda.max_memory_allocated(card)) for card in cards)
    return found


def _resident() -> int:
    with contextlib.suppress(OSError):
        if match := re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE):
            return int(match[1]) * 1024
    return 0


def _cuda() -> Any:
    torch: Any = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None
