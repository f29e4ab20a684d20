"""The training summary: what it claims and refuses to claim, and which adapter it calls best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer import diagnose, summary

STAGES = [
    {"name": name, "tag": tag, "title": name.title(), "adapter": f"adapter_{tag}", "gate": {}}
    for name, tag in (
        ("sample", "sample"),
        ("style", "style"),
        ("writing", "writing"),
        ("all", "multitask"),
    )
]
ADAPTERS = {record["name"]: str(record["adapter"]) for record in STAGES}


def figures(
    coverage: float, compliance: float = 1.0, width: float = 0.1, n: int = 11
) -> dict[str, Any]:
    def entry(value: float) -> dict[str, Any]:
        return {"value": value, "n": n, "ci95": [value - width, value + width]}

    return {"key_point_coverage": entry(coverage), "format_compliance": entry(compliance)}


def evaluation(
    name: str, measured: dict[str, Any], ids: str = "abc", **more: Any
) -> dict[str, Any]:
    rows = [{"id": f"{name}-{i}", "type": "t", "metrics": {}} for i in ids]
    return {
        "name": name,
        "questions": "held_out",
        "file": f"{name}.jsonl",
        "base": figures(0.05, 0.0),
        "warnings": [],
        "seconds": 1.0,
        "tokens": 9,
        "result": {
            "summary": measured,
            "by_type": {},
            "rows": rows,
            "missing": [],
            "unexpected": [],
        },
        **more,
    }


def hashes(stage: str) -> dict[str, Any]:
    return {
        "training": f"t-{stage}",
        "evaluation": f"e-{stage}",
        "adapter": f"a-{stage}",
        "parts": {},
    }


class Host:
    """A project root that is filled stage by stage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write(
            "state/plan.json",
            {
                "schema": 1,
                "plan_id": "p1",
                "created_at": "2026-11-22T09:00:00+00:00",
                "gate": "strict",
                "stages": list(ADAPTERS),
                "skip_sample": False,
                "profile": "embedded",
                "source_id": "abc",
                "overrides": {"seed": {"value": 9, "source": "command line"}},
            },
        )

    def write(self, name: str, record: object) -> None:
        path = self.root / "outputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")

    def state(self, stage: str, status: str = "passed", **more: Any) -> None:
        self.write(
            f"state/{stage}.json",
            {
                "schema": 1,
                "stage": stage,
                "status": status,
                "plan_id": "p1",
                "attempt": 1,
                "started_at": "2026-11-22T10:00:00+00:00",
                "ended_at": "2026-11-22T10:01:05+00:00",
                "log": f"outputs/logs/train_{stage}_1.log",
                "message": "",
                "reason": "",
                "fingerprint": hashes(stage),
                **more,
            },
        )

    def report(
        self, stage: str, /, *evaluations: dict[str, Any], passed: bool = True, **more: Any
    ) -> None:
        gate = {
            "mode": "strict",
            "questions": "trained",
            "passed": passed,
            "reasons": [],
            "targets": {"key_point_coverage": 0.9},
            "measured": {"key_point_coverage": {"value": 0.95 if passed else 0.5, "n": 28}},
        }
        folder = f"adapter/{ADAPTERS[stage]}"
        parameters = {
            "seed": {"value": 42, "source": "default"},
            "num_train_epochs": {"value": len(stage), "source": "profile embedded"},
            "use_qlora": {"value": False, "source": "profile embedded"},
        }
        self.write(
            f"{folder}/eval_report_{stage}.json",
            {
                "schema": 1,
                "stage": stage,
                "adapter": ADAPTERS[stage],
                "plan_id": "p1",
                "attempt": 1,
                "gate": gate,
                "fingerprint": hashes(stage),
                "evaluations": list(evaluations),
                "parameters": parameters,
                "environment": {"python": "3.11.7", "gpu": None},
                **more,
            },
        )
        self.write(f"{folder}/adapter_model.safetensors", "weights")

    def passed(self, stage: str, *evaluations: dict[str, Any]) -> None:
        self.state(stage)
        self.report(stage, *evaluations)

    def context(self) -> dict[str, Any]:
        return summary.collect_context(self.root, STAGES)

    def text(self) -> str:
        return summary.build_summary(self.context())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def fill(host: Host, style: float = 0.4, writing: float = 0.3, both: float = 0.6) -> None:
    host.passed("sample")
    host.passed("style", evaluation("style", figures(style)), evaluation("writing", figures(0.1)))
    host.passed(
        "writing", evaluation("style", figures(0.1)), evaluation("writing", figures(writing))
    )
    host.passed("all", evaluation("style", figures(both)), evaluation("writing", figures(both)))


def test_a_whole_run_is_told(host: Host) -> None:
    fill(host)
    text = host.text()
    assert "**All stages passed**" in text
    assert (
        "| style | passed | – | 1 | 2026-11-22T10:00:00+00:00 | 2026-11-22T10:01:05+00:00 "
        "| 1 min 05 s |" in text
    )
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


def test_overlapping_intervals_are_said_and_lead_to_more_rows(host: Host) -> None:
    fill(host, style=0.59, writing=0.3, both=0.6)
    best = summary.best_model(host.context())
    assert best is not None
    assert "on style the 95 % interval overlaps with that of adapter_style" in best["reason"]
    assert "Add rows to the benchmarks" in host.text()
    host.passed("style", evaluation("style", figures(0.2)), evaluation("writing", figures(0.1)))
    best = summary.best_model(host.context())
    assert best is not None
    assert "overlap" not in best["reason"]


