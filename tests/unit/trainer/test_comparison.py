"""Which adapter is called best, and what is never compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.trainer.finished_host import Host, evaluation, figures, fill
from trainer import comparison, summary


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_overlapping_intervals_are_said_and_lead_to_more_rows(host: Host) -> None:
    fill(host, style=0.59, writing=0.3, both=0.6)
    best = comparison.best_model(host.context())
    assert best is not None
    assert "on style the 95 % interval overlaps with that of adapter_style" in best["reason"]
    assert "Add rows to the benchmarks" in host.text()
    host.passed("style", evaluation("style", figures(0.2)), evaluation("writing", figures(0.1)))
    best = comparison.best_model(host.context())
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
def test_best_model_follows_the_rule(host: Host, style: float, compliance: float, expected: str, why: str) -> None:
    mine, other = figures(style, compliance), figures(0.6, 0.8)
    host.passed("style", evaluation("style", mine), evaluation("writing", mine))
    host.passed("all", evaluation("style", other), evaluation("writing", other))
    best = comparison.best_model(host.context())
    assert best is not None
    assert (best["adapter"], why in best["reason"]) == (expected, True)


def test_an_adapter_that_missed_its_gate_is_never_best(host: Host) -> None:
    fill(host, both=0.9)
    host.state("all", "missed")
    host.report("all", evaluation("style", figures(0.9)), evaluation("writing", figures(0.9)), passed=False)
    best = comparison.best_model(host.context())
    assert best is not None
    assert best["adapter"] == "adapter_style"
    text = host.text()
    assert "**all: gate missed**" in text
    assert "Rows that missed something" in text.split("## Next steps")[1]
    assert "GPU host" not in text


def test_an_adapter_on_one_benchmark_is_not_compared_with_one_on_both(host: Host) -> None:
    host.passed("style", evaluation("style", figures(0.99)))
    host.passed("writing", evaluation("writing", figures(0.98)))
    assert comparison.best_model(host.context()) is None
    assert summary.closing_lines(host.context(), "outputs")[2].startswith("Best model: none (")
    host.passed("all", evaluation("style", figures(0.4)), evaluation("writing", figures(0.4)))
    best = comparison.best_model(host.context())
    assert best is not None
    assert best["reason"].startswith("the only adapter that passed its gate and was scored on all")


def test_scores_on_other_rows_of_a_benchmark_are_not_compared(host: Host) -> None:
    fill(host)
    host.passed("all", evaluation("style", figures(0.6), ids="xyz"), evaluation("writing", figures(0.6)))
    context = host.context()
    assert any("different rows of benchmark style" in problem for problem in context["problems"])
    best = comparison.best_model(context)
    assert best is not None
    assert "over the held-out benchmarks writing" in best["reason"]
