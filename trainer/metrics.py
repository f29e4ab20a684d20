"""The metrics of an answer set, each between 0 and 1, each with n and a 95 % interval.

key_point_coverage   share of the row's key points that the answer covers (see `keypoints`)
format_compliance    1 when the answer has its own prompt's sections and ended by itself
                     (see `sections`)
refusal_accuracy     1 when the answer refuses exactly when it should (see `refusal`)
citation_accuracy    with a `citations` list in the prediction: F1 against the expected ones, so
                     that invented citations cost; else the share of the expected ones found in
                     the text, where an invented one cannot be told from prose
tool_call_accuracy   1 when the calls equal the expected ones, names and arguments, in any order

A row carries a metric only when it says what is expected. A missing or empty answer (no text
beside think blocks, and no tool call) counts 0 in every metric that its row carries, refusals
included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer import keypoints
from trainer.data import Row, question
from trainer.judges import JUDGES
from trainer.mathtext import normal, without_thinking
from trainer.records import by_id, expectations, is_empty, response
from trainer.sections import format_faults

METRICS = (
    "key_point_coverage",
    "format_compliance",
    "refusal_accuracy",
    "citation_accuracy",
    "tool_call_accuracy",
)
_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def score(benchmark_rows: Sequence[Row], predictions: Sequence[Row]) -> dict[str, Any]:
    """Scores predictions against benchmark rows (with `expected` or with a reference answer, mixed freely).

    Returns {"summary", "by_type", "rows", "missing", "unexpected"}; rows stand in benchmark order
    with their metrics and what they missed. RecordError (a ValueError) for a row or prediction without
    id, for an id given twice, and for rows or predictions that cannot be judged.
    """
    rows = by_id(benchmark_rows, "benchmark")
    answers = by_id(predictions, "predictions")
    scored = [_score_row(row, answers.get(key)) for key, row in rows.items()]
    types = dict.fromkeys(row["type"] for row in scored)
    return {
        "summary": summarise(scored),
        "by_type": {kind: summarise([row for row in scored if row["type"] == kind]) for kind in types},
        "rows": scored,
        "missing": [row["id"] for key, row in rows.items() if key not in answers],
        "unexpected": [item["id"] for key, item in answers.items() if key not in rows],
    }


def _score_row(row: Row, prediction: Row | None) -> dict[str, Any]:
    points, expected = expectations(row)
    answer = prediction or {}
    if is_empty(answer):
        carried = {"format_compliance", *expected, *(["key_point_coverage"] if points else [])}
        metrics = {name: 0.0 for name in METRICS if name in carried}
        missed = ["no prediction" if prediction is None else "empty answer"]
    else:
        metrics, missed = _judge(row, answer, points, expected)
    return {
        "id": row["id"],
        "type": str(row.get("type") or (row.get("meta") or {}).get("type") or "other"),
        "question": question(row),
        "response": response(answer),
        "derived": any(point.derived for point in points),
        "metrics": metrics,
        "missed": missed,
    }


def _judge(
    row: Row, answer: Row, points: Sequence[keypoints.KeyPoint], expected: Mapping[str, Any]
) -> tuple[dict[str, float], list[str]]:
    """The metrics of an answer that says something, and what it missed in words."""
    text = without_thinking(response(answer))
    metrics: dict[str, float] = {}
    missed: list[str] = []
    if points:
        form = normal(text)
        gaps = [point.label for point in points if not keypoints.covered(point, form)]
        metrics["key_point_coverage"] = 1 - len(gaps) / len(points)
        missed += [f"key point: {gap}" for gap in gaps]
    faults = format_faults(row, answer)
    metrics["format_compliance"] = float(not faults)
    missed += faults
    for metric, wanted in expected.items():
        metrics[metric], faults = JUDGES[metric](wanted, answer, text)
        missed += faults
    return metrics, missed


def summarise(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Each metric's mean over the scored rows that carry it: {metric: {"value", "n", "ci95"}}."""
    found = [row["metrics"] for row in rows]
    return {name: _figure([item[name] for item in found if name in item]) for name in METRICS}


def answered(predictions: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """Share of the rows that have a non-empty answer: {"value", "n", "ci95"}."""
    answers = by_id(predictions, "predictions")
    return _figure([float(not is_empty(answers.get(str(row["id"]), {}))) for row in rows])


def _figure(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"value": None, "n": 0, "ci95": None}
    value = math.fsum(values) / len(values)
    return {"value": value, "n": len(values), "ci95": list(wilson(value, len(values)))}


def wilson(mean: float, n: int) -> tuple[float, float]:
    """95 % score interval of a mean of n values in [0, 1] (Wilson, J. Am. Stat. Assoc. 22, 1927,
    209-212).

    Exact in form for values 0 and 1; for values between them the variance is at most mean * (1 -
    mean), so the interval is wider than need be, never narrower.
    """
    z2 = _Z95 * _Z95
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(max(0.0, mean * (1 - mean)) / n + z2 / (4 * n * n))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
