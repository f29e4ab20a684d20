"""What the gate's three words do with findings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from filter_plugins.gpu_host import gpu_host_facts
from filter_plugins.gpu_host_verdict import gpu_host_summary, gpu_host_verdict

RECORDED = Path(__file__).parent / "recorded"
ERROR = {"severity": "error", "check": "driver", "message": "driver is old", "remedy": "rent"}
WARNING = {"severity": "warning", "check": "vram", "message": "GPU is busy", "remedy": "wait"}
NO_PYTHON = {"severity": "error", "check": "python", "message": "no Python", "remedy": "install"}


@pytest.mark.parametrize(
    ("gate", "findings", "blocking", "closed", "let_through"),
    [
        ("strict", [ERROR, WARNING], [], True, []),
        ("strict", [WARNING], [], False, []),
        ("strict", [], [], False, []),
        ("warn", [ERROR, WARNING], [], False, ["driver is old"]),
        ("warn", [ERROR], [NO_PYTHON], True, []),
        ("off", [ERROR, WARNING], [], False, []),
        ("off", [], [NO_PYTHON], True, []),
    ],
)
def test_gate(gate: str, findings: Any, blocking: Any, closed: bool, let_through: Any) -> None:
    verdict = gpu_host_verdict(findings, blocking, gate)
    assert (verdict["closed"], verdict["let_through"]) == (closed, let_through)


def test_everything_is_said_with_its_remedy() -> None:
    verdict = gpu_host_verdict([WARNING, ERROR], [NO_PYTHON], "strict")  # errors come first
    assert verdict["message"] == "the host is not fit for training: no Python; driver is old"
    assert verdict["lines"] == [
        "error: no Python -> install",
        "error: driver is old -> rent",
        "warning: GPU is busy -> wait",
    ]
    assert gpu_host_verdict([ERROR], [], "off")["lines"] == []


def test_summary_names_every_gpu_and_survives_a_host_that_says_nothing() -> None:
    facts = gpu_host_facts((RECORDED / "a100_pair_driver_570.txt").read_text())
    summary = gpu_host_summary(facts)
    assert summary.count("A100") == 2 and "570.124.06" in summary and "CUDA 12.8" in summary
    assert "no GPU" in gpu_host_summary(gpu_host_facts(""))
