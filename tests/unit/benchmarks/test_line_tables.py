from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import line_tables as tables
from benchmarks.line import FOUND_COUNTS, check_equal
from benchmarks.line_tables import Run


def a_run(seconds: float = 20.0, steps: int = 20) -> Run:
    counts = {
        "steps": steps, "trained_tokens": 300, "answered": 2, "base_answered": 2, "generated_tokens": 15,
        "base_tokens": 48,
    }  # fmt: skip
    parts = {"import": 4.0, "train": 10.0, "generate": 2.0, "base": 1.0, "check": 0.1}
    scores = {"sample: trained, adapter": {"key_point_coverage": {"value": 0.5, "n": 2}}}
    return Run(seconds, {"sample": parts}, {"sample": counts}, scores, {"sample": 0.3})


def cells(rows: object, title: str) -> list[str]:
    """The cells of the row with this title."""
    found = [line for line in "\n".join(rows).splitlines() if line.startswith(f"| {title} |")]  # type: ignore[arg-type]
    assert len(found) == 1, (title, found)
    return [cell.strip() for cell in found[0].strip("|").split("|")][1:]


def test_sides_are_compared_by_the_medians_of_their_runs() -> None:
    mine, tuned, found = [a_run(10.0), a_run(20.0), a_run(90.0)], [a_run(60.0)], [a_run(80.0), a_run(100.0)]
    rows = list(tables.side_table(mine, tuned, found, a_run(15.0)))
    assert cells(rows, r"**the whole job**") == ["20.0", "60.0", "3.0", "90.0", "4.5", "15.0"]
    assert cells(rows, "training") == ["10.0", "10.0", "1.0", "10.0", "1.0", "10.0"]
    # What no part accounts for: 20 of which 17.1 are known.
    assert cells(rows, "rest") == ["2.9", "42.9", "14.8", "72.9", "25.1", "-2.1"]


def test_the_job_without_the_base_s_answers_has_a_row() -> None:
    found = a_run(91.0)
    found.parts["sample"]["base"] = 34.0
    rows = list(tables.side_table([a_run()], [a_run(39.0)], [found], a_run()))
    assert cells(rows, "answers of the base") == ["1.0", "1.0", "1.0", "34.0", "34.0", "1.0"]
    assert cells(rows, "the job without the base's answers") == ["19.0", "38.0", "2.0", "57.0", "3.0", "19.0"]


def test_a_part_that_took_no_time_has_no_ratio() -> None:
    rows = list(tables.side_table([a_run()], [a_run()], [a_run()], a_run()))
    assert cells(rows, "adapter saved") == ["0.0", "0.0", "–", "0.0", "–", "0.0"]


@pytest.mark.parametrize(("seconds", "said"), [(80.0, "4.00, met."), (79.8, "3.99, missed.")])
def test_the_aim_is_about_the_scripts_as_found_and_both_ratios_are_told(seconds: float, said: str) -> None:
    text = tables.verdict([a_run(20.0)], [a_run(500.0)], [a_run(seconds)], whole=True)
    assert text == (
        f"The aim of at least 4 is about the scripts as found, the obvious way: {said} Of the scripts, tuned: 25.00."
    )


def test_a_part_of_the_job_neither_meets_nor_misses_the_aim() -> None:
    text = tables.verdict([a_run(20.0)], [a_run(500.0)], [a_run(80.0)], whole=False)
    assert ": 4.00, of a part of the job" in text and " met" not in text and "tuned: 25.00." in text


def test_sides_that_did_other_work_are_an_error() -> None:
    check_equal(a_run(steps=20), a_run(steps=20), tables.TUNED)
    with pytest.raises(SystemExit, match=r"error: the sides differ: steps 20 \(ours\) and 21 \(scripts, tuned\)"):
        check_equal(a_run(steps=20), a_run(steps=21), tables.TUNED)


def test_of_the_scripts_as_found_only_the_base_s_answers_may_differ() -> None:
    found = a_run()
    found.counts["sample"]["base_answered"] = 3
    check_equal(a_run(), found, tables.FOUND, FOUND_COUNTS)
    with pytest.raises(SystemExit, match=r"base answered 2 \(ours\) and 3 \(scripts, tuned\)"):
        check_equal(a_run(), found, tables.TUNED)
    for name in ("steps", "trained_tokens", "answered"):
        other = a_run()
        other.counts["sample"][name] += 1
        with pytest.raises(SystemExit, match=f"{name.replace('_', ' ')} .* \\(scripts as found\\)"):
            check_equal(a_run(), other, tables.FOUND, FOUND_COUNTS)


def test_generated_tokens_may_differ_and_are_shown() -> None:
    other = a_run()
    other.counts["sample"]["generated_tokens"] = 17
    check_equal(a_run(), other, tables.TUNED)
    rows = list(tables.count_table({"ours": a_run(), "theirs": other, "shipped": a_run()}))
    assert "\n".join(rows).startswith("| work | ours | theirs | shipped |\n|---|---|---|---|\n")
    assert cells(rows, "generated tokens") == ["15", "17", "15"]


def test_scores_of_all_sides_stand_in_one_row() -> None:
    other = replace(a_run(), scores={"sample: trained, adapter": {"key_point_coverage": {"value": None, "n": 0}}})
    rows = list(tables.score_table({"ours": a_run(), "theirs": other, "shipped": a_run()}))
    assert cells(rows, "sample: trained, adapter") == ["key point coverage", "0.500", "–", "0.500"]


def test_where_the_time_goes_adds_up_to_the_whole_job() -> None:
    rows = list(tables.stage_table(a_run(20.0)))
    assert cells(rows, "train") == ["10.00", "10.00", "50.0%"]
    assert cells(rows, "together") == ["17.40", "17.40", "87.0%"]
    assert cells(rows, "not accounted for")[-2:] == ["2.60", "13.0%"]


def test_our_checks_are_a_share_of_their_stage_with_the_supervisor_in_it() -> None:
    assert cells(tables.check_table(a_run()), "sample") == ["0.100", "0.300", "2.30%", "2%"]  # 0.4 of 17.4
