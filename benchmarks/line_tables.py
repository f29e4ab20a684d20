"""The tables of benchmarks/line.py: its sides part by part, their work and scores, where the time of a stage goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

AIM = 4.0  # times the speed of the obvious sequential way, as people's scripts go
CHECK_AIM = 0.02  # of a stage's time
TUNED, FOUND = "scripts, tuned", "scripts as found"
COUNTS = ("steps", "trained_tokens", "answered", "base_answered")  # must be the same on all sides
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


def side_table(mine: list[Run], tuned: list[Run], found: list[Run], shipped: Run) -> Iterable[str]:
    """Seconds of all sides, part by part; a ratio is that of the column before it to ours."""
    yield f"| seconds (median) | ours | {TUNED} | ratio | {FOUND} | ratio | ours as shipped |"
    yield "|---|---|---|---|---|---|---|"
    rows: dict[str, Callable[[Run], float]] = {
        name: (lambda run, names=names: run.total(*names))  # type: ignore[misc]
        for name, names in PARTS.items()
    }
    rows["rest"] = lambda run: run.seconds - sum(run.total(*names) for names in PARTS.values())
    rows["the job without the base's answers"] = lambda run: run.seconds - run.total("base")
    rows["**the whole job**"] = lambda run: run.seconds
    for name, value in rows.items():
        own = statistics.median(map(value, mine))
        cells = []
        for other in (tuned, found):
            seconds = statistics.median(map(value, other))
            cells += [f"{seconds:.1f}", f"{seconds / own:.1f}" if own > 0.05 and seconds > 0.05 else "–"]
        yield f"| {name} | {own:.1f} | {' | '.join(cells)} | {value(shipped):.1f} |"


def verdict(mine: list[Run], tuned: list[Run], found: list[Run], whole: bool) -> str:
    """Which ratio the aim is about, and whether it is met; a part of the job (not `whole`) cannot say that."""
    own = statistics.median(run.seconds for run in mine)
    times = {
        side: statistics.median(run.seconds for run in runs) / own for side, runs in ((TUNED, tuned), (FOUND, found))
    }
    met = (
        ("met" if times[FOUND] >= AIM else "missed") if whole else "of a part of the job, which is not what it is about"
    )
    return (
        f"The aim of at least {AIM:g} is about the {FOUND}, the obvious way: {times[FOUND]:.2f}, {met}. "
        f"Of the {TUNED}: {times[TUNED]:.2f}."
    )


def count_table(sides: Mapping[str, Run]) -> Iterable[str]:
    """The work of all sides."""
    yield f"| work | {' | '.join(sides)} |\n|---|{'---|' * len(sides)}"
    for name in (*COUNTS, *SHOWN):
        cells = " | ".join(f"{run.count(name)}" for run in sides.values())
        yield f"| {name.replace('_', ' ')} | {cells} |"


def score_table(sides: Mapping[str, Run]) -> Iterable[str]:
    """The scores of all sides; the first one's say which metrics are shown."""
    own = next(iter(sides.values())).scores
    metrics = [name for name in next(iter(own.values())) if any(scores[name]["n"] for scores in own.values())]
    yield f"| questions | metric | {' | '.join(sides)} |\n|---|---|{'---|' * len(sides)}"
    for key in own:
        for metric in metrics:
            values = [run.scores[key][metric]["value"] for run in sides.values()]
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
