"""Evaluation reports: eval_report_<stage>.json, the Markdown made from it, and how that is written.

What a template prints is escaped unless this module made it: a model's answers are untrusted text,
and a pipe, a newline or a tag in one must neither break a table nor reach a browser as HTML.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer import state

TRAINED_NOTE = "trained questions: a check of the pipeline, not of generalisation"
HELD_OUT_NOTE = "held-out questions: kept apart from the training rows"
LEAKY_NOTE = "held-out questions, of which some resemble training rows (see warning)"
ABSENT = "–"  # nothing was measured or recorded
QUESTION_CHARS, ANSWER_CHARS = 60, 100

# Underscores inside a word emphasise nothing in CommonMark, and parameter names stay readable.
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_TAG = re.compile(r"<(?! )")  # a `<` before a space opens no tag
_ENTITY = re.compile(r"&(?=[#A-Za-z])")
# What opens a list, a quote, a heading or a rule at the start of a line; "0.91" and "+0.21" do not.
_BLOCK = re.compile(r"^(?:[-+](?=\s|$)|[-=]+(?=\s*$)|[>#]|\d{1,9}(?=[.)](?:\s|$)))")
_BIDI = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Markdown(str):
    """Text that is Markdown already; `escape` leaves it as it is."""


def escape(value: object) -> Markdown:
    """`value` as one line of Markdown that shows its characters only, also in a table cell."""
    if isinstance(value, Markdown):
        return value
    text = " ".join(plain(value).split())
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs"))
    text = _BIDI.sub("", text)
    text = _SPECIAL.sub(lambda match: "\\" + match.group(), text)
    text = _TAG.sub("&lt;", _ENTITY.sub("&amp;", text))
    return Markdown(_BLOCK.sub(_escape_block, text))


def _escape_block(match: re.Match[str]) -> str:
    mark = match.group()
    return "\\" + mark if not mark.isdigit() else mark + "\\"


def prose(text: object) -> Markdown:
    """Like `escape`, for sentences that this project writes: `code` in backticks stays code."""
    line = "".join(c for c in " ".join(str(text).split()) if unicodedata.category(c) != "Cs")
    parts = re.split(r"(`[^`|]+`)", _BIDI.sub("", line))
    return Markdown("".join(p if re.fullmatch(r"`[^`|]+`", p) else _spaced(p) for p in parts))


def _spaced(part: str) -> str:
    bare = part.strip()
    return part.replace(bare, escape(bare)) if bare else part


def plain(value: object) -> str:
    """A parameter or figure as a person writes it: true, not set, a, b."""
    if value is None or value == "":
        return ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)


def shorten(text: object, limit: int) -> str:
    """`text` on one line of at most `limit` characters; an ellipsis shows that it goes on."""
    line = " ".join(str(text or "").split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table whose every row has as many columns as `head`; ValueError for a row that has not."""
    lines = [[escape(cell) for cell in row] for row in rows]
    if any(len(row) != len(head) for row in lines):
        raise ValueError(f"a table of {len(head)} columns got a row of another length")
    body = [[escape(cell) for cell in head], [Markdown("---")] * len(head), *lines]
    return Markdown("\n".join("| " + " | ".join(row) + " |" for row in body))


def figure(value: float | None, target: float = 1.0) -> str:
    """Three decimals, more where they would hide that `value` lies below 1 or below `target`."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(value)
    for digits in (3, 4, 5, 6):
        text = f"{value:.{digits}f}"
        if not any(value < edge <= float(text) for edge in (target, 1.0)):
            return text
    return repr(value)


def signed(value: float | None, base: float | None) -> str:
    """The difference of two figures with its sign."""
    return ABSENT if value is None or base is None else f"{value - base:+.3f}"


def interval(pair: Sequence[float] | None) -> str:
    """A 95 % interval: 0.612 to 0.934."""
    return ABSENT if not pair else f"{figure(pair[0])} to {figure(pair[1])}"


def score(entry: Mapping[str, Any] | None) -> str:
    """A figure with its n and interval, for one cell."""
    if not entry or entry.get("value") is None:
        return ABSENT
    return f"{figure(entry['value'])} (n={entry.get('n', 0)}; {interval(entry.get('ci95'))})"


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them: 4.2 s, 3 min 05 s, 1 h 02 min."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def label(metric: str) -> str:
    """The metric as words."""
    return metric.replace("_", " ")


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
        times=_time_rows(report.get("times") or {}),
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
        "rows": len(evaluation["result"]["rows"]),
        "missing": evaluation["result"].get("missing") or [],
        "unexpected": evaluation["result"].get("unexpected") or [],
        "lift": lift_rows(summary, base) if base else [],
        "types_head": ["type", *map(label, metrics)],
        "types": [[kind, *(score(figures.get(m)) for m in metrics)] for kind, figures in by_type.items()],
        "failed": [_failed_row(row) for row in failed],
    }


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


def _time_rows(times: Mapping[str, float]) -> list[list[object]]:
    known = {name: value for name, value in times.items() if value is not None}
    total = sum(known.values())
    rows: list[list[object]] = [
        [
            name.removesuffix("_seconds"),
            duration(value),
            f"{value / total:.0%}" if total else ABSENT,
        ]
        for name, value in known.items()
    ]
    return [*rows, ["together", duration(total), "100%" if total else ABSENT]] if rows else []


def _training_rows(training: Mapping[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, value in training.items():
        if name == "seconds":
            rows.append(["time", duration(value)])
        else:
            rows.append([label(name), f"{value:.4g}" if isinstance(value, float) else value])
    return rows


def render(template: str, /, **context: Any) -> str:
    """A template of trainer/templates with escaped output and exactly one newline at the end."""
    return _environment().get_template(template).render(**context).rstrip("\n") + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # `finalize` escapes, for Markdown
    )
    environment.globals["table"] = table
    environment.filters["prose"] = prose
    return environment


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
