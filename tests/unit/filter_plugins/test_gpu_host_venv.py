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
    "torch": {"source": "install", "version": "2.13.0", "cuda": "13.0", "python": "", "blocking": []},
    "torch_install": ["torch==2.13.0", ""],
}
PROVIDER = {"source": "provider", "version": "2.8.0", "cuda": "12.8", "python": "/conda/python3.12.3", "blocking": []}


def plan(state: str = "absent", pythons: Any = (), **changes: Any) -> dict[str, Any]:
    """``pythons``: (origin, version[, makes_venv[, has_pip]])."""
    facts = gpu_host_facts((RECORDED / "rtx3080_driver_535.txt").read_text())
    facts["venv"].update(state=state, stamp=changes.pop("stamp", ""), system_site=changes.pop("system_site", False))
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
        {"torch_install": ["torch==2.13.1", ""]},
        {"torch_install": ["torch==2.13.0", "https://example.org/cu126"]},
    ],
)
def test_whatever_decides_the_packages_fills_the_venv_again(changes: dict[str, Any]) -> None:
    stamp = plan("venv", [("venv", "3.11.7")])["stamp"]
    pythons = changes.pop("pythons", [("venv", "3.11.7")])
    assert plan("venv", pythons, **{"stamp": stamp, **changes})["action"] == "install"


def test_without_requirement_files_only_the_venv_is_needed() -> None:
    nothing = {"contents": [], "torch_install": []}
    assert plan("venv", [("venv", "3.11.7")], **nothing)["action"] == "none"
    assert plan("absent", [("path", "3.11.7")], **nothing)["action"] == "create"


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


def test_the_python_of_the_providers_torch_comes_before_others() -> None:
    pythons = [("path", "3.13.0"), ("conda", "3.12.3")]
    made = plan(pythons=pythons, torch=PROVIDER)
    assert (made["action"], made["python"], made["system_site"]) == ("create", "/conda/python3.12.3", True)
    assert plan(pythons=pythons)["python"] == "/path/python3.13.0"
    assert plan(pythons=pythons)["system_site"] is False


def test_whose_torch_it_is_belongs_to_the_stamp() -> None:
    venv = [("venv", "3.12.3")]
    stamp = plan("venv", venv, torch=PROVIDER, system_site=True)["stamp"]
    same = {"system_site": True, "stamp": stamp}
    assert plan("venv", venv, torch=PROVIDER, **same)["action"] == "none"
    assert plan("venv", venv, torch={**PROVIDER, "version": "2.9.0"}, **same)["action"] == "install"
    assert plan("venv", venv, **same)["action"] == "install"


def test_a_venv_that_does_not_see_the_providers_packages_yet_is_made_over() -> None:
    """`python -m venv` notes that it sees them only at its very end."""
    made = plan("venv", [("venv", "3.12.3")], torch=PROVIDER, system_site=False)
    assert (made["action"], made["clear"], made["system_site"]) == ("create", False, True)


def test_a_torch_that_cannot_be_had_stops() -> None:
    finding = {"severity": "error", "check": "torch", "message": "none", "remedy": "set auto"}
    made = plan(pythons=[("path", "3.12.1")], torch={**WANTED["torch"], "blocking": [finding]})
    assert (made["action"], made["findings"]) == ("stop", [finding])


def test_pythons_that_fail_are_reported_too() -> None:
    sick = {"origin": "conda", "path": "/opt/conda/bin/python3", "status": "126", "reason": ""}
    (finding,) = plan(pythons=[("pyenv", "3.10.13")], failed=[sick])["findings"]
    assert "/pyenv/python3.10.13 3.10.13" in finding["message"] and "/opt/conda/bin/python3" in finding["message"]
