"""Every refusal of the driver gate, each beside a nearly identical host that is accepted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from filter_plugins.gpu_host import gpu_host_facts
from filter_plugins.gpu_host_findings import gpu_host_findings

RECORDED = Path(__file__).parent / "recorded"
REQUIREMENTS = {
    "vram_mib": 7600,
    "memory_mib": 15000,
    "disk_mib": 19000,
    "inodes": 100000,
    "install": True,
}


def facts_of(name: str) -> dict[str, Any]:
    return gpu_host_facts((RECORDED / f"{name}.txt").read_bytes().decode())


def findings_of(facts: dict[str, Any], **requirements: Any) -> list[dict[str, str]]:
    return gpu_host_findings(facts, {**REQUIREMENTS, **requirements})


def checks(found: list[dict[str, str]], severity: str = "error") -> list[str]:
    return [f["check"] for f in found if f["severity"] == severity]


@pytest.mark.parametrize(
    ("name", "cuda"),
    [
        ("a100_driver_470", "11.8"),
        ("rtx2080_driver_525", "12.8"),
        ("rtx3080_driver_535", "12.8"),
        ("rtx4090_driver_550", "12.8"),
        ("gh200_driver_575", "12.9"),
        ("h200_driver_580", "13.0"),
        ("v100_driver_580", "12.6"),
        ("a100_mig_driver_550", "12.4"),
        ("a100_mig_tenant_driver_550", "12.4"),
    ],
)
def test_fit_hosts(name: str, cuda: str) -> None:
    assert findings_of(facts_of(name), torch_cuda=cuda) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("not_installed", "nvidia-smi is not there"),
        ("driver_not_loaded", "driver is not loaded"),
        ("version_mismatch", "updated under a running kernel module (version 550.54.14)"),
        ("no_devices", "sees no GPU"),
        ("no_permission", "may not use the GPU"),
        ("hang", "the driver hangs"),
        ("gpu_lost", "a GPU is lost"),
        ("device_handle", "a GPU is lost"),
        ("one_of_two", "a GPU is lost"),
        ("no_library", "library is not in the container"),
        ("container_lost_gpu", "lost its access"),
        ("crash", "status 139: 'Segmentation fault'"),
    ],
)
def test_broken_drivers(name: str, says: str) -> None:
    (finding,) = findings_of(facts_of(f"broken_{name}"))
    assert (finding["severity"], finding["check"]) == ("error", "nvidia_smi")
    assert says in finding["message"]
    assert finding["remedy"]


def test_every_broken_driver_has_a_meaning_of_its_own() -> None:
    names = [p.stem for p in RECORDED.glob("broken_*.txt")]
    meanings = {name: findings_of(facts_of(name))[0]["message"].split("(")[0] for name in names}
    same = {"broken_gpu_lost", "broken_device_handle", "broken_one_of_two"}
    assert len({meaning for name, meaning in meanings.items() if name not in same}) == len(set(names) - same)


def test_a_gpu_that_reports_errors_in_place_of_values() -> None:
    found = findings_of(facts_of("broken_err_fields"))
    assert checks(found) == ["gpu"]
    assert "GPU 0" in found[0]["message"] and "Unknown Error" in found[0]["message"]


@pytest.mark.parametrize(
    ("sizes", "refused"),
    [
        ([8192], False),
        ([8188], False),
        ([7982], False),  # RTX 2080
        ([7611], False),  # Tesla P4 with ECC
        ([7599], True),
        ([6144], True),
        ([6144, 24564], False),  # the largest counts
        ([6144, 4096], True),
    ],
)
def test_gpu_memory(sizes: list[int], refused: bool) -> None:
    facts = facts_of("rtx4090_driver_550")
    device = facts["gpu"]["devices"][0]
    facts["gpu"]["devices"] = [
        {**device, "index": n, "memory_mib": size, "memory_free_mib": size} for n, size in enumerate(sizes)
    ]
    found = findings_of(facts)
    assert checks(found) == (["vram"] if refused else [])
    assert all(str(size) in found[0]["message"] for size in sizes if refused)


def test_gpu_memory_taken_by_somebody_else_is_a_warning() -> None:
    facts = facts_of("a100_pair_driver_570")
    assert findings_of(facts) == []  # one GPU is taken, the other is free
    for device in facts["gpu"]["devices"]:
        device["memory_free_mib"] = 5120
    assert checks(findings_of(facts), "warning") == ["vram"]
    assert checks(findings_of(facts)) == []


def test_gpu_that_shares_the_memory_of_the_machine() -> None:
    found = findings_of(facts_of("gb10_driver_580"), torch_cuda="13.0")
    assert (checks(found), checks(found, "warning")) == ([], ["vram"])


def test_mig() -> None:
    facts = facts_of("a100_mig_driver_550")
    device = facts["gpu"]["devices"][0]
    device["slices"] = [{"profile": "1g.5gb", "memory_gb": 5}]
    assert checks(findings_of(facts)) == ["vram"]
    device["slices"] = [{"profile": "1g.10gb", "memory_gb": 10}]
    assert checks(findings_of(facts)) == []
    device["slices"] = []
    assert checks(findings_of(facts)) == ["mig"]
    device["mig"] = False
    assert checks(findings_of(facts)) == []


@pytest.mark.parametrize(("mib", "refused"), [(15258, False), (15000, False), (14999, True)])
def test_memory(mib: int, refused: bool) -> None:
    facts = facts_of("rtx4090_driver_550")
    facts["memory"]["usable_mib"] = mib
    found = findings_of(facts)
    assert checks(found) == (["memory"] if refused else [])
    assert all(str(mib) in f["message"] and "cgroup" in f["message"] for f in found)


@pytest.mark.parametrize(
    ("field", "good", "bad", "check"),
    [
        ("free_mib", 19000, 18999, "disk"),
        ("free_inodes", 100000, 99999, "inodes"),
        ("writable", True, False, "disk"),
    ],
)
def test_disk(field: str, good: Any, bad: Any, check: str) -> None:
    facts = facts_of("rtx4090_driver_550")
    for disk in facts["disks"].values():
        disk[field] = good
    assert findings_of(facts) == []
    for disk in facts["disks"].values():
        disk[field] = bad
    assert checks(findings_of(facts)) == [check]  # once, as both lie on one file system


def test_disk_of_the_venv_counts_while_it_is_to_be_filled() -> None:
    facts = facts_of("rtx4090_driver_550")
    facts["disks"]["venv"].update(mount="/", free_mib=500)
    assert checks(findings_of(facts, install=True)) == ["disk"]
    assert checks(findings_of(facts, install=False)) == []


def test_all_findings_come_at_once() -> None:
    facts = facts_of("a100_driver_470")
    facts["memory"]["usable_mib"] = 4096
    facts["disks"]["project_root"].update(free_mib=100, free_inodes=5)
    for device in facts["gpu"]["devices"]:
        device["memory_free_mib"] = 100
    found = findings_of(facts)
    assert sorted(checks(found)) == ["disk", "inodes", "memory"]
    assert checks(found, "warning") == ["vram"]


def test_values_may_be_text_and_the_facts_stay_as_they_are() -> None:
    facts = facts_of("rtx3080_driver_535")
    before = copy.deepcopy(facts)
    assert checks(findings_of(facts, vram_mib="24000")) == ["vram"]
    assert facts == before
    with pytest.raises(ValueError, match="8 GB"):
        findings_of(facts, vram_mib="8 GB")


def test_an_answer_that_is_cut_off_is_not_judged() -> None:
    assert findings_of(gpu_host_facts("gpu_host|begin|1\n")) == []
