"""Whether the gate lets a host pass, and the host in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Finding = dict[str, str]
Data = dict[str, Any]


def gpu_host_verdict(findings: list[Finding], blocking: list[Finding], gate: str) -> Data:
    """Decide with the gate's word (strict, warn or off), errors first; ``blocking`` findings close any gate.

    Returns ``{"closed": bool, "message": sentence, "lines": [one per finding],
    "let_through": [error sentences that the gate passed]}``.
    """
    judged = [] if gate == "off" else sorted(findings, key=lambda finding: finding["severity"] != "error")
    errors = [f for f in judged if f["severity"] == "error"]
    closed = bool(blocking) or (gate == "strict" and bool(errors))
    shown = [*blocking, *judged]
    stopping = [*blocking, *errors]
    return {
        "closed": closed,
        "message": "the host is not fit for training: " + "; ".join(f["message"] for f in stopping),
        "lines": [f"{f['severity']}: {f['message']} -> {f['remedy']}" for f in shown],
        "let_through": [] if closed else [f["message"] for f in errors],
    }


def gpu_host_summary(facts: Data) -> str:
    """One line that names the host: GPUs, driver, memory, disk, system."""
    gpu, memory, disk = facts["gpu"], facts["memory"], facts["disks"]["project_root"]
    devices = [f"{d['name']} {_size(d['memory_mib'])}" for d in gpu["devices"]]
    driver = f"driver {gpu['driver']} (CUDA {gpu['cuda'] or 'unknown'})" if gpu["driver"] else ""
    parts = [
        f"{len(devices)} GPU: " + ", ".join(devices) if devices else "no GPU",
        driver,
        f"memory {_size(memory['usable_mib'])} (limit of the {memory['limited_by']})",
        f"{_size(disk['free_mib'])} free at {disk['existing']}",
        facts["system"]["os"] or facts["system"]["kernel"],
    ]
    return "; ".join(part for part in parts if part)


def _size(mib: int | None) -> str:
    return "of unknown size" if mib is None else f"{mib / 1024:.1f} GiB"


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name of each filter to its function."""
        return {"gpu_host_verdict": gpu_host_verdict, "gpu_host_summary": gpu_host_summary}
