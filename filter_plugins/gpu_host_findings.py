"""What makes a host's GPU, driver, memory and disk unfit for training."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Finding = dict[str, str]
Data = dict[str, Any]

# Oldest Linux driver per CUDA major version: "CUDA Toolkit and Minimum Required Driver Version for
# CUDA Minor Version Compatibility" in NVIDIA's CUDA release notes,
# https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/
DRIVER_MINIMUMS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
# CUDA 13 dropped the architectures before Turing (same release notes, "Deprecated Architectures").
OLDEST_CAPABILITY = {11: (3, 5), 12: (5, 0), 13: (7, 5)}
# Blackwell (10.0, 12.0) came with CUDA 12.8; an older build has no kernel for it.
BLACKWELL_CAPABILITY, BLACKWELL_CUDA = (10, 0), (12, 8)

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
    """Judge the host's GPU, driver and sizes; all findings at once, errors before warnings.

    ``facts`` comes from gpu_host_facts. ``requirements``: ``vram_mib``, ``memory_mib``,
    ``disk_mib``, ``inodes`` (numbers, or text that is one), ``torch_cuda`` (CUDA of the torch to be
    installed), ``torch_pin`` (its version, may be empty), ``install`` (True while the venv is to be
    filled).
    A finding is ``{"severity": "error" | "warning", "check", "message", "remedy"}``.
    An answer that is cut off is not judged. Raises ValueError on a requirement that is no number.
    """
    if not facts["complete"] or not facts["scratch"]:
        return []
    findings = [
        *_tool_findings(facts["gpu"]),
        *_device_findings(facts["gpu"]),
        *_torch_findings(facts, requirements),
        *_vram_findings(facts["gpu"], int(requirements["vram_mib"])),
        *_memory_findings(facts["memory"], int(requirements["memory_mib"])),
        *_disk_findings(facts["disks"], requirements),
    ]
    return sorted(findings, key=lambda finding: finding["severity"] != "error")


def _finding(severity: str, check: str, message: str, remedy: str) -> Finding:
    return {"severity": severity, "check": check, "message": message, "remedy": remedy}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


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


def _torch_findings(facts: Data, requirements: Data) -> list[Finding]:
    """Whether driver and GPU can run the torch that the venv has or will have."""
    if facts["gpu"]["tool"] != "works":
        return []
    torch, cuda = _torch(facts, requirements)
    if cuda == "none":
        message = f"{torch} in the venv is a build without CUDA, so it cannot use the GPU"
        remedy = "remove the venv, and pass an index with CUDA builds in gpu_host_pip_arguments"
        return [_finding("error", "torch", message, remedy)]
    return [
        *_driver_findings(facts["gpu"], torch, cuda),
        *_capability_findings(facts["gpu"], torch, cuda),
    ]


def _torch(facts: Data, requirements: Data) -> tuple[str, str]:
    """(name, CUDA version): the installed torch where it stays, else the one to be installed."""
    pin = requirements.get("torch_pin", "")
    for python in facts["pythons"]:
        installed = python["torch"] if python["origin"] == "venv" else ""
        if installed and (not requirements["install"] or installed.split("+")[0] == pin):
            return f"torch {installed}", python["torch_cuda"]
    return f"torch {pin}".strip(), str(requirements["torch_cuda"])


def _driver_findings(gpu: Data, torch: str, cuda: str) -> list[Finding]:
    major = (_version(cuda) or (0,))[0]
    minimum = DRIVER_MINIMUMS.get(major)
    if not gpu["driver"] or minimum is None:
        driver = gpu["driver"] or "unknown"
        message = f"driver {driver} cannot be judged for {torch} with CUDA {cuda}"
        remedy = "set gpu_host_torch_cuda to the CUDA version of the torch in use, such as 13.0"
        return [_finding("warning", "driver", message, remedy)]
    if _version(gpu["driver"]) >= _version(minimum):
        return []
    needs = f"{torch} with CUDA {cuda} needs {minimum} or newer"
    if gpu["cuda"] and _version(gpu["cuda"])[0] >= major:
        # NVIDIA's forward compatibility package brings a newer libcuda for an older kernel module.
        message = f"driver {gpu['driver']} is old ({needs}), but it offers CUDA {gpu['cuda']}"
        remedy = "nothing to do on data centre GPUs; on others choose a machine with a newer driver"
        return [_finding("warning", "driver", message, remedy)]
    message = f"driver {gpu['driver']} is too old: {needs}"
    remedy = "choose a machine or host image with a newer driver, or a torch for an older CUDA"
    return [_finding("error", "driver", message, remedy)]


def _capability_findings(gpu: Data, torch: str, cuda: str) -> list[Finding]:
    known = [d for d in gpu["devices"] if d["capability"]]
    if not known or not _version(cuda):
        return []
    device = max(known, key=lambda d: (_memory_of(d) or 0, _version(d["capability"])))
    capability, version = _version(device["capability"]), _version(cuda)
    oldest = OLDEST_CAPABILITY.get(version[0], (0, 0))
    if capability >= oldest and (capability < BLACKWELL_CAPABILITY or version >= BLACKWELL_CUDA):
        return []
    age = "old" if capability < oldest else "new"
    name = f"{device['name']} (compute capability {device['capability']})"
    message = f"{name} is too {age} for {torch} with CUDA {cuda}"
    remedy = "choose another GPU, or a torch for a CUDA version that knows this one"
    return [_finding("error", "capability", message, remedy)]


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
