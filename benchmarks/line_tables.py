"""The tables of benchmarks/line.py: both sides part by part, their work and scores, where the time of a stage goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CHECK_AIM = 0.02  # of a stage's time
COUNTS = ("steps", "trained_tokens", "answered", "base_answered")  # must be the same on both sides
SHOWN = ("generated_tokens", "base_tokens")


@dataclass
class Run:
    """One run of one side: wall seconds, seconds of each part by stage, counts and scores by stage."""

    seconds: float = 0.0
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)  # "set, model" -> metric -> {"value", "n"}
    supervisor: dict[str, float] = field(default_factory=dict)  # ours: seconds of a stage that the worker did not have

    def count(self, name: str) -> int:
        return sum(counts[name] for counts in self.counts.values())

    def total(self, *names: str) -> float:
        return sum(parts.get(name, 0.0) for parts in self.parts.values() for name in names)


PARTS: dict[str, tuple[str, ...]] = {
    "start of processes, imports": ("import",), "base model loaded": ("load",),
    "rows to examples, loop set up": ("data", "setup"),
    "training": ("train", "checkpoint"), "adapter saved": ("save",), "answers of the adapters": ("generate",),
    "answers of the base": ("base",), "scores": ("score",), "our checks and copies": ("check", "prepare"),
}  # fmt: skip


def side_table(mine: list[Run], other: list[Run], shipped: Run) -> Iterable[str]:
    """Seconds of both sides, part by part."""
    yield "| seconds (median) | ours | one process after the other | ratio | ours as shipped |\n|---|---|---|---|---|"
    rest: list[Callable[[Run], float]] = [lambda run: run.seconds - sum(run.total(*names) for names in PARTS.values())]
    rows = {name: (lambda run, names=names: run.total(*names)) for name, names in PARTS.items()}
    for name, value in {**rows, "rest": rest[0], "**the whole job**": lambda run: run.seconds}.items():
        pair = statistics.median(map(value, mine)), statistics.median(map(value, other))
        ratio = f"{pair[1] / pair[0]:.1f}" if pair[0] > 0.05 and pair[1] > 0.05 else "–"
        yield f"| {name} | {pair[0]:.1f} | {pair[1]:.1f} | {ratio} | {value(shipped):.1f} |"


def count_table(mine: Run, other: Run, shipped: Run) -> Iterable[str]:
    """The work of both sides."""
    yield "| work | ours | one process after the other | ours as shipped |\n|---|---|---|---|"
    for name in (*COUNTS, *SHOWN):
        cells = " | ".join(f"{run.count(name)}" for run in (mine, other, shipped))
        yield f"| {name.replace('_', ' ')} | {cells} |"


def score_table(mine: Run, other: Run, shipped: Run) -> Iterable[str]:
    """The scores of both sides."""
    metrics = [name for name in next(iter(mine.scores.values())) if any(s[name]["n"] for s in mine.scores.values())]
    yield "| questions | metric | ours | one process after the other | ours as shipped |\n|---|---|---|---|---|"
    for key in mine.scores:
        for metric in metrics:
            values = [run.scores[key][metric]["value"] for run in (mine, other, shipped)]
            if values[0] is not None:
                cells = " | ".join("–" if value is None else f"{value:.3f}" for value in values)
                yield f"| {key} | {metric.replace('_', ' ')} | {cells} |"


def stage_table(run: Run) -> Iterable[str]:
    """Where the time of each stage of ours goes, as its report tells it, and the share of each part."""
    names = list(dict.fromkeys(name for parts in run.parts.values() for name in parts))
    whole = {stage: sum(parts.values()) + run.supervisor[stage] for stage, parts in run.parts.items()}
    yield f"| part | {' | '.join(run.parts)} | together | share |\n|---|{'---|' * (len(run.parts) + 2)}"

    def row(title: str, of_stage: Mapping[str, float]) -> str:
        together = sum(of_stage.values())
        cells = " | ".join(f"{of_stage[stage]:.2f}" for stage in run.parts)
        return f"| {title} | {cells} | {together:.2f} | {together / run.seconds:.1%} |"

    for name in names:
        yield row(name, {stage: parts.get(name, 0.0) for stage, parts in run.parts.items()})
    yield row("supervisor", run.supervisor)
    yield row("together", whole)
    left = run.seconds - sum(whole.values())
    yield f"| not accounted for |{' |' * len(run.parts)} {left:.2f} | {left / run.seconds:.1%} |"
    yield f"| the whole job |{' |' * len(run.parts)} {run.seconds:.2f} | 100.0% |"


def check_table(run: Run) -> Iterable[str]:
    """What our own checks take of each stage: in the worker, and between its end and the next job."""
    yield "| stage | checks in the worker s | supervisor s | of the stage | aim |\n|---|---|---|---|---|"
    for stage, parts in run.parts.items():
        check, between = parts.get("check", 0.0), run.supervisor[stage]
        share = (check + between) / (sum(parts.values()) + between)
        yield f"| {stage} | {check:.3f} | {between:.3f} | {share:.2%} | {CHECK_AIM:.0%} |"
