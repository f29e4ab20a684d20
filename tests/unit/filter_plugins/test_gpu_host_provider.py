"""Whose machine it is, by the role's own table, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from filter_plugins.gpu_host import gpu_host_facts
from filter_plugins.gpu_host_provider import gpu_host_probe_words, gpu_host_provider

RECORDED = Path(__file__).parent / "recorded"
ROLE = Path(__file__).parents[3] / "roles" / "gpu_host"
TABLE = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))["__gpu_host_providers"]


def disk(path: str, mount: str, free_mib: int = 50_000, **changes: Any) -> dict[str, Any]:
    return {
        "path": path, "existing": path, "writable": True, "mount": mount, "free_mib": free_mib,
        "free_inodes": 10**6, "listed": path, **changes,
    }  # fmt: skip


def facts_of(root: dict[str, Any], *data: dict[str, Any], markers: Any = (), variables: Any = ()) -> dict[str, Any]:
    facts = gpu_host_facts((RECORDED / "rtx4090_driver_550.txt").read_bytes().decode())
    facts["disks"].update(project_root=root, system=disk("/", "/", 20_000))
    facts["data_disks"] = list(data)
    facts["provider"] = {"markers": list(markers), "variables": list(variables)}
    return facts


@pytest.mark.parametrize(
    ("markers", "variables", "name"),
    [
        (["/root/autodl-tmp", "/etc/network_turbo"], [], "AutoDL"),
        ([], ["RUNPOD_POD_ID"], "RunPod"),
        ([], ["VAST_CONTAINERLABEL"], "vast.ai"),
        (["/root/.vast_api_key"], [], "vast.ai"),
        (["/lambda/nfs"], [], "Lambda"),
        ([], [], "lab server"),
        (["/etc/network_turbo"], [], "lab server"),  # a file to source is no marker
    ],
)
def test_providers_by_their_markers(markers: list[str], variables: list[str], name: str) -> None:
    facts = facts_of(disk("/x", "/"), markers=markers, variables=variables)
    assert gpu_host_provider(facts, TABLE)["name"] == name


def test_a_named_provider_is_taken_without_its_markers_and_a_wrong_name_is_refused() -> None:
    facts = facts_of(disk("/x", "/"))
    assert gpu_host_provider(facts, TABLE, "RunPod")["name"] == "RunPod"
    with pytest.raises(ValueError, match="'Runpod'; it must be auto or one of AutoDL, RunPod"):
        gpu_host_provider(facts, TABLE, "Runpod")


def test_only_environment_files_that_are_there_are_sourced() -> None:
    root = disk("/root/autodl-tmp/stagegate", "/root/autodl-tmp")
    there = facts_of(root, markers=["/root/autodl-tmp", "/etc/network_turbo"])
    assert gpu_host_provider(there, TABLE)["environment_files"] == ["/etc/network_turbo"]
    assert gpu_host_provider(facts_of(root, markers=["/root/autodl-tmp"]), TABLE)["environment_files"] == []


@pytest.mark.parametrize(
    ("root", "data", "warned"),
    [
        (disk("/root/stagegate", "/", 20_000), disk("/root/autodl-tmp", "/root/autodl-tmp"), True),
        (disk("/root/autodl-tmp/s", "/root/autodl-tmp"), disk("/root/autodl-tmp", "/root/autodl-tmp"), False),
        (disk("/mnt/big/s", "/mnt/big"), disk("/root/autodl-tmp", "/root/autodl-tmp"), False),
        (disk("/root/stagegate", "/", 20_000), disk("/root/autodl-tmp", "/"), False),  # a folder, no disk
        (disk("/root/stagegate", "/", 20_000), disk("/root/autodl-tmp", "/root/autodl-tmp", 20_000), False),
        (disk("/root/stagegate", "/", 20_000), disk("/root/autodl-tmp", "/d", existing="/root"), False),
        (disk("/root/stagegate", "/", 20_000), disk("/root/autodl-tmp", "/d", writable=False), False),
        (disk("/root/stagegate", "/", 20_000), disk("/workspace", "/workspace"), False),  # another provider's
    ],
)
def test_a_project_root_on_the_system_disk_beside_a_data_disk(root: Any, data: Any, warned: bool) -> None:
    made = gpu_host_provider(facts_of(root, data, markers=["/root/autodl-tmp"]), TABLE)
    assert [f["check"] for f in made["findings"]] == (["provider"] if warned else [])
    for finding in made["findings"]:
        assert finding["severity"] == "warning" and "20000 MiB free" in finding["message"]
        assert "REMOTE_PROJECT_ROOT=/root/autodl-tmp/stagegate" in finding["remedy"]


def test_the_home_of_the_user_may_be_a_data_disk() -> None:
    home = disk("/home/ada", "/home", listed="~")
    assert (
        gpu_host_provider(facts_of(disk("/srv/x", "/", 20_000), home), TABLE, "lab server")["data_disk"] == "/home/ada"
    )
    other = disk("/home/ada", "/home")
    assert gpu_host_provider(facts_of(disk("/srv/x", "/", 20_000), other), TABLE, "lab server")["data_disk"] == ""


def test_the_probe_looks_for_each_thing_once() -> None:
    words = gpu_host_probe_words(TABLE)
    pairs = list(zip(words[::2], words[1::2], strict=True))
    assert len(set(pairs)) == len(pairs)
    assert {kind for kind, _ in pairs} == {"marker", "variable", "disk"}
    assert ("marker", "/etc/network_turbo") in pairs and ("disk", "/workspace") in pairs
