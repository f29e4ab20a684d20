"""Eval reports: what a reader finds in them, and that no answer of a model breaks them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from trainer import report as reports

HOSTILE = (
    "a | b",
    "line one\nline two\r\n| --- | --- |",
    "`code` ``` fence",
    "\\| already escaped \\\\|",
    "<script>alert(1)</script><img src=x onerror=y>",
    "<!-- swallow the rest",
    "[link](javascript:alert(1)) ![i](http://x/y.png)",
    "\u2028| x |\u2029# head",
    "# heading",
    "\x1b[31mred\x00\x07",
    "lone surrogate \ud83d",
    "\u202egnp.exe",
    "&lt;b&gt; &amp; &#124;",
    "$x | y$ ~~gone~~ **bold** _it_",
)


def entry(value: float | None, n: int = 28) -> dict[str, Any]:
    return {"value": value, "n": n, "ci95": None if value is None else [max(0.0, value - 0.1), 1.0]}


def evaluation(name: str, questions: str, value: float, **more: Any) -> dict[str, Any]:
    summary = {"key_point_coverage": entry(value), "format_compliance": entry(1.0),
               "refusal_accuracy": entry(None, 0)}  # fmt: skip
    rows = [
        {"id": "s-1", "type": "concept", "question": "什么是电场？", "response": "### 结论\n好",
         "derived": False, "metrics": {"key_point_coverage": 1.0}, "missed": []},
        {"id": "s-2", "type": "derivation", "question": "推导 | 高斯定律", "response": "坏的回答",
         "derived": False, "metrics": {"key_point_coverage": 0.5},
         "missed": ["key point: ε₀", "section missing: ### 检查"]},
    ]  # fmt: skip
    result = {"summary": summary, "by_type": {"concept": summary}, "rows": rows, "missing": [],
              "unexpected": []}  # fmt: skip
    return {"name": name, "questions": questions, "file": f"{name}.jsonl", "result": result,
            "base": {"key_point_coverage": entry(0.1)}, "warnings": [], "seconds": 3.0,
            "tokens": 900, **more}  # fmt: skip


def make_report(**changes: Any) -> dict[str, Any]:
    report = {
        "schema": 1, "stage": "style", "adapter": "adapter_style", "plan_id": "p1", "attempt": 1,
        "created_at": "2026-11-22T10:00:00+00:00",
        "gate": {"mode": "strict", "questions": "trained", "passed": False,
                 "targets": {"key_point_coverage": 0.9, "format_compliance": 0.95},
                 "reasons": ["key point coverage 0.710 < 0.90 (n=28)"]},
        "fingerprint": {"training": "aa", "evaluation": "bb", "adapter": "cc",
                        "parts": {"data": "dd"}},
        "evaluations": [evaluation("trained", "trained", 0.71),
                        evaluation("style", "held_out", 0.31)],
        "training": {"steps": 84, "first_loss": 5.2, "last_loss": 0.02, "seconds": 65.2,
                     "dropped": []},
        "parameters": {"seed": {"value": 7, "source": "default"},
                       "learning_rate": {"value": 0.003, "source": "profile embedded"}},
        "environment": {"python": "3.11.7", "gpu": None},
        "times": {"load_seconds": 1.0, "train_seconds": 65.2},
    }  # fmt: skip
    return {**report, **changes}


def tables(markdown: str) -> list[list[str]]:
    """Runs of table lines; cells are split as GFM does, at pipes without a backslash."""
    found: list[list[str]] = [[]]
    for line in markdown.split("\n"):
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [lines for lines in found if lines]


def columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_the_gate_comes_first_with_targets_values_n_and_interval() -> None:
    text = reports.render_eval_report(make_report())
    assert text.index("## Gate: missed (strict)") < text.index("## Scores")
    assert "| trained | key point coverage | 0.900 | 0.710 | 28 | 0.610 to 1.000 | no |" in text
    assert "| trained | format compliance | 0.950 | 1.000 | 28 | 0.900 to 1.000 | yes |" in text
    assert "trained questions: a check of the pipeline, not of generalisation" in text
    assert "key point coverage 0.710 < 0.90" in text


def test_held_out_scores_stand_beside_and_are_not_called_trained() -> None:
    report = make_report(evaluations=[evaluation("style", "held_out", 0.95)])
    report["gate"] |= {"questions": "held_out", "passed": True, "reasons": []}
    text = reports.render_eval_report(report)
    assert "## Gate: passed (strict)" in text
    assert "not of generalisation" not in text
    both = reports.render_eval_report(make_report())
    assert "| metric | trained | style (held-out) |" in both


def test_what_the_gate_itself_measured_counts() -> None:
    gate = {"mode": "strict", "questions": "trained", "passed": False, "reasons": [],
            "targets": {"answered": 1.0},
            "measured": {"answered": {"value": 2 / 3, "n": 3}}}  # fmt: skip
    rows = reports.gate_rows(make_report(gate=gate))
    assert [(r["metric"], r["value"], r["n"], r["met"]) for r in rows] == [("answered", 2 / 3, 3, False)]


@pytest.mark.parametrize(
    ("mode", "passed", "words"),
    [
        ("warn", False, "missed (warn: recorded"),
        ("warn", True, "passed (warn)"),
        ("off", False, "off, not judged (with a gate it would have been missed)"),
        ("off", True, "would have been passed"),
    ],
)
def test_the_verdict_names_what_the_mode_makes_of_it(mode: str, passed: bool, words: str) -> None:
    assert words in reports.verdict({"mode": mode, "passed": passed})


def test_every_failed_row_is_named_and_no_good_one() -> None:
    text = reports.render_eval_report(make_report())
    failed = text[text.index("## Rows that missed") : text.index("## Training")]
    assert failed.count("| s-2 |") == 2
    assert "key point: ε₀; section missing: \\### 检查" not in failed
    assert "key point: ε₀; section missing: ### 检查" in failed
    assert "推导 \\| 高斯定律" in failed
    assert "坏的回答" in failed
    assert "s-1" not in failed


def test_lift_shows_value_base_and_difference() -> None:
    text = reports.render_eval_report(make_report())
    assert "| key point coverage | 28 | 0.710 | 0.100 | +0.610 |" in text
    alone = evaluation("trained", "trained", 0.71, base=None)
    assert "The base model was not scored" in reports.render_eval_report(make_report(evaluations=[alone]))


def test_leakage_warnings_stand_at_the_score() -> None:
    leaky = evaluation("style", "held_out", 0.9, warnings=["leakage: row b-1 is training row s-1"])
    text = reports.render_eval_report(make_report(evaluations=[leaky]))
    scores = text[text.index("## Scores") : text.index("## Lift")]
    assert "leakage: row b-1 is training row s-1" in scores
    assert "style (held-out) (see warning)" in scores
    assert "see warning" not in reports.render_eval_report(make_report())


def test_parameters_that_differ_come_before_defaults() -> None:
    text = reports.render_eval_report(make_report())
    assert text.index("| learning_rate | 0.003 | profile embedded |") < text.index("| seed | 7 | default |")


def test_every_choice_stands_there_with_its_reason() -> None:
    assert "## How it was run\n\nNot recorded." in reports.render_eval_report(make_report())
    choices = [
        {"name": "gradient_checkpointing", "value": False, "reason": "48.2 GB of 150.1 GB needed without it"},
        {"name": "tokens_per_pass", "value": 4096, "reason": "asked for | <b>"},
    ]
    text = reports.render_eval_report(make_report(choices=choices))
    assert "| gradient checkpointing | false | 48.2 GB of 150.1 GB needed without it |" in text
    assert "| tokens per pass | 4096 | asked for \\| " in text and "<b>" not in text


def test_a_resumed_training_tells_where_it_went_on_from() -> None:
    training = make_report()["training"]
    plain = {**training, "resumed_from_steps": [], "checkpoints_written": 2, "checkpoint_seconds": 0.5}
    skipped = [{"name": "step-40", "reason": "its writing was interrupted"}]
    resumed = {**plain, "resumed_from_steps": [20, 30], "checkpoints_skipped": skipped}
    cells = [cell for table in tables(reports.render_eval_report(make_report(training=resumed))) for cell in table]
    for wanted in (
        "| resumed from | step 20, step 30 |",
        "| time of all attempts | 1 min 05 s |",
        "| time of checkpoints | 0.5 s |",
        "| checkpoint not used | step-40: its writing was interrupted |",
    ):
        assert wanted in cells  # fmt: skip
    cells = [cell for table in tables(reports.render_eval_report(make_report(training=plain))) for cell in table]
    assert "| resumed from | nothing (trained in one go) |" in cells and "| time | 1 min 05 s |" in cells


def section(markdown: str, title: str) -> str:
    return markdown.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_every_part_of_the_time_has_its_share_and_what_no_part_explains() -> None:
    times = {"import_seconds": 6.0, "load_seconds": 0.0, "train_seconds": 60.0, "base_seconds": 14.0}
    text = section(reports.render_eval_report(make_report(times=times, wall_seconds=100.0)), "Where the time went")
    for row in (
        "| import | 6.0 s | 6% |", "| load | 0.0 s | 0% |", "| train | 1 min 00 s | 60% |", "| base | 14.0 s | 14% |",
        "| not accounted for | 20.0 s | 20% |", "| together | 1 min 40 s | 100% |",
    ):  # fmt: skip
        assert row in text
    older = section(reports.render_eval_report(make_report(times=times)), "Where the time went")
    assert "not accounted for" not in older and "| together | 1 min 20 s | 100% |" in older
    assert "Not recorded." in section(reports.render_eval_report(make_report(times={})), "Where the time went")


def test_the_estimate_stands_beside_what_was_measured() -> None:
    estimate = {"memory_bytes": 2_000_000_000, "train_seconds": 130.4, "train_tokens_per_second": 1200.0,
                "generate_seconds": 4.0, "seconds_from": "the last run (stage style, 2026-01-02 03:04)"}  # fmt: skip
    measured = {"peak_memory_bytes": 1_500_000_000, "train_tokens_per_second": 2400.0}
    report = make_report(estimate=estimate, measured=measured)
    text = section(reports.render_eval_report(report), "Estimated and measured")
    for row in (
        "| memory of the process | 2.00 GB | 1.50 GB | 0.75 |",
        "| training | 2 min 10 s | 1 min 05 s | 0.50 |",
        "| training | 1,200 tokens/s | 2,400 tokens/s | 2.00 |",
        "| answers with the adapter | 4.0 s | – | – |",
    ):
        assert row in text
    assert "estimated from the last run (stage style, 2026-01-02 03:04)." in text
    del estimate["seconds_from"]
    assert "No times were estimated" in section(reports.render_eval_report(report), "Estimated and measured")


def test_a_report_without_an_estimate_says_what_was_measured_alone() -> None:
    measured = make_report(measured={"peak_memory_bytes": 1_500_000_000})
    text = section(reports.render_eval_report(measured), "Estimated and measured")
    assert "| memory of the process | – | 1.50 GB | – |" in text
    nothing = reports.render_eval_report(make_report(training={}, times={}))
    assert "Not recorded." in section(nothing, "Estimated and measured")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_answer_breaks_a_table_or_becomes_html(hostile: str) -> None:
    report = make_report()
    clean = reports.render_eval_report(report)
    for item in report["evaluations"]:
        item["result"]["rows"][1] |= {"question": hostile, "response": hostile, "missed": [hostile],
                                      "type": hostile, "id": hostile}  # fmt: skip
        item["result"]["by_type"] = {hostile: item["result"]["summary"]}
        item["result"]["missing"] = [hostile]
    text = reports.render_eval_report(report)
    assert [[columns(line) for line in lines] for lines in tables(text)] == [
        [columns(line) for line in lines] for lines in tables(clean)
    ]
    headings = [line for line in text.split("\n") if line.startswith("#")]
    assert headings == [line for line in clean.split("\n") if line.startswith("#")]
    assert not re.search(r"<[^ ]", text)
    assert not re.search("[\x00-\x09\x0b-\x1f\u2028\u2029\u202e\ud800-\udfff]", text)
    text.encode("utf-8")


def test_both_files_are_written_and_the_json_is_strict(tmp_path: Path) -> None:
    report = make_report()
    report["training"]["last_loss"] = math.nan
    report["evaluations"][0]["result"]["rows"][0]["response"] = "\ud83d"
    json_path, markdown_path = reports.write_eval_report(report, tmp_path)
    assert (json_path.name, markdown_path.name) == (
        "eval_report_style.json",
        "eval_report_style.md",
    )
    stored = json.loads(json_path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert stored["training"]["last_loss"] is None
    assert "| last loss | nan |" in markdown_path.read_text(encoding="utf-8")
    assert stored["evaluations"][0]["result"]["rows"][0]["response"] == "\ud83d"
    assert stored["evaluations"][1] == report["evaluations"][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "eval_report_style.json",
        "eval_report_style.md",
    ]


def test_a_failed_write_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    json_path, _ = reports.write_eval_report(make_report(), tmp_path)
    before = json_path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        reports.write_eval_report(make_report(attempt=2), tmp_path)
    assert json_path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({}, ""),
        ({"reference": 1}, "; 1 answer ended at the cap (1 by max_new_tokens_ratio)"),
        (
            {"reference": 2, "max_new_tokens": 1, "context": 1},
            "; 4 answers ended at the cap (1 by the model's context, 1 by max_new_tokens, 2 by max_new_tokens_ratio)",
        ),
    ],
)
def test_answers_that_ended_at_their_cap_are_counted(cut: dict[str, int], words: str) -> None:
    text = reports.render_eval_report(make_report(evaluations=[evaluation("trained", "trained", 0.7, cut=cut)]))
    (line,) = [line for line in text.splitlines() if "tokens generated" in line]
    assert line == f"- trained: 900 tokens generated in 3.0 s{words}"


def test_batches_that_memory_did_not_hold_are_named() -> None:
    halving = {"during": "answering", "batch": 64, "next_batch": 32, "message": "CUDA out of memory"}
    text = reports.render_eval_report(make_report(out_of_memory=[halving, {"during": "training"}]))
    assert text.count("Memory did not hold") == 1
    assert "- Memory did not hold 64 questions at a time, so 32 were asked" in text.splitlines()
    assert "Memory did not hold" not in reports.render_eval_report(make_report(out_of_memory=[]))
