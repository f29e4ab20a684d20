"""The control groups of a lab, of whichever version this machine has."""

from __future__ import annotations

import contextlib
from pathlib import Path


def control_groups(name: str) -> dict[str, Path]:
    """Fresh control groups of a lab, below this process's own, by what they can do: memory, freeze.

    What the machine does not have is not in the answer. They are removed by the lab's launcher.
    """
    own = {}
    for row in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = row.split(":", 2)
        own.update({controller: path.strip("/") for controller in controllers.split(",")})
    parents: dict[str, Path] = {}
    for row in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = row.split()
        for controller in {"cgroup": options.split(","), "cgroup2": [""]}.get(kind, []):
            if controller in ("", "memory", "freezer"):
                # A container may show its own group as the root of what it mounts.
                below = Path(mount) / own.get(controller, "")
                parents[controller] = below if below.is_dir() else Path(mount)
    wanted = {"freeze": "" if "" in parents else "freezer", "memory": "memory" if "memory" in parents else ""}
    found: dict[str, Path] = {}
    for what, controller in wanted.items():
        if controller not in parents:
            continue
        group = parents[controller] / name
        with contextlib.suppress(OSError):
            group.mkdir(exist_ok=True)
            if (what, controller) == ("memory", ""):
                (group.parent / "cgroup.subtree_control").write_text("+memory")
                (group / "cgroup.subtree_control").write_text("+memory")
            found[what] = group
    return found
