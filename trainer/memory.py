"""What the kernel tells of memory and cores: the limits, and how often it killed somebody for memory. No torch.

A container's limit is that of its cgroup; version 2 counts in `memory.events`, version 1 in `memory.oom_control`.
Inside a container the path in /proc/self/cgroup may be the host's, so the mount point itself is looked at, too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # version 1 writes a number near 2**63 for `no limit`


def _folders() -> Iterator[tuple[Path, str, str]]:
    """(folder, file with the count of kills, file with the limit), those of this process before the mount point."""
    lines = _text(OWN_CGROUP).splitlines()
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(","):
            for folder in (CGROUPS / "memory" / path.lstrip("/"), CGROUPS / "memory"):
                yield folder, "memory.oom_control", "memory.limit_in_bytes"
        elif not controllers:
            for mount in (CGROUPS, CGROUPS / "unified"):
                for folder in (mount / path.lstrip("/"), mount):
                    yield folder, "memory.events", "memory.max"


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def kills() -> int | None:
    """How many processes of our cgroup the kernel has killed for memory; None where it does not tell."""
    for folder, counted, _ in _folders():
        if match := re.search(r"^oom_kill (\d+)$", _text(folder / counted), re.MULTILINE):
            return int(match[1])
    return None


def limit_mib() -> int | None:
    """The memory (MiB) that we may use: the cgroup's limit, else the machine's; None where neither is told."""
    limits = [_text(folder / limit).strip() for folder, _, limit in _folders()]
    bytes_ = [int(text) for text in limits if text.isdigit() and int(text) < UNLIMITED]
    if match := re.search(r"^MemTotal: +(\d+) kB$", _text(Path("/proc/meminfo")), re.MULTILINE):
        bytes_.append(int(match[1]) * 1024)
    return min(bytes_) // 2**20 if bytes_ else None


def core_quota() -> float | None:
    """The processor time (in cores) that our cgroup grants, the least that is told; None where there is no limit."""
    quotas: list[float] = []
    for line in _text(OWN_CGROUP).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        own = path.lstrip("/")
        if "cpu" in controllers.split(","):  # version 1; its folder may be named for cpu and cpuacct together
            for mount in (CGROUPS / "cpu", CGROUPS / controllers):
                for folder in (mount / own, mount):
                    quotas += _quota(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))
        elif not controllers:
            for folder in (CGROUPS / own, CGROUPS, CGROUPS / "unified" / own):
                quotas += _quota(*[*_text(folder / "cpu.max").split(), "", ""][:2])
    return min(quotas, default=None)


def _quota(granted: str, period: str) -> list[float]:
    """[cores] of a quota and its period (microseconds); `max` and -1 are no limit."""
    if granted.strip().isdecimal() and period.strip().isdecimal() and int(granted) > 0 and int(period) > 0:
        return [int(granted) / int(period)]
    return []
