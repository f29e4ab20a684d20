"""What the host computes with: its GPUs, or its processor and the memory that it may use. No torch at import."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trainer import gpu, memory

PROCESSOR = Path("/proc/cpuinfo")
NATIVE_BF16 = (8, 0)  # the capability from which on torch.cuda.is_bf16_supported(including_emulation=False) says yes


@dataclass(frozen=True)
class Device:
    """What choices are made from; what is not known is False, 0 or None.

    `memory_bytes` is the memory of one device, the smallest where they differ, on a CPU what the process may use;
    `cores` the processor cores that it may use, also beside a GPU.
    """

    kind: str  # cuda or cpu
    name: str
    count: int
    memory_bytes: int
    bf16_native: bool
    capability: tuple[int, int] | None
    flash_attention: bool
    liger: bool
    cores: int


def found() -> Device:
    """The device as torch finds it; imports torch, and on a GPU the kernels that are installed."""
    import torch

    if not torch.cuda.is_available():
        return _processor()
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    capability = min((card.major, card.minor) for card in cards)
    return Device(
        kind="cuda",
        name=cards[0].name,
        count=len(cards),
        memory_bytes=min(card.total_memory for card in cards),
        bf16_native=bool(torch.cuda.is_bf16_supported(including_emulation=False)) and capability >= NATIVE_BF16,
        capability=capability,
        flash_attention=_has_flash_attention(),
        liger=_imports("liger_kernel.transformers"),
        cores=cores(),
    )


def told() -> Device:
    """The device as nvidia-smi tells it, for a host that has no torch yet.

    Of unlike cards the least counts, also where CUDA_VISIBLE_DEVICES hides it.
    """
    count = gpu.count(os.environ)
    cards = gpu.cards() if count else []
    if not cards:
        return _processor()
    capabilities = [capability for _, _, capability in cards if capability]
    capability = min(capabilities) if capabilities else None
    return Device(
        kind="cuda",
        name=cards[0][0],
        count=count,
        memory_bytes=min(mebibytes for _, mebibytes, _ in cards) * 2**20,
        bf16_native=capability is not None and capability >= NATIVE_BF16,
        capability=capability,
        flash_attention=_is_installed("flash-attn"),
        liger=_is_installed("liger-kernel"),
        cores=cores(),
    )


def _processor() -> Device:
    return Device(
        kind="cpu", name=_processor_name(), count=1, memory_bytes=(memory.limit_mib() or 0) * 2**20,
        bf16_native=False, capability=None, flash_attention=False, liger=False, cores=cores(),
    )  # fmt: skip


def _processor_name() -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if match := re.search(r"^model name\s*: (.+)$", PROCESSOR.read_text(encoding="utf-8"), re.MULTILINE):
            return match[1].strip()
    return platform.machine() or "cpu"


def cores() -> int:
    """How many cores this process may keep busy: its affinity, and the time that its cgroup grants.

    A container with a quota of two cores still sees, and may run on, all 128 of the machine; threads beyond the
    quota only make each other wait.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = memory.core_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def _has_flash_attention() -> bool:
    """Whether flash-attn itself is here and loads; a download of its kernels from a hub does not count."""
    from transformers.utils import is_flash_attn_2_available

    # Builds for another torch are common, and fail only when they are imported.
    return bool(is_flash_attn_2_available()) and _imports("flash_attn")


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception:  # not installed, or built for another torch or CUDA: whatever its loader raises
        return False
    return True


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
