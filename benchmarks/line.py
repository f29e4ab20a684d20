"""The four-stage job beside the way people's scripts go: a process for each stage's training, one for its answers, one
for its scores.

    python benchmarks/line.py [--rounds 1] [--base FOLDER --data-root DIR --stages A,B --set NAME=VALUE …]

All sides have the same base on the same disk, the same rows, epochs, batches, rates and LoRA settings, answer the
same questions with the same cap and score with the same metrics, in float32. What the other side runs are
benchmarks/sequential/{train,generate,score}.py: TRL's SFTTrainer, PEFT, `model.generate`, the examples tokenised to
the very ids that ours trains. They run in two ways. "Scripts as found", which the aim is about: the environment as it
is here, TRL's own defaults for what shapes speed and memory alone, the base asked anew in each stage. "Scripts,
tuned": with what ours knows, that is our worker's variables (among them that of GNU OpenMP's spinning, without which
a busy machine slows them down several times), no gradient checkpointing, and the base's answers kept from stage to
stage. Steps, trained tokens and questions that differ are an error; the generated tokens and the scores are shown. A
round is ours, tuned, ours, as found. One more run of ours is as shipped (answers capped by the length of the
references). Then: where the time of each stage goes, and what our own checks take of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import line_tables as tables
from benchmarks.line_sides import EQUAL, Bench, ours, scripts
from benchmarks.line_tables import COUNTS, FOUND, TUNED, Run
from benchmarks.machine import described, embedded_base
from trainer import stages
from trainer.data import resolve_root

# Plain scripts keep no answers, so those as found ask the base anew in each stage; all else is the same work.
FOUND_COUNTS = tuple(name for name in COUNTS if name != "base_answered")


def check_equal(mine: Run, other: Run, side: str, counts: Iterable[str] = COUNTS) -> None:
    """SystemExit unless both sides did the same work, by these counts; `side` is the other one's name."""
    for name in counts:
        found = mine.count(name), other.count(name)
        if found[0] != found[1]:
            title = name.replace("_", " ")
            raise SystemExit(f"error: the sides differ: {title} {found[0]} (ours) and {found[1]} ({side})")


def measure(bench: Bench, rounds: int) -> None:
    """Run all sides in turn and print the tables."""
    mine: list[Run] = []
    tuned: list[Run] = []
    found: list[Run] = []
    for _ in range(rounds):
        mine.append(ours(bench, EQUAL))
        tuned.append(scripts(bench, tuned=True))
        mine.append(ours(bench, EQUAL))
        check_equal(mine[-1], tuned[-1], TUNED)
        found.append(scripts(bench, tuned=False))
        check_equal(mine[-1], found[-1], FOUND, FOUND_COUNTS)
    shipped = ours(bench, {})
    sides = {"ours": mine[-1], TUNED: tuned[-1], FOUND: found[-1], "ours as shipped": shipped}
    print(f"## The job of {len(bench.stages)} stages\n\n`python benchmarks/line.py --rounds {rounds}`. {described()}\n")
    print("\n".join(tables.side_table(mine, tuned, found, shipped)) + "\n")
    print(tables.verdict(mine, tuned, found, bench.is_whole) + "\n")
    print("\n".join(tables.count_table(sides)) + "\n")
    print("\n".join(tables.score_table(sides)) + "\n")
    print("### Where the time of a stage goes (ours, the last run)\n")
    print("\n".join(tables.stage_table(mine[-1])) + "\n")
    print("### What our own checks take\n")
    print("\n".join(tables.check_table(mine[-1])) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--base", type=Path, help="a base model's folder (default: the embedded one, built first)")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--stages", default=",".join(stages.load().names))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter, for all sides")
    given = parser.parse_args()
    overrides = dict(item.split("=", 1) for item in given.set)
    with tempfile.TemporaryDirectory(prefix="stagegate_bench_") as name:
        folder = Path(name)
        base = given.base or embedded_base()
        data_root = resolve_root(Path(given.data_root).resolve())
        chosen = tuple(given.stages.split(","))
        measure(Bench(folder, base.resolve(), data_root, given.base is None, chosen, overrides), given.rounds)


if __name__ == "__main__":
    main()
