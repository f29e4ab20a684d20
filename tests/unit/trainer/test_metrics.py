"""What each metric counts, which rows carry it, and what a missing or empty answer costs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trainer.benchmark_rows import GOOD, one, reference_row, row
from trainer import fingerprint, metrics

ROOT = Path(__file__).parents[3]
DATA = ROOT / "data" / "training"
HASHED_BY_VALUE = {"config", "stages", "errors"}  # parameters and gates are parts of their own


def test_shape_of_the_result() -> None:
    rows = [row(), {**row(), "id": "b", "type": "calculation"}, {**row(), "id": "c"}]
    predictions = [{"id": "b", "response": "E=0"}, {"id": "a", "response": "E=1"}]
    result = metrics.score(rows, [*predictions, {"id": "z", "response": "E=0"}])
    assert set(result) == {"summary", "by_type", "rows", "missing", "unexpected"}
    assert tuple(result["summary"]) == metrics.METRICS
    assert result["summary"]["key_point_coverage"]["value"] == pytest.approx(1 / 3)
    assert result["summary"]["key_point_coverage"]["n"] == 3
    assert result["summary"]["citation_accuracy"] == {"value": None, "n": 0, "ci95": None}
    assert list(result["by_type"]) == ["concept", "calculation"]
    assert result["by_type"]["concept"]["format_compliance"]["value"] == 0.5
    assert [item["id"] for item in result["rows"]] == ["a", "b", "c"]
    assert result["missing"] == ["c"] and result["unexpected"] == ["z"]
    first = result["rows"][0]
    assert first["question"] == "导体内部的电场是多少？" and first["response"] == "E=1"
    assert first["missed"] == ["key point: E=0"] and first["derived"] is False
    assert json.loads(json.dumps(result)) == result


def test_type_and_question_have_fallbacks() -> None:
    scored = one({"id": "a", "query": "问？", "expected": {"key_points": ["x"]}}, "x")
    assert (scored["type"], scored["question"]) == ("other", "问？")
    scored = one({**row(), "type": None, "meta": {"type": "units"}}, "E=0")
    assert scored["type"] == "units"


def test_empty_key_points_carry_no_coverage() -> None:
    assert "key_point_coverage" not in one(row({"key_points": [], "should_refuse": False}), "x")["metrics"]


@pytest.mark.parametrize(
    "prediction",
    [
        None,
        {"response": ""},
        {"response": " \n\u3000"},
        {"response": None},
        {"response": "<think>只是想</think>"},
        {"response": "<think>没想完"},
        {"response": "", "refused": False, "citations": ["教材"]},
    ],
)
def test_missing_and_empty_answers_count_zero_everywhere(prediction: dict[str, Any] | None) -> None:
    expected = {
        "key_points": ["E=0"],
        "should_refuse": False,
        "citations": ["教材"],
        "tool_calls": [{"name": "f", "arguments": {}}],
    }
    answers: list[dict[str, Any]] = [] if prediction is None else [{"id": "a", **prediction}]
    result = metrics.score([row(expected)], answers)
    assert result["rows"][0]["metrics"] == dict.fromkeys(metrics.METRICS, 0.0)
    assert result["rows"][0]["missed"] == ["no prediction" if prediction is None else "empty answer"]
    assert result["missing"] == (["a"] if prediction is None else [])
    assert metrics.answered(answers, [row()])["value"] == 0


def test_answered_counts_text_and_tool_calls() -> None:
    rows = [{**row(), "id": str(index)} for index in range(4)]
    predictions: list[dict[str, Any]] = [
        {"id": "0", "response": "E=0"},
        {"id": "1", "response": "<think>x</think>"},
        {"id": "2", "response": "", "tool_calls": [{"name": "f", "arguments": {}}]},
    ]
    assert metrics.answered(predictions, rows)["value"] == 0.5
    assert metrics.answered(predictions, rows)["n"] == 4
    assert metrics.answered([], []) == {"value": None, "n": 0, "ci95": None}


def test_messages_only_rows_are_derived() -> None:
    reference = (
        "### 结论\n导体内部的场强处处为零，电荷只在表面。\n"
        "### 推导\n若内部有场，自由电荷会继续移动。\n"
        "### 检查（量纲与极限）\n场强的单位是 V/m，与定义一致。"
    )
    scored = one(reference_row(reference), reference)
    assert scored["derived"] is True
    assert scored["metrics"] == {"key_point_coverage": 1.0, "format_compliance": 1.0}
    assert one(reference_row(reference), GOOD)["metrics"]["key_point_coverage"] < 0.2


@pytest.mark.parametrize("name", ["style_sft", "writing_sft", "all_sft"])
def test_the_course_data_answers_itself(name: str) -> None:
    text = (DATA / "processed" / f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    answers = [{"id": item["id"], "response": item["messages"][-1]["content"]} for item in rows]
    result = metrics.score(rows, answers)
    for metric in ("key_point_coverage", "format_compliance", "refusal_accuracy"):
        assert result["summary"][metric]["value"] == 1, metric
    assert all(item["missed"] == [] for item in result["rows"])


def test_wilson_against_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for hits, n, low, high in [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)
    ]:  # fmt: skip
        assert metrics.wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_interval_holds_the_mean(values: list[float]) -> None:
    rows = [{"metrics": {"format_compliance": value}} for value in values]
    figure = metrics.summarise(rows)["format_compliance"]
    low, high = figure["ci95"]
    assert 0 <= low <= figure["value"] <= high <= 1
    assert high > low and figure["n"] == len(values)


def test_every_module_that_a_score_is_made_with_is_in_its_fingerprint() -> None:
    reached, waiting = set(), ["metrics"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        text = (ROOT / "trainer" / f"{name}.py").read_text(encoding="utf-8")
        found = re.findall(r"^from trainer\.(\w+) import", text, re.MULTILINE)
        found += [
            part for line in re.findall(r"^from trainer import (.+)", text, re.MULTILINE) for part in line.split(", ")
        ]
        waiting += set(found) - reached - HASHED_BY_VALUE
    assert {"keypoints", "latex", "sections"} < reached <= set(fingerprint.EVALUATION_MODULES)
    assert all((ROOT / "trainer" / f"{name}.py").is_file() for name in fingerprint.EVALUATION_MODULES)
