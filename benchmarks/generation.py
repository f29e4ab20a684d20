"""Generated tokens per second: one by one against in a batch, transformers' generate() against our decoder, the adapter
beside the weights against merged into them.

    python benchmarks/generation.py [--rounds 3] [--rows 0] [--base FOLDER --data-root DIR --steps -1 --cap 0]

The base learns the style stage first, then is asked what that stage is asked, every row with its own cap. The ways
take turns in every round, and the seconds are those of the answers alone. All ways should give the same tokens; the
last column counts the answers of a way that differ from those of the first one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the supervisor starts the worker
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.machine import REPOSITORY, described, embedded_base, quiet
from trainer import config, encoding, evaluate, stages
from trainer.data import load_rows

STAGE = "style"


@dataclass(frozen=True)
class Way:
    """How questions are answered: by whom, how many at a time, on merged weights or not."""

    name: str
    run: Callable[..., None]
    batch: int
    merged: bool = False


@dataclass
class Ran:
    """The seconds of each round, and the tokens of the answers by row."""

    seconds: list[float] = field(default_factory=list)
    answers: dict[int, list[int]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers.values()))


class Bench:
    """The base with its trained adapter, and the questions of the stage."""

    def __init__(self, base: Path, data_root: Path, steps: int, rows: int, cap: int, folder: Path) -> None:
        from trainer import generate, model, train

        table = stages.load()
        stage = table.stage(STAGE)
        values = replace(table.resolve(STAGE, "embedded", {})[0], max_steps=steps, save_steps=0, save_seconds=0)
        values = replace(values, max_new_tokens=cap or values.max_new_tokens)
        self.base = model.load_base(str(base), values)
        numbered = list(enumerate(load_rows(data_root / stage.data), 1))
        shown, longest = values.enable_thinking, values.max_length
        tokenizer = self.base.tokenizer
        examples, _ = encoding.encode(numbered, tokenizer, stage.data, enable_thinking=shown, max_length=longest)
        self.adapted: Any = model.attach_adapter(self.base, values)
        with quiet(folder):
            train.train(self.adapted, self.base, examples, values, folder, lambda *event, **fields: None)
        self.adapted.eval()
        sets = evaluate.question_sets(stage, table, values, data_root, [row for _, row in numbered])
        questions = [row for asked in sets for row in asked.rows][: rows or None]
        found = [generate.ask(self.adapted, tokenizer, row, values) for row in questions]
        # As generate.answer asks them: the longest first.
        found.sort(key=lambda item: (len(item.prompt), item.cap), reverse=True)
        self.asked = dict(enumerate(found))

    def run(self, way: Way, ran: Ran) -> None:
        """One way once."""
        from trainer import merging

        began = time.monotonic()
        with merging.merged(self.adapted) if way.merged else contextlib.nullcontext():
            way.run(self.adapted, self.base.tokenizer, self.asked, way.batch, ran.answers.__setitem__)
        ran.seconds.append(time.monotonic() - began)


def ways() -> list[Way]:
    """All ways; the first one is what the others are compared with."""
    from trainer.generate import BATCH, by_decoder, by_generate

    return [
        Way("generate(), one by one", by_generate, 1),
        Way("generate()", by_generate, 16),
        Way("generate()", by_generate, 64),
        Way("ours, one by one", by_decoder, 1),
        Way("ours", by_decoder, 16),
        Way("ours", by_decoder, 32),
        Way("ours", by_decoder, BATCH),
        Way("ours, merged", by_decoder, BATCH, merged=True),
        Way("generate(), merged", by_generate, 16, merged=True),
    ]


def table(found: list[tuple[Way, Ran]]) -> Iterator[str]:
    """Medians of the rounds; the ratio is that of the seconds, round by round."""
    yield "| way | at a time | s (least, median, most) | tokens | tokens/s | times one by one | answers that differ |"
    yield "|---|---|---|---|---|---|---|"
    first = found[0][1]
    for way, ran in found:
        middle = statistics.median(ran.seconds)
        ratio = statistics.median(one / own for one, own in zip(first.seconds, ran.seconds, strict=True))
        differ = sum(ran.answers[index] != tokens for index, tokens in first.answers.items())
        spread = f"{min(ran.seconds):.1f}, {middle:.1f}, {max(ran.seconds):.1f}"
        yield (
            f"| {way.name} | {way.batch} | {spread} | {ran.tokens} | {ran.tokens / middle:.0f} "
            f"| {ratio:.1f} | {differ} |"
        )


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="so many questions; 0: all")
    parser.add_argument("--base", type=Path, help="a base model's folder (default: the embedded one, built first)")
    parser.add_argument("--data-root", type=Path, default=REPOSITORY / "data")
    parser.add_argument("--steps", type=int, default=config.FIELDS["max_steps"].default, help="of the training before")
    parser.add_argument("--cap", type=int, default=0, help="most tokens of an answer; 0: as the profile says")
    given = parser.parse_args(words)
    print("## Generated tokens per second\n")
    print(f"`python benchmarks/generation.py --rounds {given.rounds} --rows {given.rows}`. {described()}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="stagegate_bench_") as name:
        bench = Bench(given.base or embedded_base(), given.data_root, given.steps, given.rows, given.cap, Path(name))
        found = [(way, Ran()) for way in ways()]
        bench.run(found[-1][0], Ran())  # warms up
        for number in range(given.rounds):
            for way, ran in found[:: 1 if number % 2 == 0 else -1]:
                bench.run(way, ran)
    prompts = sorted(len(item.prompt) for item in bench.asked.values())
    answers = sorted(map(len, found[0][1].answers.values()))
    print(
        f"{len(prompts)} questions of {prompts[0]} to {prompts[-1]} tokens, answers of {answers[0]} to {answers[-1]} "
        f"(half below {answers[len(answers) // 2]}), {given.rounds} rounds in turns:\n"
    )
    print("\n".join(table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
