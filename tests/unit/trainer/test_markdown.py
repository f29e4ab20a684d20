"""Markdown: what a reader sees of untrusted text, and figures that never flatter."""

from __future__ import annotations

import math

import pytest

from trainer import markdown


def test_table_refuses_a_row_of_another_length() -> None:
    assert markdown.table(["a", "b"], [[1, "x|y"]]).splitlines()[-1] == "| 1 | x\\|y |"
    with pytest.raises(ValueError, match="2 columns"):
        markdown.table(["a", "b"], [[1, 2, 3]])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("per_device_train_batch_size", "per_device_train_batch_size"),
        ("_emphasis_", "\\_emphasis\\_"),
        ("0.71 < 0.90", "0.71 < 0.90"),
        ("0.71 <0.90", "0.71 &lt;0.90"),
        ("R&D", "R&amp;D"),
        ("1. item", "1\\. item"),
        ("0.91", "0.91"),
        ("- item", "\\- item"),
        ("-0.2", "-0.2"),
        (True, "true"),
        (None, "–"),
        (["q_proj", "v_proj"], "q_proj, v_proj"),
    ],
)
def test_escape_changes_only_what_markdown_would_read(value: object, shown: str) -> None:
    assert markdown.escape(value) == shown


def test_code_in_own_sentences_stays_code_and_tags_do_not() -> None:
    assert markdown.prose("run `a_b -e c=1` now <b>") == "run `a_b -e c=1` now &lt;b>"
    assert markdown.prose("one ` alone | here") == "one \\` alone \\| here"


@pytest.mark.parametrize(
    ("value", "target", "shown"),
    [(0.9, 0.9, "0.900"), (0.89996, 0.9, "0.89996"), (0.99999, 1.0, "0.99999"), (1.0, 1.0, "1.000"),
     (0.8999999999, 0.9, "0.8999999999"), (math.nan, 1.0, "nan"), (None, 1.0, "–")],
)  # fmt: skip
def test_a_missed_target_never_looks_reached(value: float | None, target: float, shown: str) -> None:
    assert markdown.figure(value, target) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(4.24, "4.2 s"), (59.94, "59.9 s"), (185, "3 min 05 s"), (3720, "1 h 02 min"), (None, "–"), (math.nan, "–")],
)
def test_durations_are_written_as_a_person_reads_them(seconds: float | None, shown: str) -> None:
    assert markdown.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (6_100_000_000, "bytes", "6.10 GB"),
        (65.2, "seconds", "1 min 05 s"),
        (15_012.4, "tokens/s", "15,012 tokens/s"),
        (105.83, "tokens/s", "105.8 tokens/s"),
        (None, "bytes", "–"),
        (math.nan, "tokens/s", "–"),
    ],
)
def test_quantities_are_written_with_their_unit(value: float | None, unit: str, shown: str) -> None:
    assert markdown.quantity(value, unit) == shown


def test_a_template_gets_nothing_through_unescaped() -> None:
    issue = {"time": "t", "phase": "p", "stage": "s", "severity": "error", "cause": "c", "action": "a"}
    text = markdown.render("issues.md.j2", issues=[{**issue, "symptom": "<b>|x"}], problems=[])
    assert "- Symptom: &lt;b>\\|x" in text
    assert text.endswith("\n") and not text.endswith("\n\n")
