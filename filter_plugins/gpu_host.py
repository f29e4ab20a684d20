"""The answer of roles/gpu_host/files/probe.sh as plain data."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Answer = dict[str, list[str]]

LINE = re.compile(r"^gpu_host\|([a-z0-9_.]+)\|(.*)$")
# Text of a host ends up on terminals and in reports: printable, and no longer than this.
TEXT_LIMIT = 300
# A line about a Python names up to four paths.
PYTHON_TEXT_LIMIT = 2000
# cgroup v1 writes "no limit" as the largest page-aligned 64-bit number (pages of 4, 16 or 64 KiB).
NO_LIMIT_BYTES = 1 << 62
KIB_PER_MIB = 1024
MIB = 1 << 20
DATA_DISK = re.compile(r"disk\.(data\d+)\.listed")
DF_NUMBERS = re.compile(r"\s(-?\d+|-)\s+(-?\d+|-)\s+(-?\d+|-)\s+(-|\d+%)\s+(/.*)$")
CUDA_IN_HEADER = re.compile(r"CUDA(?: UMD)? Version:\s*(\d+\.\d+)")
MODULE_VERSION = re.compile(r"\s(\d{3}\.\d+(?:\.\d+)?)\s")
MIG_SLICE = re.compile(r"^\s*MIG\s+(\S*?\.?(\d+)gb\S*)\s+Device", re.IGNORECASE)
LISTED_GPU = re.compile(r"^GPU (\d+):")


def gpu_host_facts(probe_stdout: str) -> dict[str, Any]:
    """Parse the probe's output; lines that are not its own (banners, terminal noise) are ignored.

    Returns ``{"complete": bool, "scratch": path or "", "system": {...}, "gpu": {...},
    "memory": {...}, "disks": {"project_root": {...}, "venv": {...}, "system": {...}}, "data_disks": [...],
    "provider": {"markers": [paths], "variables": [names]}, "venv": {...}, "pythons": [...],
    "failed_pythons": [...]}``, memory and disk sizes in MiB, None where the host did not say.
    Never raises on what a host printed.
    """
    answer = _answer(probe_stdout)
    return {
        "complete": _one(answer, "begin") == "1" and _one(answer, "end") == "1",
        "scratch": _one(answer, "scratch"),
        "system": _system(answer),
        "gpu": _gpu(answer),
        "memory": _memory(answer),
        "disks": {name: _disk(answer, name) for name in ("project_root", "venv", "system")},
        "data_disks": [
            {**_disk(answer, match[1]), "listed": _one(answer, key)}
            for key in answer
            if (match := DATA_DISK.fullmatch(key))
        ],
        "provider": {
            "markers": answer.get("provider.marker", []),
            "variables": answer.get("provider.variable", []),
        },
        "venv": {
            **{field: _one(answer, f"venv.{field}") for field in ("path", "state", "stamp")},
            "system_site": _one(answer, "venv.system_site") == "yes",
        },
        "pythons": [_python(line) for line in answer.get("python", [])],
        "failed_pythons": [_failed_python(line) for line in answer.get("python.failed", [])],
    }


def _answer(stdout: str) -> Answer:
    answer: Answer = {}
    for raw_line in str(stdout).replace("\r", "\n").split("\n"):
        match = LINE.match(raw_line)
        if match and (match[1] == "begin" or "begin" in answer) and "end" not in answer:
            text = "".join(c if c.isprintable() or c == "\t" else "?" for c in match[2])
            limit = PYTHON_TEXT_LIMIT if match[1] == "python" else TEXT_LIMIT
            answer.setdefault(match[1], []).append(text[:limit].strip(" "))
    return answer


def _one(answer: Answer, key: str) -> str:
    return answer.get(key, [""])[0]


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,20}", text.strip()) else None


def _system(answer: Answer) -> dict[str, Any]:
    return {
        "kernel": _one(answer, "system.kernel"),
        "machine": _one(answer, "system.machine"),
        "os": _one(answer, "system.os"),
        "container": _one(answer, "system.container") == "yes",
        "cpus": _cpus(answer),
    }


def _cpus(answer: Answer) -> float | None:
    """Processors this process may use: nproc, or less by the quota of cgroup v2 or v1."""
    counts = [float(n) for n in [_number(_one(answer, "system.cpus"))] if n]
    for line in answer.get("cpu.max", []):
        quota, _, period = line.partition(" ")
        if (_number(quota) or 0) > 0 and (_number(period) or 0) > 0:
            counts.append(int(quota) / int(period))
    # v1's period is 100000 us unless somebody changed it.
    counts += [q / 100_000 for q in map(_number, answer.get("cpu.quota", [])) if q]
    return min(counts, default=None)


def _memory(answer: Answer) -> dict[str, Any]:
    """The smallest limit above this process, or the machine's memory where there is none."""
    total_kib = _number(_one(answer, "memory.total").removesuffix("kB"))
    available_kib = _number(_one(answer, "memory.available").removesuffix("kB"))
    total = None if total_kib is None else total_kib // KIB_PER_MIB
    limits = [n for n in map(_number, answer.get("memory.limit", [])) if n is not None]
    limit = min((n // MIB for n in limits if n < NO_LIMIT_BYTES), default=None)
    limited = limit is not None and (total is None or limit < total)
    return {
        "usable_mib": limit if limited else total,
        "limited_by": "cgroup" if limited else "machine",
        "total_mib": total,
        "available_mib": None if available_kib is None else available_kib // KIB_PER_MIB,
    }


def _disk(answer: Answer, name: str) -> dict[str, Any]:
    blocks = _df(answer.get(f"disk.{name}.blocks", []))
    inodes = _df(answer.get(f"disk.{name}.inodes", []))
    # btrfs and some network file systems make inodes as needed and report none at all.
    counted = inodes is not None and (inodes[0] or 0) > 0
    return {
        "path": _one(answer, f"disk.{name}.asked"),
        "existing": _one(answer, f"disk.{name}.existing"),
        "writable": _one(answer, f"disk.{name}.writable") == "yes",
        "mount": blocks[2] if blocks else "",
        "free_mib": blocks[1] // KIB_PER_MIB if blocks and blocks[1] is not None else None,
        "free_inodes": inodes[1] if inodes and counted else None,
    }


def _df(lines: list[str]) -> tuple[int | None, int | None, str] | None:
    """(total, free, mount point) of one file system; old df breaks the line after a long device."""
    match = DF_NUMBERS.search(" ".join(lines[1:]))
    if match is None:
        return None
    total, free = (None if match[n] == "-" else max(0, int(match[n])) for n in (1, 3))
    return total, free, match[5]


def _python(line: str) -> dict[str, Any]:
    """One answer; ``prefix`` differs from ``base`` inside a venv, ``torch_place`` is own or outside of it.

    ``torch_sees`` is "" (not asked), "yes", "no" (it works and sees no GPU) or why it does not work.
    """
    fields = (line.split("\t") + [""] * 11)[:11]
    origin, path, version, venv, pip, torch, cuda, prefix, base, place, sees = fields
    return {
        "origin": origin,
        "path": path,
        "version": version,
        "makes_venv": venv == "yes",
        "has_pip": pip == "yes",
        "torch": torch,
        "torch_cuda": cuda,
        "torch_place": place,
        "torch_sees": sees,
        "prefix": prefix,
        "base": base,
    }


def _failed_python(line: str) -> dict[str, str]:
    origin, path, status, reason = (line.split("\t") + [""] * 4)[:4]
    return {"origin": origin, "path": path, "status": status, "reason": reason}


def _gpu(answer: Answer) -> dict[str, Any]:
    """``tool``: absent, works, fails or hangs; ``lost``: what nvidia-smi said instead of a GPU."""
    status = _one(answer, "smi.query.rc")
    output = answer.get("smi.query.out", [])
    devices = [device for line in output if (device := _device(line)) is not None]
    # "WARNING: infoROM is corrupted at gpu …" comes along with good rows.
    lost = [t for t in output if t and _device(t) is None and not t.startswith("WARNING")]
    _add_capabilities(devices, answer)
    _add_slices(devices, answer)
    module = MODULE_VERSION.search(f" {_one(answer, 'gpu.module')} ")
    cuda = CUDA_IN_HEADER.search("\n".join(answer.get("smi.header.out", [])))
    if not _one(answer, "gpu.smi"):
        tool = "absent"
    elif status == "timeout":
        tool = "hangs"
    else:
        tool = "works" if status == "0" and devices else "fails"
    return {
        "tool": tool,
        "status": status,
        "message": " ".join([*lost, *answer.get("smi.query.err", [])])[:TEXT_LIMIT],
        "module": module[1] if module else "",
        "driver": devices[0]["driver"] if devices else "",
        "cuda": cuda[1] if cuda else "",
        "devices": devices,
        "lost": lost,
    }


def _device(line: str) -> dict[str, Any] | None:
    """One row of the query: index, name, driver, total and free MiB, MIG mode.

    Fields may read ``[N/A]``, ``[Not Supported]``, ``[Unknown Error]`` or ``ERR!``.
    """
    fields = [field.strip() for field in line.split(",")]
    if len(fields) < 6 or _number(fields[0]) is None:
        return None
    driver, total, free, mig = fields[-4:]
    sick = [f for f in fields[-4:] if re.search(r"ERR!|Unknown Error|GPU is lost|reset", f)]
    return {
        "index": int(fields[0]),
        "name": ", ".join(fields[1:-4]),
        "driver": driver if re.fullmatch(r"\d+(\.\d+)+", driver) else "",
        "memory_mib": _number(total),
        "memory_free_mib": _number(free),
        "capability": "",
        "mig": mig == "Enabled",
        "slices": [],
        "sick": ", ".join(sick),
    }


def _add_capabilities(devices: list[dict[str, Any]], answer: Answer) -> None:
    known = {}
    for line in answer.get("smi.capability.out", []):
        index, _, capability = line.partition(",")
        if re.fullmatch(r"\s*\d+\.\d+\s*", capability):
            known[_number(index)] = capability.strip()
    for device in devices:
        device["capability"] = known.get(device["index"], "")


def _add_slices(devices: list[dict[str, Any]], answer: Answer) -> None:
    slices: dict[int, list[dict[str, Any]]] = {}
    current = -1
    for line in answer.get("smi.list.out", []):
        if listed := LISTED_GPU.match(line):
            current = int(listed[1])
        elif part := MIG_SLICE.match(line):
            slices.setdefault(current, []).append({"profile": part[1], "memory_gb": int(part[2])})
    for device in devices:
        device["slices"] = slices.get(device["index"], [])


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name of each filter to its function."""
        return {"gpu_host_facts": gpu_host_facts}
