"""The training summary: what it claims and refuses to claim, and which adapter it calls best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.finished_host import STAGES, Host, evaluation, figures, fill, hashes
from trainer import comparison, summary


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_whole_run_is_told(host: Host) -> None:
    fill(host)
    text = host.text()
    assert "**All stages passed**" in text
    assert "| style | passed | – | 1 | 2026-11-22T10:00:00+00:00 | 2026-11-22T10:01:05+00:00 | 1 min 05 s |" in text
    assert "| style | trained | key point coverage | 0.900 | 0.950 | 28 |" in text
    assert "not of generalisation" in text
    assert "| all | style | key point coverage | 11 | 0.600 | 0.050 | +0.550 |" in text
    assert "| no adapter (base model) |" in text
    assert "**adapter_multitask** (stage all): highest mean key point coverage 0.600" in text
    assert "try" not in text.split("## Next steps")[0]
    assert "GPU host" in text.split("## Next steps")[1]
    assert text == host.text()


def test_parameters_are_told_once_and_differences_first(host: Host) -> None:
    fill(host)
    part = host.text().split("## Parameters")[1]
    assert part.index("| use_qlora | false | profile embedded | every |") < part.index(
        "| seed | 42 | default | every |"
    )
    assert "| num_train_epochs | 5 | profile embedded | style |" in part
    assert part.count("| use_qlora |") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": {**hashes("style"), "adapter": "other"}},
        {"fingerprint": {**hashes("style"), "training": "other"}},
        {"fingerprint": {**hashes("style"), "evaluation": "other"}},
        {"fingerprint": {}},
        {"attempt": 2},
        {"stage": "writing"},
        {"adapter": "adapter_writing"},
    ],
)
def test_a_report_of_something_else_is_not_used(host: Host, change: dict[str, Any]) -> None:
    fill(host)
    host.report("style", evaluation("style", figures(0.99)), evaluation("writing", figures(0.99)), **change)
    text = host.text()
    assert "report does not match the adapter: not used" in text
    assert "0.990" not in text
    assert "| style | trained |" not in text
    best = comparison.best_model(host.context())
    assert best is not None
    assert best["adapter"] == "adapter_multitask"


def test_a_report_of_an_earlier_plan_with_equal_hashes_is_used_and_named(host: Host) -> None:
    fill(host)
    host.state("style", plan_id="p2", reason="up to date: nothing that shapes it has changed")
    text = host.text()
    assert "| style | trained |" in text
    assert "style: made by plan p1, unchanged since" in text
    assert "up to date: nothing that shapes it has changed" in text


@pytest.mark.parametrize("status", ["running", "failed", "lost", "cancelled", "closed", "skipped", "pending"])
def test_an_old_report_says_nothing_about_a_stage_that_has_no_score(host: Host, status: str) -> None:
    fill(host)
    host.state("all", status)
    context = host.context()
    assert [stage["report"] is None for stage in context["stages"]] == [False, False, False, True]
    best = comparison.best_model(context)
    assert best is not None
    assert best["adapter"] == "adapter_style"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("state/style.json", "{torn", "outputs/state/style.json is not JSON"),
        ("state/style.json", {"schema": 9}, "was written by a newer version"),
        ("adapter/adapter_style/eval_report_style.json", "", "eval_report_style.json is not JSON"),
        ("state/plan.json", "[]", "outputs/state/plan.json is not a state"),
        ("logs/issues.jsonl", "nonsense\n", "issues.jsonl, line 1, is not an issue record"),
    ],
)
def test_broken_files_are_named_and_nothing_is_invented(host: Host, name: str, content: object, words: str) -> None:
    fill(host)
    assert "missing or were not used" not in host.text()
    host.write(name, content)
    text = host.text()
    assert words in text
    assert str(host.root) not in text
    if "style" in name:
        assert "| style | trained |" not in text
        assert "All stages passed" not in text or "eval_report" in name


def test_a_missing_report_is_named(host: Host) -> None:
    fill(host)
    (host.root / "outputs/adapter/adapter_style/eval_report_style.json").unlink()
    text = host.text()
    assert "outputs/adapter/adapter_style/eval_report_style.json is missing although stage style has ended" in text
    assert "Stage style has no report that matches its adapter" in text


def test_an_empty_root_is_told_honestly(tmp_path: Path) -> None:
    context = summary.collect_context(tmp_path, STAGES)
    text = summary.build_summary(context)
    assert "No stage has passed" in text
    assert "Nothing has passed yet" in text
    assert "no plan was ever submitted" in text
    assert "Adapters: none" in summary.closing_lines(context, "outputs")


def test_closing_lines_name_the_latest_run(host: Host) -> None:
    fill(host)
    assert summary.closing_lines(host.context(), "outputs")[0] == "Summary: none was collected yet"
    for run in ("run_20261122T1000", "run_20261123T1000"):
        host.write(f"training_sync/{run}/TRAINING_SUMMARY.md", "# Training summary")
    lines = summary.closing_lines(host.context(), "outputs/box1")
    assert lines[0] == "Summary: outputs/box1/training_sync/run_20261123T1000/TRAINING_SUMMARY.md"
    assert lines[1].startswith("Adapters: outputs/box1/adapter (adapter_sample, adapter_style,")
    assert lines[2].startswith("Best model: adapter_multitask (highest mean key point coverage 0.600")


def test_the_same_tree_is_read_at_another_place(host: Host, tmp_path: Path) -> None:
    fill(host)
    there = summary.collect_context(tmp_path / "unused", STAGES, outputs=host.root / "outputs")
    assert summary.build_summary(there) == host.text()
