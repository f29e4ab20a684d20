"""The scenario of every role, as `make molecule` starts it, but inside a lab: what ends that lab ends all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.lab import Lab
from tests.lab.connect import INSIDE

ROLES = sorted(path.name for path in (REPOSITORY / "roles").iterdir() if path.is_dir())
MOLECULE = ["molecule", "--base-config", str(REPOSITORY / ".config" / "molecule" / "config.yml"), "test"]
# The scenario's lab makes its control groups below those of its process: they go with the outer lab's.
SCRIPT = 'for group in $GROUPS_OF_LAB; do echo 0 > "$group/cgroup.procs"; done; "$@"; code=$?; {after}; exit $code'
LEFT = "== still running"


def scenario(world: Lab, role: str, folder: Path, after: str = ":") -> dict[str, Any]:
    """Arguments of `Lab.run` and `Lab.controller`."""
    environment = {
        "MOLECULE_EPHEMERAL_DIRECTORY": str(folder), "GROUPS_OF_LAB": " ".join(map(str, world.groups.values())),
        "NO_COLOR": "1", "OMP_NUM_THREADS": "1", INSIDE: None,
    }  # fmt: skip
    argv = ["bash", "-c", SCRIPT.replace("{after}", after), "scenario", *MOLECULE]
    return {"argv": argv, "cwd": REPOSITORY / "roles" / role, "env": environment}


def processes_of(folder: Path) -> list[str]:
    """Command lines on this machine that name a folder below this one: its lab, its host, its connections."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if str(folder) in line]


@pytest.mark.parametrize("role", ROLES)
def test_scenario_passes_and_leaves_nothing(world: Lab, role: str, tmp_path: Path) -> None:
    after = f'echo "{LEFT}"; ps -eo args='
    done = world.run(**scenario(world, role, tmp_path / "molecule", after), timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    left = done.stdout.partition(LEFT)[2].splitlines()
    assert any("ps -eo" in line for line in left), "the list of processes is never empty"
    assert [line for line in left if any(part in line for part in ("init booted", "sshd", "unshare"))] == []
    for word in ("converge", "idempotence", "verify"):
        assert f"{word}: Executed: Successful" in done.stdout + done.stderr


def test_scenario_that_is_killed_leaves_no_lab(world: Lab, tmp_path: Path) -> None:
    running = world.controller(**scenario(world, "checkout", tmp_path / "molecule"))
    running.wait_for("converge] Executing", 120)
    assert any("world.sh" in line for line in processes_of(tmp_path))
    running.lose()
    assert processes_of(tmp_path) == []