@pytest.mark.parametrize(
    ("style", "compliance", "expected", "why"),
    [
        (0.7, 0.5, "adapter_style", "highest mean"),
        (0.6, 0.9, "adapter_style", "higher format compliance"),
        (0.6, 0.8, "adapter_multitask", "exact tie"),
        (0.6, 0.7, "adapter_multitask", "higher format compliance"),
    ],
)
def test_best_model_follows_the_rule(
    host: Host, style: float, compliance: float, expected: str, why: str
) -> None:
    mine, other = figures(style, compliance), figures(0.6, 0.8)
    host.passed("style", evaluation("style", mine), evaluation("writing", mine))
    host.passed("all", evaluation("style", other), evaluation("writing", other))
    best = summary.best_model(host.context())
    assert best is not None
    assert (best["adapter"], why in best["reason"]) == (expected, True)


def test_an_adapter_that_missed_its_gate_is_never_best(host: Host) -> None:
    fill(host, both=0.9)
    host.state("all", "missed")
    host.report(
        "all", evaluation("style", figures(0.9)), evaluation("writing", figures(0.9)), passed=False
    )
    best = summary.best_model(host.context())
    assert best is not None
    assert best["adapter"] == "adapter_style"
    text = host.text()
    assert "**all: gate missed**" in text
    assert "Rows that missed something" in text.split("## Next steps")[1]
    assert "GPU host" not in text


def test_an_adapter_on_one_benchmark_is_not_compared_with_one_on_both(host: Host) -> None:
    host.passed("style", evaluation("style", figures(0.99)))
    host.passed("writing", evaluation("writing", figures(0.98)))
    assert summary.best_model(host.context()) is None
    assert summary.closing_lines(host.context(), "outputs")[2].startswith("Best model: none (")
    host.passed("all", evaluation("style", figures(0.4)), evaluation("writing", figures(0.4)))
    best = summary.best_model(host.context())
    assert best is not None
    assert best["reason"].startswith("the only adapter that passed its gate and was scored on all")


def test_scores_on_other_rows_of_a_benchmark_are_not_compared(host: Host) -> None:
    fill(host)
    host.passed(
        "all", evaluation("style", figures(0.6), ids="xyz"), evaluation("writing", figures(0.6))
    )
    context = host.context()
    assert any("different rows of benchmark style" in problem for problem in context["problems"])
    best = summary.best_model(context)
    assert best is not None
    assert "over the held-out benchmarks writing" in best["reason"]


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
    host.report(
        "style", evaluation("style", figures(0.99)), evaluation("writing", figures(0.99)), **change
    )
    text = host.text()
    assert "report does not match the adapter: not used" in text
    assert "0.990" not in text
    assert "| style | trained |" not in text
    best = summary.best_model(host.context())
    assert best is not None
    assert best["adapter"] == "adapter_multitask"


def test_a_report_of_an_earlier_plan_with_equal_hashes_is_used_and_named(host: Host) -> None:
    fill(host)
    host.state("style", plan_id="p2", reason="up to date: nothing that shapes it has changed")
    text = host.text()
    assert "| style | trained |" in text
    assert "style: made by plan p1, unchanged since" in text
    assert "up to date: nothing that shapes it has changed" in text


@pytest.mark.parametrize(
    "status", ["running", "failed", "lost", "cancelled", "closed", "skipped", "pending"]
)
def test_an_old_report_says_nothing_about_a_stage_that_has_no_score(
    host: Host, status: str
) -> None:
    fill(host)
    host.state("all", status)
    context = host.context()
    assert [stage["report"] is None for stage in context["stages"]] == [False, False, False, True]
    best = summary.best_model(context)
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
def test_broken_files_are_named_and_nothing_is_invented(
    host: Host, name: str, content: object, words: str
) -> None:
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
    assert (
        "outputs/adapter/adapter_style/eval_report_style.json is missing although stage"
        " style has ended" in text
    )
    assert "Stage style has no report that matches its adapter" in text


def test_an_empty_root_is_told_honestly(tmp_path: Path) -> None:
    context = summary.collect_context(tmp_path, STAGES)
    text = summary.build_summary(context)
    assert "No stage has passed" in text
    assert "Nothing has passed yet" in text
    assert "no plan was ever submitted" in text
    assert "Adapters: none" in summary.closing_lines(context, "outputs")


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
    host.passed("style", evaluation("style", figures(0.4)))
    assert "leak" not in host.text()


def test_closing_lines_name_the_latest_run(host: Host) -> None:
    fill(host)
    assert summary.closing_lines(host.context(), "outputs")[0] == "Summary: none was collected yet"
    for run in ("run_20261122T1000", "run_20261123T1000"):
        host.write(f"training_sync/{run}/TRAINING_SUMMARY.md", "# Training summary")
    lines = summary.closing_lines(host.context(), "outputs/box1")
    assert lines[0] == "Summary: outputs/box1/training_sync/run_20261123T1000/TRAINING_SUMMARY.md"
    assert lines[1].startswith("Adapters: outputs/box1/adapter (adapter_sample, adapter_style,")
    assert lines[2].startswith(
        "Best model: adapter_multitask (highest mean key point coverage 0.600"
    )


def test_the_same_tree_is_read_at_another_place(host: Host, tmp_path: Path) -> None:
    fill(host)
    there = summary.collect_context(tmp_path / "unused", STAGES, outputs=host.root / "outputs")
    assert summary.build_summary(there) == host.text()
