"""Which Python makes the trainer's venv, and whether anything is left to install in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

Data = dict[str, Any]
Finding = dict[str, str]


def gpu_host_venv(facts: Data, wanted: Data) -> Data:
    """Compare the venv on the host with what it should hold.

    ``wanted``: ``python_min`` ("3.11"), ``python_path`` (interpreter to use, may be empty),
    ``contents`` (texts of the requirement and constraint files), ``arguments`` (for pip), ``torch`` (the decision of
    gpu_host_torch), ``torch_install`` (requirement and index of a torch that is to be installed).
    Returns ``{"action", "python", "clear", "system_site", "with_pip", "stamp", "findings"}``. ``action`` is none,
    install (the venv is there), create (it is not, only half, or sees the wrong packages) or stop (see findings).
    ``clear``: its interpreter is gone, so that what is in it can be thrown away. ``system_site``: it sees the packages
    of the Python below it. ``with_pip``: it gets a pip of its own; with that may come an old setuptools, which would
    hide the provider's, so it does not where it sees the provider's pip.
    """
    python = _choose(facts, wanted)
    findings = [*_findings(facts, wanted, python), *wanted["torch"]["blocking"]]
    stamp = _stamp(wanted, python["version"]) if python else ""
    venv, system_site = facts["venv"], wanted["torch"]["source"] == "provider"
    if findings or python is None:
        action = "stop"
    elif venv["state"] != "venv" or not python["has_pip"] or (system_site and not venv["system_site"]):
        action = "create"
    else:
        installed = not (wanted["contents"] or wanted["torch_install"]) or venv["stamp"] == stamp
        action = "none" if installed else "install"
    return {
        "action": action,
        "python": python["path"] if python else "",
        "clear": venv["state"] == "broken",
        "system_site": system_site or venv["system_site"],
        "with_pip": not (system_site and python and python["has_pip"]),
        "stamp": stamp,
        "findings": findings,
    }


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(text)))


def _usable(python: Data, wanted: Data) -> bool:
    return _version(python["version"]) >= _version(wanted["python_min"])


def _choose(facts: Data, wanted: Data) -> Data | None:
    """The venv's own Python, else that of the provider's torch, else the first that is fit to make a venv."""
    own = [p for p in facts["pythons"] if p["origin"] == "venv"]
    if facts["venv"]["state"] == "venv":
        return own[0] if own and _usable(own[0], wanted) else None
    asked = [
        p for p in facts["pythons"] if p["origin"] != "venv" and (p["origin"] == "given" or not wanted["python_path"])
    ]
    fit = [p for p in asked if _usable(p, wanted) and p["makes_venv"]]
    provider = [p for p in fit if p["path"] == wanted["torch"]["python"]]
    return next(iter([*provider, *fit]), None)


def _findings(facts: Data, wanted: Data, python: Data | None) -> list[Finding]:
    if not facts["complete"]:
        message = "the host's answer to the probe is missing or cut off"
        remedy = "look at the login shell with: ansible all -m ansible.builtin.raw -a id"
        return [_finding("probe", message, remedy)]
    if not facts["scratch"]:
        message = "no temporary folder on the host can be written (/dev/shm, /tmp, /var/tmp)"
        return [_finding("probe", message, "make room: look with df -h and df -i")]
    venv = facts["venv"]
    if venv["state"] == "other":
        message = f"{venv['path']} is there and is no Python venv, so it is left alone"
        remedy = "set gpu_host_venv_dir to another folder, or move this one away"
        return [_finding("venv", message, remedy)]
    if python is None:
        return [_no_python(facts, wanted)]
    return []


def _no_python(facts: Data, wanted: Data) -> Finding:
    minimum, venv = wanted["python_min"], facts["venv"]
    failed = facts["failed_pythons"]
    if venv["state"] == "venv":
        own = [p["version"] for p in facts["pythons"] if p["origin"] == "venv"]
        why = ["status {status} {reason}".format(**p) for p in failed if p["origin"] == "venv"]
        says = f"has Python {own[0]}, older than {minimum}" if own else f"is sick: {', '.join(why)}"
        remedy = "delete that folder, or set gpu_host_venv_dir to another"
        return _finding("python", f"the venv {venv['path']} {says}", remedy)
    found = [f"{p['path']} {p['version']}{'' if p['makes_venv'] else ' without venv'}" for p in facts["pythons"]]
    found += [f"{p['path']} (fails with status {p['status']})" for p in failed]
    given = wanted["python_path"]
    asked = f"gpu_host_python_path {given}" if given else "a Python on the host"
    message = f"{asked} must be {minimum} or newer (transformers and trl demand it) with the venv module; found: "
    remedy = (
        "install one (Miniconda, pyenv, or the system's python3 and python3-venv) "
        "and name it in gpu_host_python_path if it lies elsewhere"
    )
    return _finding("python", message + (", ".join(found) or "none"), remedy)


def _finding(check: str, message: str, remedy: str) -> Finding:
    return {"severity": "error", "check": check, "message": message, "remedy": remedy}


def _stamp(wanted: Data, version: str) -> str:
    """SHA-256 over all that decides what pip installs: files, arguments, whose torch, Python's minor version."""
    digest = hashlib.sha256()
    minor, torch = ".".join(version.split(".")[:2]), wanted["torch"]
    taken = [torch["version"], torch["cuda"]] if torch["source"] == "provider" else wanted["torch_install"]
    for part in [minor, *wanted["arguments"], "", torch["source"], *taken, "", *wanted["contents"]]:
        digest.update(hashlib.sha256(str(part).encode()).digest())
    return digest.hexdigest()


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name of each filter to its function."""
        return {"gpu_host_venv": gpu_host_venv}
