"""Which torch the trainer runs on: the provider's, or one to be installed, and whether driver and GPU can run it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Finding = dict[str, str]
Data = dict[str, Any]

# CUDA 13 dropped the architectures before Turing ("Deprecated Architectures" in NVIDIA's CUDA release notes).
OLDEST_CAPABILITY = {11: (3, 5), 12: (5, 0), 13: (7, 5)}
# Blackwell (10.0, 12.0) came with CUDA 12.8; an older build has no kernel for it.
BLACKWELL_CAPABILITY, BLACKWELL_CUDA = (10, 0), (12, 8)
INDEX_CUDA = re.compile(r"/cu(\d{2})(\d)/?$")


def gpu_host_torch(facts: Data, wanted: Data) -> Data:
    """Decide on the host's torch, and judge the one that will be used.

    ``wanted``: ``mode`` (auto, provider or install), ``requirement`` ("torch==2.13.0"; empty: no torch is needed),
    ``min`` (oldest version that the pinned packages run on), ``cuda`` (CUDA of the build to be installed),
    ``python_min``, ``python_path`` (interpreter to use, may be empty), ``driver_minimums`` (CUDA major version as
    text to the oldest driver).
    Returns ``{"source", "version", "cuda", "python", "why", "findings", "blocking"}``. ``source`` is provider (the
    venv sees the packages of the Python below it), install or none; ``python``: interpreter whose torch is taken, empty
    where it does not matter; ``why``: one line; ``findings`` close the driver gate, ``blocking`` close any gate.
    """
    pin = wanted["requirement"].partition("==")[2].strip()
    if not wanted["requirement"]:
        return _decision("none", "", "", "", "no torch is asked for", [], [])
    own = next((p for p in facts["pythons"] if p["origin"] == "venv" and p["torch"]), None)
    if wanted["mode"] == "install":
        return _install(facts, wanted, own, pin, "gpu_host_torch is install")
    if own and own["torch_place"] != "outside":
        if wanted["mode"] == "provider":
            return _refused(facts, wanted, f"the venv {facts['venv']['path']} has a torch of its own ({own['torch']})")
        return _install(facts, wanted, own, pin, "the venv has its own")
    candidates = [own] if own and facts["venv"]["stamp"] else _candidates(facts, wanted)
    reasons = []
    for python in candidates:
        reason = _unfit(python, facts, wanted, pin)
        if not reason:
            name, findings = (
                f"torch {python['torch']}",
                _run_findings(facts, wanted, python["torch"], python["torch_cuda"]),
            )
            why = f"{name} of {python['base'] or python['path']} is used: {wanted['min']} or newer, and fits the driver"
            if python["torch_sees"] == "yes":
                why += ", and sees the GPU"
            path = "" if python["origin"] == "venv" else python["path"]
            return _decision("provider", python["torch"], python["torch_cuda"], path, why, findings, [])
        reasons.append(f"{python['path']}: {reason}")
    none = "; ".join(reasons) or "no Python on the host has one"
    if wanted["mode"] == "provider":
        return _refused(facts, wanted, f"no torch of the provider is good enough ({none})")
    return _install(facts, wanted, None, pin, none)


def gpu_host_index_cuda(index_url: str, otherwise: str) -> str:
    """CUDA version of the builds at an index whose address ends in /cu126 ("12.6"); ``otherwise`` for others."""
    match = INDEX_CUDA.search(str(index_url).strip())
    return f"{match[1]}.{match[2]}" if match else otherwise


def _decision(
    source: str, version: str, cuda: str, python: str, why: str, findings: list[Finding], blocking: list[Finding]
) -> Data:
    return {
        "source": source, "version": version, "cuda": cuda, "python": python, "why": why,
        "findings": findings, "blocking": blocking,
    }  # fmt: skip


def _install(facts: Data, wanted: Data, own: Data | None, pin: str, reason: str) -> Data:
    """The pinned build; an installed one of that version stays, so it is judged by what it is."""
    kept = own is not None and own["torch_place"] != "outside" and own["torch"].split("+")[0] == pin
    version, cuda = (own["torch"], own["torch_cuda"]) if own and kept else (pin, str(wanted["cuda"]))
    findings = _run_findings(facts, wanted, version, cuda)
    return _decision(
        "install", version, cuda, "", f"torch {version} for CUDA {cuda} in the venv: {reason}", findings, []
    )


def _refused(facts: Data, wanted: Data, reason: str) -> Data:
    message = f"gpu_host_torch is provider, but {reason}"
    remedy = "set gpu_host_torch=auto, name another interpreter in gpu_host_python_path, or delete the venv"
    return _decision("none", "", "", "", reason, [], [_finding("error", "torch", message, remedy)])


def _finding(severity: str, check: str, message: str, remedy: str) -> Finding:
    return {"severity": severity, "check": check, "message": message, "remedy": remedy}


def _version(text: str) -> tuple[int, ...]:
    """Numbers of a release; what follows a plus (a local build's name) does not count."""
    return tuple(int(part) for part in re.findall(r"\d+", str(text).partition("+")[0]))


def _candidates(facts: Data, wanted: Data) -> list[Data]:
    """Pythons whose torch a venv can see: new enough, able to make a venv, and no venv themselves."""
    venv = next((p for p in facts["pythons"] if p["origin"] == "venv"), None)
    fit = [
        p
        for p in facts["pythons"]
        if p["torch"] and p["origin"] != "venv" and p["makes_venv"] and p["prefix"] == p["base"]
        if _version(p["version"]) >= _version(wanted["python_min"])
        if p["origin"] == "given" or not wanted["python_path"]
        # A venv that stands belongs to one Python for good.
        if venv is None or facts["venv"]["state"] != "venv" or p["base"] == venv["base"]
    ]
    return fit


def _unfit(python: Data, facts: Data, wanted: Data, pin: str) -> str:
    """Why this torch is not good enough; empty when it is."""
    name = f"torch {python['torch']}"
    if _version(python["torch"]) < _version(wanted["min"]):
        return f"{name} is older than {wanted['min']}"
    if _version(python["torch"])[:1] > _version(pin)[:1]:
        return f"{name} is of a later generation than the pinned {pin}"
    if python["torch_sees"] not in ("", "yes", "no"):
        return f"{name} cannot be imported ({python['torch_sees']})"
    if facts["gpu"]["tool"] != "works":
        return ""
    if python["torch_cuda"] == "none":
        return f"{name} is a build without CUDA"
    errors = [
        finding["message"]
        for finding in _run_findings(facts, wanted, python["torch"], python["torch_cuda"])
        if finding["severity"] == "error"
    ]
    if errors:
        return errors[0]
    return f"{name} does not see the GPU" if python["torch_sees"] == "no" else ""


def _run_findings(facts: Data, wanted: Data, version: str, cuda: str) -> list[Finding]:
    """Whether driver and GPU can run this torch."""
    if facts["gpu"]["tool"] != "works":
        return []
    torch = f"torch {version}"
    if cuda == "none":
        message = f"{torch} in the venv is a build without CUDA, so it cannot use the GPU"
        remedy = "remove the venv, and name an index with CUDA builds in gpu_host_torch_index_url"
        return [_finding("error", "torch", message, remedy)]
    return [
        *_driver_findings(facts["gpu"], torch, cuda, wanted["driver_minimums"]),
        *_capability_findings(facts["gpu"], torch, cuda),
    ]


def _driver_findings(gpu: Data, torch: str, cuda: str, minimums: dict[str, str]) -> list[Finding]:
    major = (_version(cuda) or (0,))[0]
    minimum = {int(key): value for key, value in minimums.items()}.get(major)
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
    offered = f" and offers CUDA {gpu['cuda']}" if gpu["cuda"] else ""
    message = f"driver {gpu['driver']} is too old{offered}: {needs}"
    return [_finding("error", "driver", message, _driver_remedy(gpu["driver"], minimums))]


def _driver_remedy(driver: str, minimums: dict[str, str]) -> str:
    able = [int(major) for major, minimum in minimums.items() if _version(driver) >= _version(minimum)]
    newer = "choose a machine or host image with a newer driver"
    if not able:
        return newer
    known = max(able)
    return (
        f"name an index with torch builds for CUDA {known} in gpu_host_torch_index_url (such an address often ends in "
        f"/cu{known} and one more digit; else say so in gpu_host_torch_cuda), or {newer}"
    )


def _capability_findings(gpu: Data, torch: str, cuda: str) -> list[Finding]:
    known = [d for d in gpu["devices"] if d["capability"]]
    if not known or not _version(cuda):
        return []
    device = max(known, key=lambda d: (d["memory_mib"] or 0, _version(d["capability"])))
    capability, version = _version(device["capability"]), _version(cuda)
    oldest = OLDEST_CAPABILITY.get(version[0], (0, 0))
    if capability >= oldest and (capability < BLACKWELL_CAPABILITY or version >= BLACKWELL_CUDA):
        return []
    age = "old" if capability < oldest else "new"
    name = f"{device['name']} (compute capability {device['capability']})"
    message = f"{name} is too {age} for {torch} with CUDA {cuda}"
    remedy = "choose another GPU, or name an index with torch builds that know this one in gpu_host_torch_index_url"
    return [_finding("error", "capability", message, remedy)]


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name of each filter to its function."""
        return {"gpu_host_torch": gpu_host_torch, "gpu_host_index_cuda": gpu_host_index_cuda}
