"""Evaluation reports: eval_report_<stage>.json, the Markdown made from it, and how both are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer import account, state
from trainer.markdown import ABSENT, duration, figure, interval, label, quantity, render, score, shorten, signed

TRAINED_NOTE = "trained questions: a check of the pipeline, not of generalisation"
HELD_OUT_NOTE = "held-out questions: kept apart from the training rows"
LEAKY_NOTE = "held-out questions, of which some resemble training rows (see warning)"
QUESTION_CHARS, ANSWER_CHARS = 60, 100


def gate_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target of the gate against what was measured on the questions that the gate looks at.

    Keys: evaluation, metric, target, value, n, ci95, met. What the gate itself measured counts (all
    its question sets together); without it there is a row for each evaluation.
    """
    gate = report["gate"]
    if gate.get("measured"):
        judged = [(gate["questions"].replace("_", "-"), gate["measured"])]
    else:
        judged = [
            (evaluation["name"], {"answered": evaluation.get("answered"), **_summary(evaluation)})
            for evaluation in report["evaluations"]
            if evaluation["questions"] == gate["questions"]
        ]
    rows = []
    for name, figures in judged:
        for metric, target in gate["targets"].items():
            entry = figures.get(metric) or {}
            value = entry.get("value")
            row = {"evaluation": name, "metric": metric, "target": target, "value": value}
            row |= {"n": entry.get("n", 0), "ci95": entry.get("ci95")}
            rows.append({**row, "met": value is not None and value >= target})
    return rows


