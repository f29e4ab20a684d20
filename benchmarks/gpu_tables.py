"""The Markdown of benchmarks/gpu.py from its records, whichever there are so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Record = dict[str, Any]
GIB = 2**30
JOB_AIM_SECONDS = 180  # the whole job on one H200, on a prepared host
TOKENS_AIM = {"nf4": 15000, "bf16": 20000}  # trained and context tokens per second on one H200


def document(title: str, records: list[Record]) -> str:
    """The whole text; a part of which nothing was measured yet is left out."""
    parts = [title]
    for part, (heading, lines) in _sections().items():
        chosen = [record for record in records if record["part"] == part]
        if chosen:
            parts.append(f"### {heading}\n\n" + "\n".join(lines(chosen)))
    return "\n\n".join(parts) + "\n"


def line(record: Record) -> str:
    """One record as its line of the table, for the screen."""
    return list(_sections()[record["part"]][1]([record]))[-1]


def _sections() -> dict[str, tuple[str, Callable[[list[Record]], Iterator[str]]]]:
    """{part of a record: (heading, its lines)} in the order of the document."""
    return {
        "weights": ("Base of random weights", _weights),
        "load": ("Loading", _load),
        "training": ("Training", _training),
        "answers": ("Answers", _answers),
        "job": ("The whole job", _job),
        "left": ("Not measured", _left),
    }


def _weights(records: list[Record]) -> Iterator[str]:
    for record in records:
        words = f"written in {record['seconds']:.0f} s" if record["seconds"] else "kept from an earlier run"
        yield f"{_gib(record['bytes'])} GiB in bfloat16, {words}."


def _load(records: list[Record]) -> Iterator[str]:
    yield "| base | from | load s | our checks s | copy made s | peak memory GiB | kernel's cache |"
    yield "|---|---|---|---|---|---|---|"
    for record in records:
        figures = " | ".join(f"{record[name]:.1f}" for name in ("seconds", "check_seconds", "prepare_seconds"))
        yield f"| {record['kind']} | {record['what']} | {figures} | {_gib(record['peak_bytes'])} | {record['cache']} |"


def _training(records: list[Record]) -> Iterator[str]:
    yield "| base | tokens in a pass | tokens/s | aim | trained tokens/s | of the bf16 peak | peak memory GiB | how |"
    yield "|---|---|---|---|---|---|---|---|"
    for record in records:
        share = f"{record['flops_per_second'] / record['peak_flops']:.1%}" if record["peak_flops"] else "–"
        how = [record["attention"], f"passes of {record['tokens_per_pass']}", record["layout"].replace("_", "-")]
        how += ["checkpointing"] * record["checkpointing"] + ["memory ran out"] * bool(record["out_of_memory"])
        yield (
            f"| {record['kind']} | {record['what']} | {record['tokens_per_second']:.0f} "
            f"| {TOKENS_AIM.get(record['kind'], '–')} | {record['trained_tokens_per_second']:.0f} | {share} "
            f"| {_gib(record['peak_bytes'])} | {', '.join(how)} |"
        )


def _answers(records: list[Record]) -> Iterator[str]:
    yield "| base | questions | how | at a time | tokens | s | tokens/s | peak memory GiB |"
    yield "|---|---|---|---|---|---|---|---|"
    for record in records:
        yield (
            f"| {record['kind']} | {record['questions']} | {record['what']}{', merged' * record['merged']} "
            f"| {record['batch']} | {record['tokens']} "
            f"| {record['seconds']:.1f} | {record['tokens_per_second']:.1f} | {_gib(record['peak_bytes'])} |"
        )


def _job(records: list[Record]) -> Iterator[str]:
    parts = list(dict.fromkeys(name for record in records for name in record["times"]))
    yield f"| base | the whole job s | aim s | {' | '.join(parts)} | rest |\n|{'---|' * (len(parts) + 4)}"
    for record in records:
        rest = record["seconds"] - sum(record["times"].values())
        figures = " | ".join(f"{record['times'].get(name, 0.0):.1f}" for name in parts)
        yield f"| {record['kind']} | {record['seconds']:.1f} | {JOB_AIM_SECONDS} | {figures} | {rest:.1f} |"


def _left(records: list[Record]) -> Iterator[str]:
    for record in records:
        yield f"- {record['what']}: {record['reason']}"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"
