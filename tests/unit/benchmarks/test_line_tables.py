from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import line_tables as tables
from benchmarks.line import check_equal
from benchmarks.line_tables import Run


def a_run(seconds: float = 20.0, steps: int = 20) -> Run:
    counts = {
        "steps": steps, "trained_tokens": 300, "answered": 2, "base_answered": 2, "generated_tokens": 15,
        "base_tokens": 48,
    }  # fmt: skip
    parts = {"import": 4.0, "train": 10.0, "generate": 2.0, "check": 0.1}
    scores = {"sample: trained, adapter": {"key_point_coverage": {"value": 0.5, "n": 2}}}
    return Run(seconds, {"sample": parts}, {"sample": counts}, scores, {"sample": 0.3})


def cells(rows: object, title: str) -> list[str]:
    """The cells of the row with this title."""
    found = [line for line in "\n".join(rows).splitlines() if line.startswith(f"| {title} |")]  # type: ignore[arg-type]
    assert len(found) == 1, (title, found)
    return [cell.strip() for cell in found[0].strip("|").split("|")][1:]


def test_sides_are_compared_by_the_medians_of_their_runs() -> None:
    mine, other = [a_run(10.0), a_run(20.0), a_run(90.0)], [a_run(80.0)]
    rows = list(tables.side_table(mine, other, a_run(15.0)))
    assert cells(rows, r"**the whole job**") == ["20.0", "80.0", "4.0", "15.0"]
    assert cells(rows, "training") == ["10.0", "10.0", "1.0", "10.0"]
    # What no part accounts for: 20 of which 16.1 are known.
    assert cells(rows, "rest") == ["3.9", "63.9", "16.4", "-1.1"]


def test_a_part_that_took_no_time_has_no_ratio() -> None:
    rows = list(tables.side_table([a_run()], [a_run()], a_run()))
    assert cells(rows, "adapter saved") == ["0.0", "0.0", "–", "0.0"]


def test_sides_that_did_other_work_are_an_error() -> None:
    check_equal(a_run(steps=20), a_run(steps=20))
    with pytest.raises(SystemExit, match=r"error: the sides differ: steps 20 \(ours\) and 21"):
        check_equal(a_run(steps=20), a_run(steps=21))


def test_generated_tokens_may_differ_and_are_shown() -> None:
    other = a_run()
    other.counts["sample"]["generated_tokens"] = 17
    check_equal(a_run(), other)
    assert cells(tables.count_table(a_run(), other, a_run()), "generated tokens") == ["15", "17", "15"]


def test_scores_of_both_sides_stand_in_one_row() -> None:
    other = replace(a_run(), scores={"sample: trained, adapter": {"key_point_coverage": {"value": None, "n": 0}}})
    assert cells(tables.score_table(a_run(), other, a_run()), "sample: trained, adapter") == [
        "key point coverage", "0.500", "–", "0.500",
    ]  # fmt: skip


def test_where_the_time_goes_adds_up_to_the_whole_job() -> None:
    rows = list(tables.stage_table(a_run(20.0)))
    assert cells(rows, "train") == ["10.00", "10.00", "50.0%"]
    assert cells(rows, "together") == ["16.40", "16.40", "82.0%"]
    assert cells(rows, "not accounted for")[-2:] == ["3.60", "18.0%"]


def test_our_checks_are_a_share_of_their_stage_with_the_supervisor_in_it() -> None:
    assert cells(tables.check_table(a_run()), "sample") == ["0.100", "0.300", "2.44%", "2%"]  # 0.4 of 16.4
