"""The filters of stage_selection: the choice of stages against Ansible itself, and the verdict."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
STAGES = [
    {"name": "sample", "tag": "sample"},
    {"name": "style", "tag": "style"},
    {"name": "writing", "tag": "writing"},
    {"name": "all", "tag": "multitask"},
]


def load() -> ModuleType:
    path = REPOSITORY / "filter_plugins" / "stage_selection.py"
    spec = importlib.util.spec_from_file_location("stage_selection", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plugin = load()

PLAYBOOK = """
- hosts: localhost
  gather_facts: false
  tasks:
    - {name: stage sample, ansible.builtin.debug: , tags: [sample]}
    - {name: stage style, ansible.builtin.debug: , tags: [style]}
    - {name: stage writing, ansible.builtin.debug: , tags: [writing]}
    - {name: stage all, ansible.builtin.debug: , tags: [multitask]}
"""
CHOICES = [
    ("", ""),
    ("style", ""),
    ("multitask,sample", ""),
    ("", "writing"),
    ("style,writing", "writing"),
    ("all", "sample,style"),
    ("tagged", ""),
    ("untagged", ""),
    ("always", ""),
    ("never", ""),
    ("collect", ""),
    ("", "tagged"),
    ("", "all"),
    ("", "untagged"),
    ("style", "always"),
]


@pytest.mark.parametrize(("run", "skip"), CHOICES)
def test_selection_is_ansibles_own(run: str, skip: str, tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    words = [str(Path(sys.executable).parent / "ansible-playbook"), "play.yml", "--list-tasks"]
    words += ["--tags", run] if run else []
    words += ["--skip-tags", skip] if skip else []
    listed = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    expected = [s["name"] for s in STAGES if f"stage {s['name']}\t" in listed]
    tags, skipped = run.split(",") if run else ["all"], skip.split(",") if skip else []
    assert plugin.selected_stages(STAGES, tags, skipped) == expected


def test_selection_leaves_its_input_alone() -> None:
    before = [dict(stage) for stage in STAGES]
    plugin.selected_stages(STAGES, ["style"], [])
    assert before == STAGES


def test_verdict_is_the_worst_stage() -> None:
    results = [
        {"stage": "sample", "status": "passed", "exit_code": 0, "message": ""},
        {"stage": "style", "status": "missed", "exit_code": 6, "message": "0.71 < 0.90"},
        {"stage": "writing", "status": "closed", "exit_code": 3, "message": "closed by style"},
    ]
    assert plugin.run_verdict(results) == {"exit_code": 6, "message": "stage style: 0.71 < 0.90"}
    assert plugin.run_verdict(results[:1]) == {"exit_code": 0, "message": ""}


@pytest.mark.parametrize(
    ("status", "code"),
    [("missed", 6), ("failed", 5), ("lost", 7), ("cancelled", 7), ("closed", 3), ("skipped", 0)],
)
def test_status_without_a_code_still_counts(status: str, code: int) -> None:
    assert plugin.run_verdict([{"stage": "x", "status": status}])["exit_code"] == code


@pytest.mark.parametrize(("gate", "code"), [("strict", 6), ("warn", 6), ("off", 0)])
def test_missed_gate_counts_unless_gates_are_off(gate: str, code: int) -> None:
    results = [{"stage": "style", "status": "missed", "exit_code": 6, "message": "low"}]
    assert plugin.run_verdict(results, gate)["exit_code"] == code


def test_warnings_of_the_host_end_the_run_unfit() -> None:
    verdict = plugin.run_verdict([], "strict", [{"problem": "driver 470 is too old"}, "no space"])
    assert verdict["exit_code"] == 4
    assert "driver 470 is too old; no space" in verdict["message"]


def test_the_stage_that_broke_decides_not_those_closed_for_its_sake() -> None:
    broken = {"stage": "style", "status": "failed", "exit_code": 2, "message": "row 'a' is too long"}
    closed = {"stage": "writing", "status": "closed", "exit_code": 3, "message": "closed: stage style is failed"}
    assert plugin.run_verdict([broken, closed]) == {"exit_code": 2, "message": "stage style: row 'a' is too long"}
    assert plugin.run_verdict([closed])["exit_code"] == 3


def test_a_sentence_that_names_its_stage_is_not_prefixed_again() -> None:
    missed = {"stage": "style", "status": "missed", "exit_code": 6, "message": "stage style missed its gate"}
    assert plugin.run_verdict([missed])["message"] == "stage style missed its gate"
