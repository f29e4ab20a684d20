"""What makes a host's GPU, memory and disk unfit for training; gpu_host_torch.py judges the driver."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Finding = dict[str, str]
Data = dict[str, Any]

RESTART = "restart the instance from the provider's panel (on your own machine: reboot it)"
# What a sick driver prints, what it means, what helps. The driver belongs to the machine's owner.
SIGNS = (
    (
        r"Driver/library version mismatch",
        "the driver was updated under a running kernel module ({module})",
        f"{RESTART}, so that module and library are of one version",
    ),
    (
        r"communicate with the NVIDIA driver|Driver Not Loaded",
        "the NVIDIA driver is not loaded",
        f"{RESTART}; if it does not help, the driver does not fit the kernel: rent another machine",
    ),
    (
        r"No devices were found",
        "the driver runs but sees no GPU",
        "start the instance with a GPU (some providers have a mode without), or rent another one",
    ),
    (
        r"Insufficient Permissions",
        "this user may not use the GPU",
        "log in as root, or let the machine's owner give this user access to /dev/nvidia*",
    ),
    (
        r"GPU is lost|determine the device handle|fallen off the bus|requires reset",
        "a GPU is lost: it does not answer on its bus",
        f"{RESTART}; if it comes again, the hardware is faulty: rent another machine",
    ),
    (
        r"libnvidia-ml",
        "the driver's library is not in the container",
        "start the container with the NVIDIA runtime (--gpus all), or choose a GPU image",
    ),
    (
        r"NVML: Unknown Error",
        "the container has lost its access to the GPU",
        "restart the container; a reload of the host's service manager takes the GPU away from it",
    ),
)


def gpu_host_findings(facts: Data, requirements: Data) -> list[Finding]:
    """Judge the host's GPU and sizes; all findings at once.

    ``facts`` comes from gpu_host_facts. ``requirements``: ``vram_mib``, ``memory_mib``,
    ``disk_mib``, ``inodes`` (numbers, or text that is one), ``install`` (True while the venv is to be filled).
    A finding is ``{"severity": "error" | "warning", "check", "message", "remedy"}``.
    An answer that is cut off is not judged. Raises ValueError on a requirement that is no number.
    """
    if not facts["complete"] or not facts["scratch"]:
        return []
    return [
        *_tool_findings(facts["gpu"]),
        *_device_findings(facts["gpu"]),
        *_vram_findings(facts["gpu"], int(requirements["vram_mib"])),
        *_memory_findings(facts["memory"], int(requirements["memory_mib"])),
        *_disk_findings(facts["disks"], requirements),
    ]


def _finding(severity: str, check: str, message: str, remedy: str) -> Finding:
    return {"severity": severity, "check": check, "message": message, "remedy": remedy}


def _tool_findings(gpu: Data) -> list[Finding]:
    if gpu["tool"] == "works" and not gpu["lost"]:
        return []
    if gpu["tool"] == "absent":
        has_module = f" although driver {gpu['module']} is loaded" if gpu["module"] else ""
        message = f"nvidia-smi is not there{has_module}: this host has no usable NVIDIA driver"
        remedy = "rent a machine or image with an NVIDIA GPU (gpu_host_gate=off trains without one)"
        return [_finding("error", "nvidia_smi", message, remedy)]
    if gpu["tool"] == "hangs":
        message = "nvidia-smi gives no answer: the driver hangs"
        return [_finding("error", "nvidia_smi", message, f"{RESTART}, or rent another machine")]
    for pattern, meaning, remedy in SIGNS:
        if re.search(pattern, gpu["message"], re.IGNORECASE):
            text = meaning.format(module=f"version {gpu['module'] or 'unknown'}")
            message = f"nvidia-smi fails: {text} ({gpu['message']!r})"
            return [_finding("error", "nvidia_smi", message, remedy)]
    message = f"nvidia-smi fails with status {gpu['status']}: {gpu['message'] or 'no output'!r}"
    return [_finding("error", "nvidia_smi", message, f"{RESTART}, or rent another machine")]


def _device_findings(gpu: Data) -> list[Finding]:
    findings = []
    for device in gpu["devices"]:
        name = f"GPU {device['index']} ({device['name']})"
        if device["sick"]:
            message = f"{name} reports {device['sick']} where a value belongs"
            findings.append(_finding("error", "gpu", message, RESTART))
        if device["mig"] and not device["slices"]:
            message = f"{name} is in MIG mode and has no slice to train on"
            remedy = "let the machine's owner make a slice or switch MIG off (nvidia-smi -mig 0)"
            findings.append(_finding("error", "mig", message, remedy))
    return findings


def _memory_of(device: Data) -> int | None:
    """MiB that one process gets: of the largest slice in MIG mode, else of the GPU."""
    if device["mig"]:
        return max((part["memory_gb"] * 1024 for part in device["slices"]), default=None)
    size: int | None = device["memory_mib"]
    return size


def _vram_findings(gpu: Data, minimum_mib: int) -> list[Finding]:
    usable = [d for d in gpu["devices"] if not d["mig"] or d["slices"]]
    sizes = [size for d in usable if (size := _memory_of(d)) is not None]
    if not usable:
        return []
    every = ", ".join(f"GPU {d['index']} {_memory_of(d) or '?'} MiB" for d in usable)
    remedy = f"choose a GPU with {minimum_mib} MiB or more, or lower gpu_host_vram_min_mib"
    if not sizes:
        message = f"GPU memory is not reported ({every}): such GPUs share the machine's memory"
        remedy = "nothing to do if the machine's memory is enough"
        return [_finding("warning", "vram", message, remedy)]
    if max(sizes) < minimum_mib:
        message = f"GPU memory is {max(sizes)} MiB at most, less than {minimum_mib} MiB ({every})"
        return [_finding("error", "vram", message, remedy)]
    free = [d["memory_free_mib"] for d in usable if not d["mig"]]
    if free and None not in free and max(free) < minimum_mib:
        message = f"only {max(free)} MiB of GPU memory are free, less than {minimum_mib} MiB"
        remedy = "end the other process on the GPU (nvidia-smi lists it), or wait for it"
        return [_finding("warning", "vram", message, remedy)]
    return []


def _memory_findings(memory: Data, minimum_mib: int) -> list[Finding]:
    usable = memory["usable_mib"]
    remedy = f"rent {minimum_mib} MiB or more, or lower gpu_host_memory_min_mib"
    if usable is None:
        message = "the host does not say how much memory it has"
        return [_finding("warning", "memory", message, "look with: free -m")]
    if usable >= minimum_mib:
        return []
    limit = f"memory is {usable} MiB by the limit of the {memory['limited_by']}"
    return [_finding("error", "memory", f"{limit}, less than {minimum_mib} MiB", remedy)]


def _disk_findings(disks: Data, requirements: Data) -> list[Finding]:
    """Judge each file system once; the venv's only while something is to be installed there."""
    minimum_mib, inodes = int(requirements["disk_mib"]), int(requirements["inodes"])
    places = [("project root", disks["project_root"])]
    if requirements["install"] and disks["venv"]["mount"] != disks["project_root"]["mount"]:
        places.append(("venv", disks["venv"]))
    findings = []
    for what, disk in places:
        where = f"for the {what} {disk['path']} (on {disk['mount'] or disk['existing']})"
        if not disk["writable"]:
            message = f"{disk['existing']} cannot be written, {where}"
            remedy = "choose another project_root or gpu_host_venv_dir, or another user"
            findings.append(_finding("error", "disk", message, remedy))
        if disk["free_mib"] is None:
            message, remedy = f"free disk space is unknown {where}", "look with: df -h"
            findings.append(_finding("warning", "disk", message, remedy))
        elif disk["free_mib"] < minimum_mib:
            message = f"{disk['free_mib']} MiB are free {where}, less than {minimum_mib} MiB"
            remedy = "use a larger data disk, delete old files, or lower gpu_host_disk_min_mib"
            findings.append(_finding("error", "disk", message, remedy))
        if disk["free_inodes"] is not None and disk["free_inodes"] < inodes:
            message = f"{disk['free_inodes']} inodes are free {where}, less than {inodes}"
            remedy = "delete folders with many small files (package caches), or use another disk"
            findings.append(_finding("error", "inodes", message, remedy))
    return findings


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name of each filter to its function."""
        return {"gpu_host_findings": gpu_host_findings}
