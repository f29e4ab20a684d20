"""`python -m trainer estimate`: what a plan would take on this host, as a table and as JSON. No torch."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from trainer import basefacts, checkpoint, copies, device, estimation, stages, steps
from trainer.basefacts import BaseFacts
from trainer.choices import Choices
from trainer.config import Parameters
from trainer.copies import size
from trainer.errors import HostUnfit, TrainerError
from trainer.estimate import adapter_dtype_bytes, weight_bytes
from trainer.estimation import Host, StageEstimate
from trainer.markdown import duration
from trainer.plan import Plan
from trainer.precheck import BASE_FIELDS
from trainer.shape import adapter_parameters
from trainer.state import Layout
from trainer.throughput import BANDWIDTH_SHARE, PROCESSOR_SHARE, TRAINING_SHARE

WIDTH = 80
LOG_BYTES = 20_000_000  # logs, reports, states and predictions of a plan of some hundred rows
UNKNOWN = "unknown"


def look(plan: Plan, layout: Layout) -> dict[str, Any]:
    """{"device", "base", "stages", "seconds", "disk", "unfit", "impossible", "lines"} of a plan on this host.

    Errors: InputError for files that cannot be read or a base that cannot be one, HostUnfit for an attention that was
    asked for and cannot be had. What does not fit is told, not raised: see `refuse`.
    """
    table, found = stages.load(), device.told()
    host = Host(layout, found, steps.data_root(plan.data_root))
    known: dict[tuple[str, ...], tuple[BaseFacts, Any]] = {}
    estimates: list[StageEstimate] = []
    for name in plan.stages:
        parameters, _ = table.resolve(name, plan.profile, plan.overrides)
        key = tuple(str(getattr(parameters, field)) for field in BASE_FIELDS)
        if key not in known:
            facts = basefacts.of(parameters, layout)
            known[key] = facts, estimation.tokenizer_in(facts.folder)
        estimates.append(estimation.of_stage(host, table.stage(name), table, parameters, *known[key]))
    facts = next(iter(known.values()))[0]
    first = estimates[0]
    answer: dict[str, Any] = {
        "device": {"name": found.name, "kind": found.kind, "count": found.count, "memory_bytes": found.memory_bytes},
        "base": _base(first.way.parameters, facts),
        "stages": [estimate.as_dict() for estimate in estimates],
        "start_seconds": first.seconds.start,
        "seconds": _together(estimates),
        "disk": disk(estimates, facts, layout),
    }
    answer["unfit"], answer["impossible"] = _unfit(estimates, answer["disk"], layout)
    answer["lines"] = _lines(answer, estimates, facts)
    return answer


def brief(plan: Plan, layout: Layout) -> str:
    """What a plan would take, in one line for other commands; empty where it cannot be told."""
    try:
        found = look(plan, layout)
    except TrainerError:  # `check` has findings on that
        return ""
    needs = [stage["memory_bytes"] for stage in found["stages"] if stage["memory_bytes"]]
    memory = f"{size(max(needs))} of {size(found['device']['memory_bytes'])} memory" if needs else "memory unknown"
    time = duration(found["seconds"]) if found["seconds"] is not None else "time unknown"
    told = f"estimated: {memory}, {time}, {size(found['disk']['needed'])} of disk; see `python -m trainer estimate`"
    return "; ".join([told, *(f"does not fit: {sentence}" for sentence in found["unfit"][:1])])


def refuse(answer: dict[str, Any]) -> None:
    """HostUnfit when a plan cannot fit this host at all."""
    if answer["impossible"]:
        raise HostUnfit(answer["impossible"])


def _base(parameters: Parameters, facts: BaseFacts) -> dict[str, Any]:
    shape = facts.shape
    return {
        "name": parameters.model_name_or_path,
        "parameters": shape.parameters if shape else None,
        "known_from": facts.source,
        "here": facts.folder is not None,
    }


def _together(estimates: Sequence[StageEstimate]) -> float | None:
    """Seconds of the whole plan, None when those of one stage are not known."""
    seconds = [estimate.seconds.stage for estimate in estimates]
    if None in seconds:
        return None
    return round(sum(s for s in seconds if s is not None) + (estimates[0].seconds.start or 0.0), 1)


def disk(estimates: Sequence[StageEstimate], facts: BaseFacts, layout: Layout) -> dict[str, int | None]:
    """Bytes that a plan will write below the project root, by what they are, and how many are free there.

    `download` is None where neither a listing nor the base's shape tells it. Of checkpoints the newest `KEPT` stand
    there while another is written, each of the adapter and both moments of its optimiser; stages go one after another.
    """
    shape, way = facts.shape, estimates[0].way
    download = facts.download_bytes
    if download is None and shape is not None:
        download = weight_bytes(shape, quantised=False, dtype_bytes=2)  # published in 16 bits
    found: dict[str, int | None] = {"download": download}
    quantised = any(estimate.way.choices.value("quantise") for estimate in estimates)
    made = quantised and any(layout.models.glob("prepared-*"))
    found["prepared"] = 0
    if quantised and not made:
        found["prepared"] = weight_bytes(shape, quantised=True, dtype_bytes=2) if shape else None
    if shape is None:
        return {**found, "checkpoints": None, "adapters": None, "logs": LOG_BYTES, **_sum_and_free(found, layout)}
    adapters = []
    for estimate in estimates:
        p, dtype = estimate.way.parameters, estimate.way.choices.value("dtype")
        per_weight = adapter_dtype_bytes(
            quantised=estimate.way.choices.value("quantise"), dtype_bytes=4 if dtype == "float32" else 2
        )
        adapters.append(adapter_parameters(shape, p.lora_r, p.lora_target_modules) * per_weight)
    saves = way.parameters.save_steps or way.parameters.save_seconds
    found["checkpoints"] = (checkpoint.KEPT + 1) * 3 * max(adapters) if saves else 0
    found["adapters"] = sum(adapters) + max(adapters)  # one is written beside the one that it replaces
    found["logs"] = LOG_BYTES
    return {**found, **_sum_and_free(found, layout)}


def _sum_and_free(found: dict[str, int | None], layout: Layout) -> dict[str, int | None]:
    known = [count for count in found.values() if count is not None]
    return {"needed": sum(known), "free": copies.free_bytes(layout.root)}


def _unfit(estimates: Sequence[StageEstimate], room: dict[str, int | None], layout: Layout) -> tuple[list[str], str]:
    """The sentences on what does not fit, and that on what cannot be helped, if there is one."""
    sentences = [f"stage {e.stage}: {e.fit.unfit}" for e in estimates if e.fit.unfit]
    impossible = next((f"stage {e.stage}: {e.fit.unfit}" for e in estimates if e.fit.impossible), "")
    needed, free = room["needed"] or 0, room["free"] or 0
    if needed > free:
        told = f"the plan writes {size(needed)} below {layout.root}, where {size(free)} are free"
        sentences.append(f"{told}; make room there or put the project root on a larger disk")
        impossible = impossible or sentences[-1]
    return sentences, impossible


def _lines(answer: dict[str, Any], estimates: Sequence[StageEstimate], facts: BaseFacts) -> list[str]:
    found, last = answer["device"], estimates[-1]
    cards = f"{found['count']} x {found['name']}" if found["count"] > 1 else found["name"]
    memory = size(found["memory_bytes"]) if found["memory_bytes"] else "memory unknown"
    weights = f" ({_count(facts.shape.parameters)} weights)" if facts.shape else ""
    lines = [
        *_wrapped(f"{answer['base']['name']}{weights} on {cards} ({memory}); nothing is started"),
        *_wrapped(f"stage {last.stage} with {_told(last.way.choices)}"),
        "",
        f"{'stage':<10}{'rows':>9}{'tokens':>9}{'steps':>8}{'memory':>11}{'of':>11}{'time':>14}",
    ]
    for estimate in estimates:
        need = estimate.fit.total
        lines.append(
            f"{estimate.stage:<10}{estimate.work.rows:>9}{_count(estimate.work.tokens):>9}{estimate.steps:>8}"
            f"{size(need) if need else UNKNOWN:>11}"
            f"{size(found['memory_bytes']) if found['memory_bytes'] else UNKNOWN:>11}"
            f"{duration(estimate.seconds.stage) if estimate.seconds.stage is not None else UNKNOWN:>14}"
        )
    start = f"start {duration(answer['start_seconds'])}" if answer["start_seconds"] is not None else ""
    total = duration(answer["seconds"]) if answer["seconds"] is not None else UNKNOWN
    lines += [f"{'together':<10}{start:>48}{total:>14}", "", *_wrapped(_disk_line(answer["disk"])), ""]
    for sentence in _assumptions(estimates, facts):
        lines += _wrapped(sentence, "- ")
    for sentence in answer["unfit"]:
        lines += _wrapped(sentence, "does not fit: ")
    return lines


def _wrapped(text: str, mark: str = "") -> list[str]:
    return textwrap.wrap(mark + text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _told(choices: Choices) -> str:
    choose = choices.value
    weights = "nf4 weights" if choose("quantise") else f"{choose('dtype')} weights"
    weights += " in shares" if choose("shard_base") else ""
    again = "gradient checkpointing" if choose("gradient_checkpointing") else "no checkpointing of gradients"
    return (
        f"{weights}, computing in {choose('dtype')}, attention {choose('attention')}, {again}, "
        f"{choose('tokens_per_pass')} tokens in a pass, {choose('eval_batch')} answers at a time"
    )


def _count(number: int) -> str:
    """12, 4.1k, 33.0M, 8.2B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f}{unit}"
    return str(number)


