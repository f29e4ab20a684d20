"""How a plan stands in one sentence, and what its user is told to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.trainer.finished_host import Host, evaluation, figures, fill
from trainer import diagnose, outcome


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize(
    ("status", "sentence", "step"),
    [
        ("passed", "All stages passed", "The line works."),
        ("missed", "all: gate missed", "Stage all: read `Rows that missed something`"),
        ("failed", "all: failed", "Stage all failed: follow ISSUES.md and look at outputs/logs/train_all_1.log"),
        ("lost", "all: lost", "Stage all lost: follow ISSUES.md"),
        ("running", "all: running", "The plan is not at its end"),
        ("cancelled", "all: cancelled", "Stage all was cancelled: run the playbook to go on."),
        ("skipped", "Passed: sample, style, writing (all skipped)", "The line works."),
    ],
)
def test_each_end_has_its_sentence_and_its_step(host: Host, status: str, sentence: str, step: str) -> None:
    fill(host)
    host.state("all", status)
    context = host.context()
    assert outcome.outcome(context) == sentence
    assert any(line.startswith(step) for line in outcome.next_steps(context))


def test_a_state_that_cannot_be_read_comes_before_everything_else(host: Host) -> None:
    fill(host)
    host.state("all", "failed")
    host.write("state/style.json", "{torn")
    context = host.context()
    assert outcome.outcome(context) == "style: unknown"
    assert "The state of stage style cannot be read: look at outputs/state/style.json." in outcome.next_steps(context)


def test_failed_skipped_and_closed_stages_are_told(host: Host) -> None:
    host.state("sample", "skipped", reason="TRAIN_SYNC_SKIP_SAMPLE is set")
    host.state("style", "failed", message="CUDA out of memory", fingerprint=None)
    host.state("writing", "closed", reason="style failed", fingerprint=None)
    diagnose.append_issues(
        host.root / "outputs/logs",
        diagnose.diagnose(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n",
            exit_signal=None,
            error_kind=None,
            stage="style",
            phase="training",
        ),
    )
    text = host.text()
    assert "**style: failed; closed behind it: writing**" in text
    assert "| sample | skipped | TRAIN\\_SYNC" not in text
    assert "TRAIN_SYNC_SKIP_SAMPLE is set" in text
    assert "| all | never ran |" in text
    assert "The GPU's memory ran out." in text
    assert "--tags style`" in text
    assert "| seed | 9 | command line | submitted |" in text


def test_leakage_and_no_lift_are_said(host: Host) -> None:
    leaky = evaluation("style", figures(0.04), warnings=["leakage: row x is training row y"])
    host.passed("style", leaky)
    text = host.text()
    assert "adapter_style on style: leakage: row x is training row y" in text
    assert "Take the leaked rows out" in text
    assert "adapter_style is no better than the base model on style" in text
    sampled = evaluation("style", figures(0.4), warnings=["sample: asked 1000 of the 5000 trained rows"])
    host.passed("style", sampled)
    text = host.text()
    assert "adapter_style on style: sample: asked 1000 of the 5000 trained rows" in text and "leak" not in text
