"""Whose machine it is, by a table of providers, and what follows: data disk, files to source before a download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Data = dict[str, Any]
# A system disk of a rented box has some 30 GB; what is free on a data disk must be worth the hint.
WORTH_MIB = 1024


def gpu_host_provider(facts: Data, providers: list[Data], name: str = "auto") -> Data:
    """The provider of the table whose marker or variable the probe found (the first one), or the one called ``name``.

    A row of the table: ``{"name", "markers": [paths], "variables": [names of environment variables],
    "data_disks": [folders], "environment_files": [paths]}``; a row without markers and variables fits any host.
    Returns ``{"name", "data_disk": a mounted folder or "", "environment_files": [those that are there], "findings"}``.
    Raises ValueError when the table has no such name.
    """
    row = _row(facts["provider"], providers, name)
    mounted = [
        disk
        for disk in facts["data_disks"]
        if _is_data_disk(disk, facts) and disk["listed"] in row.get("data_disks", [])
    ]
    there = set(facts["provider"]["markers"])
    return {
        "name": row["name"],
        "data_disk": mounted[0]["path"] if mounted else "",
        "environment_files": [path for path in row.get("environment_files", []) if path in there],
        "findings": _findings(facts, row, mounted),
    }


def gpu_host_probe_words(providers: list[Data]) -> list[str]:
    """What the probe is to look for, as its arguments: kind and value in turn, each once."""
    pairs: dict[tuple[str, str], None] = {}
    for row in providers:
        for kind, key in (("marker", "markers"), ("marker", "environment_files"), ("variable", "variables")):
            pairs.update(dict.fromkeys((kind, str(value)) for value in row.get(key, [])))
        pairs.update(dict.fromkeys(("disk", str(value)) for value in row.get("data_disks", [])))
    return [word for pair in pairs for word in pair]


def _row(found: Data, providers: list[Data], name: str) -> Data:
    if name != "auto":
        for row in providers:
            if row["name"] == name:
                return row
        known = ", ".join(row["name"] for row in providers)
        raise ValueError(f"gpu_host_provider is {name!r}; it must be auto or one of {known}")
    for row in providers:
        markers, variables = row.get("markers", []), row.get("variables", [])
        if set(markers) & set(found["markers"]) or set(variables) & set(found["variables"]):
            return row
        if not markers and not variables:
            return row
    return {"name": "unknown"}


def _is_data_disk(disk: Data, facts: Data) -> bool:
    """Whether the folder is there, can be written, and lies on a file system of its own."""
    apart = disk["mount"] not in ("", facts["disks"]["system"]["mount"])
    return bool(disk["existing"] == disk["path"] and disk["writable"] and apart)


def _findings(facts: Data, row: Data, mounted: list[Data]) -> list[dict[str, str]]:
    root, system = facts["disks"]["project_root"], facts["disks"]["system"]
    roomier = [d for d in mounted if (d["free_mib"] or 0) > (root["free_mib"] or 0) + WORTH_MIB]
    if not roomier or not root["mount"] or root["mount"] != system["mount"]:
        return []
    disk = roomier[0]
    message = (
        f"the project root {root['path']} lies on the system disk ({root['free_mib']} MiB free) although the data disk "
        f"{disk['path']} of {row['name']} has {disk['free_mib']} MiB free"
    )
    remedy = f"set REMOTE_PROJECT_ROOT={disk['path']}/stagegate"
    return [{"severity": "warning", "check": "provider", "message": message, "remedy": remedy}]


class FilterModule:
    """Filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name of each filter to its function."""
        return {"gpu_host_provider": gpu_host_provider, "gpu_host_probe_words": gpu_host_probe_words}