def _disk_line(room: dict[str, int | None]) -> str:
    names = {
        "download": "download of the base", "prepared": "prepared copy", "checkpoints": "checkpoints",
        "adapters": "adapters", "logs": "logs and reports",
    }  # fmt: skip
    parts = [f"{words} {size(n) if (n := room[name]) is not None else UNKNOWN}" for name, words in names.items()
             if room[name] != 0]  # fmt: skip
    return f"disk: {', '.join(parts)}; together {size(room['needed'] or 0)} of {size(room['free'] or 0)} free"


def _assumptions(estimates: Sequence[StageEstimate], facts: BaseFacts) -> list[str]:
    first = estimates[0]
    told = [f"tokens: {first.work.counted}" + ("" if facts.folder else " (the base's tokenizer is not here)")]
    if facts.shape is None:
        told.append("memory: not estimated, for the architecture of the base is not known")
    else:
        told.append(f"memory: the larger of training and answering, from {facts.source}; one device, its peak")
    source = first.seconds.source
    if not source:
        told.append("time: not estimated, for nothing was measured here and the device's speed is not known")
    elif source.startswith("the last run"):
        told.append(f"time: as fast as {source}, which was alike")
    else:
        share = PROCESSOR_SHARE if first.way.device.kind == "cpu" else TRAINING_SHARE
        told.append(f"time: {source}, of which {share:.0%} and {BANDWIDTH_SHARE:.0%} are taken for granted; "
                    "the next estimate uses what this run measures")  # fmt: skip
    told.append("answers: as long as their references; those of the base alone as long as they may be, once")
    return told
