"""Rows per second and memory of a stage's data: validation, tokenisation, reuse, and the first step of a training.

    python benchmarks/rows.py [--sizes 10000 100000 1000000] [--folder /var/tmp/rows] [--processes 2]

The rows are synthetic, of the course's form: sentences of data/corpus under its three headings. Each figure comes from
a process of its own: seconds without its imports, and its peak resident memory beside what it held before the work
(beside that of its largest helper). Files lie in a new folder below --folder, which is removed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

CORPUS = REPOSITORY / "data" / "corpus"
SYSTEM = "你是电磁学课程助教。回答必须依次包含：\n### 结论\n### 推导\n### 检查（量纲与极限）"
SECTIONS = (("结论", 1), ("推导", 3), ("检查（量纲与极限）", 1))  # with the most sentences of each
STAGE = "style"
MEASURES = ("validation", "tokenisation", "reuse", "first step")
HEAD = "| rows | what | s | CPU s | rows/s | MiB before | MiB at the peak | |\n|---|---|---|---|---|---|---|---|"


def synthetic(count: int, seed: int = 42) -> Iterator[dict[str, Any]]:
    """So many rows of one question and its answer, the same for the same seed."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.md")))
    known = [s.strip() for s in re.split(r"(?<=[。？！])|\n", text) if 8 <= len(s.strip()) <= 60]
    draw = random.Random(seed)
    for number in range(1, count + 1):
        parts = [
            f"### {title}\n" + "".join(draw.choices(known, k=draw.randint(1, most))) for title, most in SECTIONS
        ]  # fmt: skip
        turns = [("system", SYSTEM), ("user", f"第 {number} 题：{draw.choice(known)}怎样理解？")]
        messages = [{"role": role, "content": content} for role, content in [*turns, ("assistant", "\n".join(parts))]]
        meta = {"topic": "electrostatics", "type": "concept", "source": "synthetic"}
        yield {"id": f"row-{number:07}", "mode": "style", "messages": messages, "meta": meta}


def write_root(folder: Path, count: int) -> Path:
    """A data root whose style stage has so many rows, with the shipped benchmarks; returns it."""
    root = folder / f"data-{count}"
    processed = root / "training" / "processed"
    processed.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "data" / "training" / "eval", root / "training" / "eval")
    with (processed / "style_sft.jsonl").open("w", encoding="utf-8") as stream:
        for row in synthetic(count):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return root


def peak_mib(pid: int | str = "self") -> int:
    """The most memory that a process ever had resident; not getrusage's, which counts what it was forked from."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
            return int(found[1]) // 1024
    return 0


class Helpers(threading.Thread):
    """Looks every now and then at the processes that this one started; `peak` is that of the largest, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        while True:
            for file in Path("/proc/self/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    self.peak = max([self.peak, *map(peak_mib, file.read_text().split())])
            time.sleep(0.2)


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(what: str, root: Path, folder: Path, processes: int) -> dict[str, Any]:
    """One figure in this process: {"before", "peak", "helper" (MiB), "seconds", "cpu" (seconds), "note"}."""
    run = {"validation": validation, "tokenisation": tokenised_rows, "reuse": tokenised_rows, "first step": first_step}
    work = run[what](root, folder, processes)
    before, helpers, used, began = peak_mib(), Helpers(), cpu_seconds(), time.monotonic()
    note = work()
    figures = {"seconds": time.monotonic() - began, "cpu": cpu_seconds() - used}
    return {**figures, "before": before, "peak": peak_mib(), "helper": helpers.peak, "note": note}


def validation(root: Path, folder: Path, processes: int) -> Callable[[], str]:
    from trainer import data, stages

    table = stages.load()

    def work() -> str:
        found = data.survey(root, table, table.stage(STAGE))
        data.raise_errors(found.findings)
        return f"{len(found.findings)} warnings"

    return work


def tokenised_rows(root: Path, folder: Path, processes: int) -> Callable[[], str]:
    from trainer import digest, encoding, stages, tokenised

    for name in ("datasets", "pyarrow.compute"):
        importlib.import_module(name)  # the work itself imports them: their seconds and memory are none of its figures
    stage = stages.load().stage(STAGE)
    tokenizer = encoding.load_tokenizer(str(folder / "base"), local_only=True)
    path = root / stage.data

    def work() -> str:
        found = tokenised.of_file(
            path, stage.data, digest.of_file(path), STAGE, tokenizer, root / "cache", enable_thinking=False,
            processes=processes,
        )  # fmt: skip
        wrong = len(found.faults(stage.data, 2048))
        tokens = sum(
            sum(batch["length"].to_pylist()) for batch in found.dataset.data.table.select(["length"]).to_batches()
        )
        return f"{tokens / len(found.dataset):.0f} tokens a row, {wrong} too long"

    return work


def first_step(root: Path, folder: Path, processes: int) -> Callable[[], str]:
    from trainer import digest, model, stages, tokenised, train
    from trainer.config import Parameters

    stage = stages.load().stage(STAGE)
    parameters = Parameters(
        model_name_or_path=str(folder / "base"), use_qlora=False, compute_dtype="float32", gradient_checkpointing=False,
        max_steps=1, per_device_train_batch_size=8, gradient_accumulation_steps=1, save_steps=0, save_seconds=0,
    )  # fmt: skip
    base = model.load_base(str(folder / "base"), parameters)
    adapted = model.attach_adapter(base, parameters)
    path = root / stage.data

    def work() -> str:
        sha256 = digest.of_file(path)
        found = tokenised.of_file(
            path, stage.data, sha256, STAGE, base.tokenizer, root / "cache", enable_thinking=False, processes=1
        )
        done = train.train(adapted, base, found.dataset, parameters, folder, lambda *_, **__: None)
        return f"loss {done['first_loss']:.2f}"

    return work


def measured(what: str, root: Path, folder: Path, processes: int) -> dict[str, Any]:
    """One figure from a process of its own."""
    words = ["--measure", what, "--root", str(root), "--folder", str(folder), "--processes", str(processes)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {what} of {root.name} ended with {done.returncode}; look at the lines above")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def build_base(folder: Path) -> None:
    """The embedded base's tokenizer, with a model of hardly any size: no figure here is about a model."""
    from trainer.base import Recipe, build

    small = Recipe(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, steps=2,
    )  # fmt: skip
    build(folder / "models", CORPUS, small, say=lambda text: None).rename(folder / "base")


def cells(size: int, what: str, found: dict[str, Any]) -> list[str]:
    helper = f" + {found['helper']} in each helper" if found["helper"] else ""
    memory = [str(found["before"]), f"{found['peak']}{helper}"]
    rate = f"{size / found['seconds']:,.0f}"
    return [f"{size:,}", what, f"{found['seconds']:.1f}", f"{found['cpu']:.1f}", rate, *memory, found["note"]]


def heading(processes: int) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False
    ).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    machine = f"{cores} cores of {platform.machine()}, {memory} GB, Python {platform.python_version()}"
    return f"{machine}; {processes} processes tokenise; {date.today()}, commit {commit or 'unknown'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--processes", type=int, default=1, help="that tokenise, beside this one when more than 1")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.root, asked.folder, asked.processes)))
        return
    with tempfile.TemporaryDirectory(prefix="rows-", dir=asked.folder) as name:
        folder = Path(name)
        build_base(folder)
        print(heading(asked.processes) + "\n")
        print(HEAD)
        for size in asked.sizes:
            root = write_root(folder, size)
            for what in MEASURES:
                print(
                    "| " + " | ".join(cells(size, what, measured(what, root, folder, asked.processes))) + " |",
                    flush=True,
                )
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