def _summary(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return dict(evaluation["result"]["summary"])


def target_cells(row: Mapping[str, Any]) -> list[object]:
    """A row of `gate_rows` for a table: questions, metric, target, value, n, interval, met."""
    value, target = figure(row["value"], row["target"]), figure(row["target"])
    met = "yes" if row["met"] else "no"
    name = label(row["metric"])
    return [row["evaluation"], name, target, value, row["n"], interval(row["ci95"]), met]


def render_eval_report(report: Mapping[str, Any]) -> str:
    """The Markdown of one eval_report (the JSON shape that `write_eval_report` stores)."""
    evaluations = [_evaluation_view(evaluation) for evaluation in report["evaluations"]]
    names = [e["heading"] + (" (see warning)" if e["warnings"] else "") for e in evaluations]
    measured = [m for e in evaluations for m, entry in e["summary"].items() if entry.get("n")]
    return render(
        "eval_report.md.j2",
        report=report,
        verdict=verdict(report["gate"]),
        note=TRAINED_NOTE if report["gate"]["questions"] == "trained" else HELD_OUT_NOTE,
        gate_table=[target_cells(row) for row in gate_rows(report)],
        overview_head=["metric", *names],
        overview=[
            [label(metric), *(score(item["summary"].get(metric)) for item in evaluations)]
            for metric in dict.fromkeys(measured)
        ],
        evaluations=evaluations,
        choices=choice_rows(report.get("choices") or []),
        estimates=_estimate_rows(report),
        estimated_from=(report.get("estimate") or {}).get("seconds_from"),
        times=_time_rows(report.get("times") or {}, report.get("wall_seconds")),
        halvings=[
            f"{item['batch']} questions at a time, so {item['next_batch']} were asked"
            for item in report.get("out_of_memory") or []
            if item.get("during") == "answering"
        ],
        training=_training_rows(report.get("training") or {}),
        environment=list((report.get("environment") or {}).items()),
        fingerprint=fingerprint_rows(report.get("fingerprint") or {}),
        parameters=[
            [name, entry["value"], entry["source"]]
            for name, entry in ordered_parameters(report.get("parameters") or {})
        ],
    )


def verdict(gate: Mapping[str, Any]) -> str:
    """The gate in a few words: passed, missed, and what the mode makes of it."""
    word = "passed" if gate["passed"] else "missed"
    if gate["mode"] == "off":
        return f"off, not judged (with a gate it would have been {word})"
    if gate["mode"] == "warn" and not gate["passed"]:
        return "missed (warn: recorded, later stages go on, the run ends with exit code 6)"
    return f"{word} ({gate['mode']})"


def ordered_parameters(parameters: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What differs from the defaults first; the given order within both halves."""
    return sorted(parameters.items(), key=lambda item: item[1]["source"] == "default")


def choice_rows(choices: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    """Each choice with its value and why."""
    return [[label(choice["name"]), choice["value"], choice["reason"]] for choice in choices]


def fingerprint_rows(fingerprint: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The hashes of a fingerprint, the parts of the training hash last."""
    whole = [(name, value) for name, value in fingerprint.items() if name != "parts"]
    return whole + list((fingerprint.get("parts") or {}).items())


def _evaluation_view(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    summary, base = evaluation["result"]["summary"], evaluation.get("base")
    trained = evaluation["questions"] == "trained"
    warnings = evaluation.get("warnings") or []
    name = evaluation["name"]
    by_type = evaluation["result"].get("by_type") or {}
    metrics = [metric for metric in summary if summary[metric].get("n")]
    failed = [row for row in evaluation["result"]["rows"] if any(v < 1 for v in row["metrics"].values())]
    return {
        "name": name,
        "heading": name if trained else f"{name} (held-out)",
        "note": TRAINED_NOTE if trained else LEAKY_NOTE if warnings else HELD_OUT_NOTE,
        "file": evaluation.get("file"),
        "summary": summary,
        "warnings": warnings,
        "seconds": duration(evaluation.get("seconds")),
        "tokens": evaluation.get("tokens"),
        "cut": _cut_line(evaluation.get("cut") or {}),
        "rows": len(evaluation["result"]["rows"]),
        "missing": evaluation["result"].get("missing") or [],
        "unexpected": evaluation["result"].get("unexpected") or [],
        "lift": lift_rows(summary, base) if base else [],
        "types_head": ["type", *map(label, metrics)],
        "types": [[kind, *(score(figures.get(m)) for m in metrics)] for kind, figures in by_type.items()],
        "failed": [_failed_row(row) for row in failed],
    }


def _cut_line(cut: Mapping[str, int]) -> str:
    """How many answers ended at their cap and which caps those were, "" when none did."""
    caps = {"reference": "max_new_tokens_ratio", "max_new_tokens": "max_new_tokens", "context": "the model's context"}
    parts = ", ".join(f"{count} by {caps.get(name, name)}" for name, count in sorted(cut.items()))
    count = sum(cut.values())
    return f"{count} {'answer' if count == 1 else 'answers'} ended at the cap ({parts})" if count else ""


def lift_rows(summary: Mapping[str, Any], base: Mapping[str, Any]) -> list[list[object]]:
    """Each measured metric: its name, n, with the adapter, the base model alone, the difference."""
    rows: list[list[object]] = []
    for metric, entry in summary.items():
        if entry.get("n"):
            before = (base.get(metric) or {}).get("value")
            rows.append(
                [
                    label(metric),
                    entry["n"],
                    figure(entry.get("value")),
                    figure(before),
                    signed(entry.get("value"), before),
                ]
            )
    return rows


def _failed_row(row: Mapping[str, Any]) -> list[object]:
    below = [f"{label(metric)} {figure(value)}" for metric, value in row["metrics"].items() if value < 1]
    return [
        row["id"],
        row["type"],
        shorten(row.get("question"), QUESTION_CHARS),
        "; ".join(below),
        "; ".join(map(str, row.get("missed") or [])),
        shorten(row.get("response"), ANSWER_CHARS) or "(empty)",
    ]


def _time_rows(times: Mapping[str, float], wall_seconds: float | None) -> list[list[object]]:
    """The parts of a stage's time with their shares of the whole, and what no part accounts for."""
    known = {name: value for name, value in times.items() if value is not None}
    if not known:
        return []
    parts = [(label(name.removesuffix("_seconds")), value) for name, value in known.items()]
    total = sum(known.values())
    if wall_seconds is not None:
        parts.append(("not accounted for", max(0.0, wall_seconds - total)))
        total = max(total, wall_seconds)
    rows = [(name, duration(value), f"{value / total:.0%}" if total else ABSENT) for name, value in parts]
    return [list(row) for row in [*rows, ("together", duration(total), "100%" if total else ABSENT)]]


def _estimate_rows(report: Mapping[str, Any]) -> list[list[object]]:
    return [
        [what, quantity(told, unit), quantity(found, unit), f"{found / told:.2f}" if told and found else ABSENT]
        for what, unit, told, found in account.rows(report)
    ]


def _training_rows(training: Mapping[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, value in training.items():
        if name == "seconds":
            rows.append(["time of all attempts" if training.get("resumed_from_steps") else "time", duration(value)])
        elif name.endswith("_seconds"):
            rows.append([f"time of {label(name.removesuffix('_seconds'))}s", duration(value)])
        elif name == "resumed_from_steps":
            rows.append(["resumed from", ", ".join(f"step {step}" for step in value) or "nothing (trained in one go)"])
        elif name == "checkpoints_skipped":
            rows += [["checkpoint not used", f"{item['name']}: {item['reason']}"] for item in value]
        else:
            rows.append([label(name), f"{value:.4g}" if isinstance(value, float) else value])
    return rows


def write_eval_report(report: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write eval_report_<stage>.json and .md into `folder`; returns both paths, raises OSError.

    The JSON comes last: where it lies, its Markdown lies beside it. Figures that are no numbers
    become null, because strict JSON has no NaN; the Markdown still names them.
    """
    name = f"eval_report_{report['stage']}"
    paths = folder / f"{name}.json", folder / f"{name}.md"
    text = json.dumps(_strict(report), ensure_ascii=False, indent=1, allow_nan=False)
    state.write_text(paths[1], render_eval_report(report))
    state.write_text(paths[0], encodable(text) + "\n")
    return paths


def encodable(json_text: str) -> str:
    r"""JSON that fits UTF-8: a lone surrogate becomes \udXXX, which is JSON's own word for it."""
    return json_text.encode("utf-8", "backslashreplace").decode("utf-8")


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, (list, tuple)) else value
