"""Tokens per second of training: our loop in its layouts beside plain TRL SFTTrainer with the same settings.

    python benchmarks/training.py [--rounds 3] [--steps 20] [--base FOLDER]

One process, one base, a new adapter for every run; the ways take turns in every round, and the seconds are those of the
loop alone (ours as its report tells them, TRL's around `trainer.train()`). Rows: those of the style stage with the
embedded profile's batch of 2 and with 8, and made rows of mixed lengths with 8. TRL is also run with its own
`padding_free`, which leaves out the padding as ours does. Its `packing` is not comparable: a packed row counts as one
example, so a step has other tokens. "computed" is what goes through the embeddings, of the rows' tokens: more by
padding, less by beginnings that rows of a step share.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the supervisor starts the worker: both sides have it here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.machine import REPOSITORY, described, embedded_base, quiet
from trainer import config, encoding, stages
from trainer.data import read_rows
from trainer.encoding import IGNORED, Example

LENGTHS = (32, 512)  # tokens of the made rows: as many short ones as long ones, on a scale of ratios


@dataclass(frozen=True)
class Ran:
    """One run: seconds of its loop, steps, and tokens: in the rows, of them trained, computed with padding."""

    seconds: float
    steps: int
    tokens: int
    trained: int
    computed: int


def mixed(count: int, vocabulary: int, seed: int = 42) -> list[Example]:
    """Made rows whose lengths are spread evenly on a logarithmic scale; half of each row carries loss."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        length = round(LENGTHS[0] * (LENGTHS[1] / LENGTHS[0]) ** draw.random())
        ids = [draw.randrange(vocabulary) for _ in range(length)]
        rows.append(Example(f"made-{number}", 1, ids, [IGNORED] * (length // 2) + ids[length // 2 :]))
    return rows


class Bench:
    """The resident base, and each way to train an adapter on it."""

    def __init__(self, base: Path, folder: Path, steps: int) -> None:
        from trainer import model

        self.parameters = replace(_parameters(), max_steps=steps)
        self.base = model.load_base(str(base), self.parameters)
        self.folder = folder

    def ways(self) -> dict[str, Callable[[list[Example], config.Parameters], tuple[float, int]]]:
        """{name: run}; a run trains and returns the seconds of its loop and its steps."""
        return {
            "ours": lambda rows, values: self.ours(rows, values),
            "ours, nothing shared": lambda rows, values: self.ours(rows, replace(values, share_prefixes=False)),
            "ours, padded": lambda rows, values: self.ours(rows, replace(values, packing="padded")),
            "TRL SFTTrainer": lambda rows, values: self.trl(rows, values),
            "TRL, padding_free": lambda rows, values: self.trl(rows, values, padding_free=True),
        }

    def ours(self, rows: list[Example], values: config.Parameters) -> tuple[float, int]:
        from trainer.model import attach_adapter, detach_adapter
        from trainer.train import train

        adapted = attach_adapter(self.base, values)
        try:
            found = train(adapted, self.base, rows, values, self.folder, lambda *event, **fields: None)
        finally:
            detach_adapter(adapted, self.base)
        return found["spent"]["train_seconds"], found["steps"]

    def trl(self, rows: list[Example], values: config.Parameters, **more: Any) -> tuple[float, int]:
        """As TRL's documentation has it, the rows tokenised before."""
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        from benchmarks.line_sides import plain_settings
        from trainer.model import attach_adapter, detach_adapter

        settings = {**plain_settings(values, len(rows))["training"], "logging_steps": values.logging_steps}
        adapted = attach_adapter(self.base, values)
        try:
            trainer = SFTTrainer(
                model=adapted,
                args=SFTConfig(
                    output_dir=str(self.folder), max_length=None, save_strategy="no", report_to="none",
                    disable_tqdm=True, **settings, **more,
                ),
                train_dataset=Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in rows]),
                processing_class=self.base.tokenizer,
            )  # fmt: skip
            began = time.monotonic()
            trainer.train()
            return time.monotonic() - began, trainer.state.global_step
        finally:
            detach_adapter(adapted, self.base)

    def run(self, way: Callable[..., tuple[float, int]], rows: list[Example], values: config.Parameters) -> Ran:
        """One way once, with its tokens counted where they are computed."""
        counted = {"computed": 0, "steps": 0}

        def count(module: Any, given: tuple[Any, ...]) -> None:
            counted["computed"] += given[0].numel()

        hook = self.base.model.get_input_embeddings().register_forward_pre_hook(count)
        try:
            with quiet(self.folder):
                seconds, steps = way(rows, values)
        finally:
            hook.remove()
        # Every way sees each row once in an epoch; a part of an epoch is counted by its share of the steps.
        per_step = values.per_device_train_batch_size * values.gradient_accumulation_steps
        share = steps / -(-len(rows) // per_step)
        tokens = sum(len(row.input_ids) for row in rows) * share
        trained = sum(row.trained_tokens for row in rows) * share
        return Ran(seconds, steps, round(tokens), round(trained), counted["computed"])


def _parameters() -> config.Parameters:
    return stages.load().resolve("style", "embedded", {})[0]


def whole_epochs(values: config.Parameters, rows: Sequence[Example]) -> config.Parameters:
    """The wanted steps rounded up to whole epochs, so that every way computes the same rows."""
    per_epoch = -(-len(rows) // (values.per_device_train_batch_size * values.gradient_accumulation_steps))
    return replace(values, num_train_epochs=float(-(-values.max_steps // per_epoch)), max_steps=-1)


def table(found: dict[str, list[Ran]], reference: str) -> Iterator[str]:
    """Medians of the rounds; the ratio is that of the seconds, round by round."""
    yield "| way | steps | tokens | trained | s | tokens/s | trained tokens/s | computed | times TRL's speed |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, runs in found.items():
        run, seconds = runs[0], statistics.median(item.seconds for item in runs)
        pairs = zip(runs, found[reference], strict=True)
        ratio = statistics.median(other.seconds / own.seconds for own, other in pairs)
        yield (
            f"| {name} | {run.steps} | {run.tokens} | {run.trained} | {seconds:.1f} | {run.tokens / seconds:.0f} "
            f"| {run.trained / seconds:.0f} | {run.computed / run.tokens:.1%} | {ratio:.2f} |"
        )


def measure(bench: Bench, title: str, rows: list[Example], values: config.Parameters, rounds: int) -> None:
    """All ways in turn; prints the table."""
    ways = bench.ways()
    found: dict[str, list[Ran]] = {name: [] for name in ways}
    failed: dict[str, str] = {}
    bench.run(ways["ours, padded"], rows[:16], whole_epochs(replace(values, max_steps=2), rows[:16]))  # warms up
    values = whole_epochs(values, rows)
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            if name in failed:
                continue
            try:
                found[name].append(bench.run(ways[name], rows, values))
            # What TRL says where its padding_free cannot run (a kernel, a package or a version that is not here) is not
            # of one kind: it is told below the table. Ours and plain TRL have no such excuse.
            except (ValueError, RuntimeError, ImportError, NotImplementedError) as problem:
                if not name.startswith("TRL, "):
                    raise
                failed[name] = str(problem).splitlines()[0]
                del found[name]
    lengths = sorted(len(row.input_ids) for row in rows)
    middle = lengths[len(lengths) // 2]
    print(f"### {title}: {len(rows)} rows of {lengths[0]} to {lengths[-1]} tokens, half below {middle}\n")
    print("\n".join(table(found, "TRL SFTTrainer")) + "\n", flush=True)
    for name, reason in failed.items():
        print(f"{name} does not run here: {reason}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="at least so many in each run (whole epochs)")
    parser.add_argument("--base", type=Path, help="a base model's folder (default: the embedded one, built first)")
    given = parser.parse_args()
    print("## Tokens per second of training\n")
    print(f"`python benchmarks/training.py --rounds {given.rounds} --steps {given.steps}`. {described()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="stagegate_bench_") as name:
        bench = Bench(given.base or embedded_base(), Path(name), given.steps)
        file = "training/processed/style_sft.jsonl"
        numbered, _ = read_rows(REPOSITORY / "data" / file, file)
        style, _ = encoding.encode(numbered, bench.base.tokenizer, file, enable_thinking=False, max_length=4096)
        values = bench.parameters
        measure(bench, "Style rows, batch 2", style, values, given.rounds)
        eight = replace(values, per_device_train_batch_size=8)
        measure(bench, "Style rows, batch 8", style, eight, given.rounds)
        made = mixed(64, len(bench.base.tokenizer))
        measure(bench, "Rows of mixed lengths, batch 8", made, eight, given.rounds)


if __name__ == "__main__":
    main()
