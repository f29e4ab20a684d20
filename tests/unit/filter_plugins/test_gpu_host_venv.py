"""Which Python makes the venv, and when it is filled again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from filter_plugins.gpu_host import gpu_host_facts
from filter_plugins.gpu_host_venv import gpu_host_venv

RECORDED = Path(__file__).parent / "recorded"
WANTED = {
    "python_min": "3.11",
    "python_path": "",
    "contents": ["torch==2.13.0\ntrl==1.16.0\n"],
    "arguments": [],
}


def plan(state: str = "absent", pythons: Any = (), **changes: Any) -> dict[str, Any]:
    """``pythons``: (origin, version[, makes_venv[, has_pip]])."""
    facts = gpu_host_facts((RECORDED / "rtx3080_driver_535.txt").read_text())
    facts["venv"].update(state=state, stamp=changes.pop("stamp", ""))
    facts["failed_pythons"] = changes.pop("failed", [])
    facts["pythons"] = [
        {
            "origin": origin,
            "path": f"/{origin}/python{version}",
            "version": version,
            "makes_venv": [*rest, True][0],
            "has_pip": [*rest, True, True][1],
            "torch": "",
            "torch_cuda": "",
        }
        for origin, version, *rest in pythons
    ]
    return gpu_host_venv(facts, {**WANTED, **changes})


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ([("path", "3.11.2")], "/path/python3.11.2"),
        ([("path", "3.10.14"), ("path", "3.12.1")], "/path/python3.12.1"),
        ([("path", "3.9.2"), ("known", "3.11.0")], "/known/python3.11.0"),
        ([("path", "3.11.2", False), ("path", "3.12.1")], "/path/python3.12.1"),
        ([("path", "3.13.0"), ("path", "3.12.1")], "/path/python3.13.0"),
    ],
)
def test_the_first_python_that_is_new_enough_and_makes_venvs(pythons: Any, chosen: str) -> None:
    made = plan(pythons=pythons)
    assert (made["action"], made["python"], made["findings"]) == ("create", chosen, [])


@pytest.mark.parametrize(
    ("pythons", "says"),
    [
        ([], "found: none"),
        ([("path", "3.10.14")], "/path/python3.10.14 3.10.14"),
        ([("path", "3.11.2", False)], "3.11.2 without venv"),
    ],
)
def test_no_python_stops_with_what_was_found(pythons: Any, says: str) -> None:
    made = plan(pythons=pythons)
    (finding,) = made["findings"]
    assert (made["action"], finding["check"]) == ("stop", "python")
    assert says in finding["message"] and "3.11" in finding["message"]


def test_a_python_that_is_asked_for_is_used_or_refused() -> None:
    pythons = [("given", "3.12.1"), ("path", "3.13.0")]
    assert plan(pythons=pythons, python_path="/given/python")["python"] == "/given/python3.12.1"
    older = [("given", "3.10.1"), ("path", "3.13.0")]
    made = plan(pythons=older, python_path="/given/python")
    assert made["action"] == "stop"
    assert "/given/python" in made["findings"][0]["message"]


def test_an_unchanged_venv_is_left_alone() -> None:
    stamp = plan("venv", [("venv", "3.11.7")])["stamp"]
    assert plan("venv", [("venv", "3.11.7")], stamp=stamp)["action"] == "none"
    assert plan("venv", [("venv", "3.11.9")], stamp=stamp)["action"] == "none"


@pytest.mark.parametrize(
    "changes",
    [
        {"contents": ["torch==2.13.1\ntrl==1.16.0\n"]},
        {"contents": ["torch==2.13.0\ntrl==1.16.0\n", "numpy==2.1\n"]},
        {"arguments": ["--extra-index-url=https://example.org/cu126"]},
        {"pythons": [("venv", "3.12.1")]},
        {"stamp": ""},
    ],
)
def test_whatever_decides_the_packages_fills_the_venv_again(changes: dict[str, Any]) -> None:
    stamp = plan("venv", [("venv", "3.11.7")])["stamp"]
    pythons = changes.pop("pythons", [("venv", "3.11.7")])
    assert plan("venv", pythons, **{"stamp": stamp, **changes})["action"] == "install"


def test_without_requirement_files_only_the_venv_is_needed() -> None:
    assert plan("venv", [("venv", "3.11.7")], contents=[])["action"] == "none"
    assert plan("absent", [("path", "3.11.7")], contents=[])["action"] == "create"


def test_a_venv_that_was_cut_off_while_it_was_made_is_made_again() -> None:
    half = plan("venv", [("venv", "3.11.7", True, False)])
    assert (half["action"], half["clear"]) == ("create", False)
    dangling = plan("broken", [("path", "3.11.7")])
    assert (dangling["action"], dangling["clear"]) == ("create", True)


def test_a_folder_with_something_else_in_it_is_never_touched() -> None:
    made = plan("other", [("path", "3.11.7")])
    assert (made["action"], made["clear"]) == ("stop", False)
    assert [f["check"] for f in made["findings"]] == ["venv"]
    assert plan("empty", [("path", "3.11.7")])["action"] == "create"


def test_a_venv_with_an_old_or_sick_python_is_not_deleted() -> None:
    old = plan("venv", [("venv", "3.10.14"), ("path", "3.12.1")])
    assert (old["action"], old["clear"]) == ("stop", False)
    assert "3.10.14" in old["findings"][0]["message"]
    sick = {"origin": "venv", "path": "x", "status": "timeout", "reason": ""}
    made = plan("venv", [("path", "3.12.1")], failed=[sick])
    assert made["action"] == "stop" and "timeout" in made["findings"][0]["message"]
    assert plan("venv", [("venv", "3.11.0")])["action"] == "install"


def test_an_answer_that_is_cut_off_stops() -> None:
    made = gpu_host_venv(gpu_host_facts("motd\ngpu_host|begin|1\n"), WANTED)
    assert made["action"] == "stop"
    assert [f["check"] for f in made["findings"]] == ["probe"]


def test_a_host_without_room_for_a_temporary_file_stops() -> None:
    full = "gpu_host|begin|1\ngpu_host|scratch|\ngpu_host|end|1\n"
    (finding,) = gpu_host_venv(gpu_host_facts(full), WANTED)["findings"]
    assert finding["check"] == "probe" and "temporary folder" in finding["message"]


def test_the_pinned_torch_is_read_from_the_requirements() -> None:
    assert plan()["torch_pin"] == "2.13.0"
    assert plan(contents=["torchvision==0.28\n", "six==1.16.0\n"])["torch_pin"] == ""
