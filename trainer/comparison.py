"""Which adapter is best: the adapters compared on the held-out benchmarks, and why one is named.

Only adapters that were scored on the same rows of a benchmark are compared on it. Everything is read
from what `summary.collect_context` returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.markdown import ABSENT, figure, score
from trainer.report import lift_rows

MULTITASK = "adapter_multitask"
KEY_POINTS, FORMAT = "key_point_coverage", "format_compliance"
OVERLAP = "95 % interval overlaps with that of"


def reports(context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reports that speak for their stages, in the order of the line."""
    return [stage["report"] for stage in context["stages"] if stage["report"]]


def held_out(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report's evaluations on held-out benchmarks, by benchmark."""
    return {e["name"]: e for e in report["evaluations"] if e["questions"] == "held_out"}


def comparable_benchmarks(context: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The benchmarks on which adapters can be compared, and a sentence for each of the others."""
    rows: dict[str, set[tuple[str, ...]]] = {}
    for report in reports(context):
        for name, evaluation in held_out(report).items():
            ids = tuple(sorted(str(row["id"]) for row in evaluation["result"]["rows"]))
            rows.setdefault(name, set()).add(ids)
    unequal = [name for name, kinds in rows.items() if len(kinds) > 1]
    sentence = "the adapters were scored on different rows of benchmark {}: not compared on it"
    return sorted(set(rows) - set(unequal)), [sentence.format(name) for name in unequal]


def _mean(report: Mapping[str, Any], benchmarks: Sequence[str], metric: str) -> float | None:
    """The mean of a metric over the benchmarks, None when one of them was not measured."""
    evaluations = held_out(report)
    values = [
        (evaluations[name]["result"]["summary"].get(metric) or {}).get("value")
        for name in benchmarks
        if name in evaluations
    ]
    known = [float(value) for value in values if value is not None]
    if not benchmarks or len(known) < len(benchmarks):
        return None
    return round(sum(known) / len(known), 12)  # equal means have to compare as equal


def best_model(context: Mapping[str, Any]) -> dict[str, str] | None:
    """{"adapter", "stage", "reason"} of the best adapter, None when none can be named.

    Among the adapters whose gate was passed: the highest mean key point coverage over the held-out
    benchmarks; then format compliance; on an exact tie the multitask adapter, then the earlier one.
    """
    return choose(context)[0]


def choose(context: Mapping[str, Any]) -> tuple[dict[str, str] | None, str]:
    """What `best_model` names, and why it, or none, was chosen."""
    passed = [
        stage
        for stage in context["stages"]
        if stage["report"] and stage["state"]["status"] == "passed"
        if stage["report"]["gate"]["passed"]
    ]
    if not passed:
        return None, "no adapter with a matching report has passed its gate"
    names = comparable_benchmarks(context)[0]
    ranked = []
    for stage in passed:
        coverage = _mean(stage["report"], names, KEY_POINTS)
        if coverage is not None:
            compliance = _mean(stage["report"], names, FORMAT)
            rank = (coverage, -1.0 if compliance is None else compliance)
            ranked.append((*rank, stage["adapter"] == MULTITASK, stage))
    if not ranked:
        return None, "no adapter that passed was scored on every held-out benchmark"
    ranked.sort(key=lambda entry: entry[:3], reverse=True)
    best = ranked[0][-1]
    reason = _reason(ranked, names)
    return {"adapter": best["adapter"], "stage": best["name"], "reason": reason}, reason


def _reason(ranked: Sequence[tuple[Any, ...]], names: Sequence[str]) -> str:
    first, rest = ranked[0], ranked[1:]
    where = f"over the held-out benchmarks {' and '.join(names)}"
    text = f"mean key point coverage {figure(first[0])} {where}"
    if not rest:
        return f"the only adapter that passed its gate and was scored on all of them: {text}"
    second = rest[0]
    if first[0] > second[0]:
        text = f"highest {text}; next {second[-1]['adapter']} {figure(second[0])}"
    elif first[1] > second[1]:
        text = f"{text} as {second[-1]['adapter']}, and the higher format compliance"
        text += f" ({figure(first[1])} against {figure(second[1])})"
    else:
        why = "serves both tasks" if first[2] else "comes first in the line"
        text = f"{text}, an exact tie with {second[-1]['adapter']}, and it {why}"
    for entry in rest:
        where_equal = _overlaps(first[-1], entry[-1], names)
        if where_equal:
            text += f"; on {' and '.join(where_equal)} the {OVERLAP} {entry[-1]['adapter']}"
            text += ", so the order there may be chance"
    return text


def _overlaps(one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The benchmarks on which two stages' key point coverage overlaps, or has no interval."""
    found = []
    for name in names:
        first, second = (
            held_out(stage["report"])[name]["result"]["summary"][KEY_POINTS].get("ci95") for stage in (one, other)
        )
        if not first or not second or (first[0] <= second[1] and second[0] <= first[1]):
            found.append(name)
    return found


def lift(context: Mapping[str, Any]) -> list[list[object]]:
    """stage, questions and the cells of `lift_rows`, for each evaluation with a scored base model."""
    rows = []
    for report in reports(context):
        for evaluation in report["evaluations"]:
            summary = {
                metric: entry
                for metric, entry in evaluation["result"]["summary"].items()
                if metric in (KEY_POINTS, FORMAT)
            }
            if evaluation.get("base"):
                head = [report["stage"], evaluation["name"]]
                rows += [head + row for row in lift_rows(summary, evaluation["base"])]
    return rows


def compared(context: Mapping[str, Any], names: Sequence[str]) -> list[list[object]]:
    """adapter × held-out benchmark, the base model first."""
    bases = {n: e.get("base") for report in reports(context) for n, e in held_out(report).items()}
    rows: list[list[object]] = [
        ["no adapter (base model)", ABSENT, *(_pair(bases.get(name)) for name in names), ABSENT]
    ]
    for stage in context["stages"]:
        if stage["report"]:
            found = held_out(stage["report"])
            cells = [_pair(found[n]["result"]["summary"] if n in found else None) for n in names]
            mean = _mean(stage["report"], comparable_benchmarks(context)[0], KEY_POINTS)
            rows.append([stage["adapter"], stage["state"]["status"], *cells, figure(mean)])
        else:
            note = stage["note"] if stage["present"] else "no adapter"
            rows.append([stage["adapter"], note, *[ABSENT] * len(names), ABSENT])
    return rows


def _pair(summary: Mapping[str, Any] | None) -> str:
    if not summary:
        return "not scored"
    return f"{score(summary.get(KEY_POINTS))}; format {score(summary.get(FORMAT))}"
