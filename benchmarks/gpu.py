"""Qwen3-8B's true dimensions with random weights on this host's GPU: loading, training, answers and the whole job.

    python benchmarks/gpu.py [--minutes 25] [--kinds nf4,bf16] [--parts measure,job] [--folder DIR] [--tiny]

Nothing is downloaded: the weights are drawn and written here (16 GB; 25 GB of disk with the 4-bit copy and results),
the tokenizer is trained on the course text. Its 2,560 tokens are fewer than Qwen's, so the rows of the job have more
tokens than they would there. Every part is printed as soon as it is known and kept in the results, so that a run that
is cut off keeps them; a part that --minutes leaves no time for is named. --folder is kept and used again; without it a
temporary folder is removed at the end. --tiny runs the same on a CPU with a tiny shape:
it proves the script, not speed.

Loading: Resident.get, its own checks apart. Training: rows of a half, a quarter and two eighths of a pass, optimiser
steps of 16,384 tokens; the share of the peak counts the operations that the gradient needs (the frozen base has no
gradient of weights, recomputation is not counted), the peak is NVIDIA's dense 16-bit figure. Answers: of fixed length,
as random weights never stop. The job: `trainer run` with the defaults of a GPU host, on a host whose base is prepared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu_tables
from benchmarks.gpu_tables import Record
from benchmarks.machine import REPOSITORY, described
from trainer import device, stages
from trainer.errors import HostUnfit, InputError, TrainerError

KINDS, PARTS = ("nf4", "bf16"), ("measure", "job")
NEW_TOKENS = {False: 256, True: 8}  # of an answer in the job, by --tiny
LEAST_SECONDS = 20.0  # a part is not begun with less time left


@dataclass
class Bench:
    """The folder, the time that is left, and what was measured so far."""

    folder: Path
    output: Path
    tiny: bool
    ends_at: float
    title: str
    records: list[Record] = field(default_factory=list)

    @property
    def base(self) -> Path:
        return self.folder / ("base-tiny" if self.tiny else "base-8b")

    def left(self) -> float:
        return self.ends_at - time.monotonic()

    def keep(self, record: Record) -> None:
        """Show a record and write all that there are: a run that ends here has lost nothing."""
        self.records.append(record)
        print(f"{record['part']}: {gpu_tables.line(record)}", flush=True)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.with_suffix(".jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.records), "utf-8")
        self.output.write_text(gpu_tables.document(self.title, self.records), encoding="utf-8")

    def skip(self, what: str, reason: str) -> None:
        self.keep({"part": "left", "what": what, "reason": reason})

    def part(self, what: str, command: list[Any]) -> bool:
        """Run a process that reports records on a descriptor of its own; whether it came to its end in time."""
        if self.left() < LEAST_SECONDS:
            self.skip(what, f"no time was left of --minutes ({max(0, self.left()):.0f} s)")
            return False
        reading, writing = os.pipe()
        with self._process([*command, "--records", str(writing)], writing) as process:
            os.close(writing)
            with os.fdopen(reading, encoding="utf-8") as stream:
                for line in stream:
                    self.keep(json.loads(line))
        return self._ended(what, process)

    def job(self, kind: str) -> None:
        """The four stages through `trainer run`, on a host that has everything but results."""
        what = f"the whole job, {kind}"
        root = self.folder / f"root-{kind}"
        for name in ("adapter", "state", "checkpoints", "logs", "training_sync"):
            shutil.rmtree(root / "outputs" / name, ignore_errors=True)
        for path in (root / "outputs" / "cache").glob("base_answers_*.json"):
            path.unlink()  # the base is asked anew: what is prepared is the host, not the score
        if self.left() < LEAST_SECONDS:
            return self.skip(what, f"no time was left of --minutes ({max(0, self.left()):.0f} s)")
        values = {
            "model_name_or_path": self.base, "use_qlora": str(kind == "nf4").lower(), "max_new_tokens_ratio": 0,
            "max_new_tokens": NEW_TOKENS[self.tiny],
        }  # fmt: skip
        settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        words = ["-m", "trainer", "run", "--project-root", root, "--gate", "off", *settings]
        began = time.monotonic()
        with self._process(words) as process:
            process.wait()
        seconds = time.monotonic() - began
        if not self._ended(what, process):
            # The plan goes on without its watcher.
            cancel = [sys.executable, "-m", "trainer", "cancel", "--project-root", str(root)]
            subprocess.run(cancel, cwd=REPOSITORY, capture_output=True, check=False, timeout=120)
            return None
        times: dict[str, float] = {}
        for stage in stages.load().stages:
            path = root / "outputs" / "adapter" / stage.adapter / f"eval_report_{stage.name}.json"
            for name, value in json.loads(path.read_text(encoding="utf-8"))["times"].items():
                name = name.removesuffix("_seconds")
                times[name] = times.get(name, 0.0) + value
        return self.keep({"part": "job", "kind": kind, "seconds": seconds, "times": times})

    @contextlib.contextmanager
    def _process(self, words: list[Any], *descriptors: int) -> Iterator[subprocess.Popen[bytes]]:
        """A process in a group of its own, its output in a log; the group is ended when the time is over."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with (self.folder / "output.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=REPOSITORY, env=environment, stdout=log, stderr=log,
                pass_fds=descriptors, start_new_session=True,
            )  # fmt: skip
            watch = threading.Timer(max(1.0, self.left()), self._end, [process])
            watch.start()
            try:
                yield process
                process.wait()
            finally:
                watch.cancel()
                self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _ended(self, what: str, process: subprocess.Popen[bytes]) -> bool:
        if process.returncode == 0:
            return True
        if self.left() <= 1.0:
            self.skip(what, "cut off by --minutes; what stands above was measured before")
            return False
        log = (self.folder / "output.log").read_bytes()[-4000:].decode("utf-8", "replace")
        self.skip(what, f"ended with exit code {process.returncode}")
        print(log, file=sys.stderr)
        return False


def run(bench: Bench, kinds: list[str], parts: list[str]) -> bool:
    """Weights, then each kind of base with each part; whether everything was measured."""
    script = [Path(__file__).resolve(), "--folder", bench.folder, *(["--tiny"] if bench.tiny else [])]
    if not bench.part("weights", [*script, "--inner", "weights"]):
        return False
    for kind in kinds:
        if "measure" in parts:
            bench.part(f"loading, training and answers, {kind}", [*script, "--inner", "measure", "--kinds", kind])
        if "job" in parts:
            bench.job(kind)
    return all(record["part"] != "left" for record in bench.records)


def inner(given: argparse.Namespace) -> None:
    """What runs in a process of its own, with torch."""
    from benchmarks import gpu_parts

    size = gpu_parts.SMALL if given.tiny else gpu_parts.FULL
    base = given.folder / ("base-tiny" if given.tiny else "base-8b")
    with os.fdopen(given.records, "w", encoding="utf-8", buffering=1) as stream:

        def emit(part: str, **figures: Any) -> None:
            stream.write(json.dumps({"part": part, **figures}) + "\n")

        if given.inner == "weights":
            gpu_parts.write_base(base, size, REPOSITORY / "data" / "corpus", emit)
        else:
            root = given.folder / f"root-{given.kinds}"
            root.mkdir(parents=True, exist_ok=True)
            gpu_parts.Measure(base, given.kinds, size, root, REPOSITORY / "data", emit).run()


def check_host(tiny: bool) -> str:
    """The name of the device; HostUnfit when there is no CUDA device and the run is not a tiny one."""
    found = device.told()
    if tiny:
        return found.name
    if found.kind != "cuda":
        raise HostUnfit(f"this host has no CUDA device (found: {found.name}); run it on a GPU host, or with --tiny")
    return found.name


def _chosen(text: str, known: tuple[str, ...]) -> list[str]:
    found = [name.strip() for name in text.split(",")]
    if wrong := [name for name in found if name not in known]:
        raise InputError(f"{wrong[0]!r} is not to be measured; give {' or '.join(known)}")
    return found


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="end after so many, with what there is by then")
    parser.add_argument("--kinds", default="nf4,bf16")
    parser.add_argument("--parts", default="measure,job")
    parser.add_argument("--folder", type=Path, help="kept, and used again (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="Markdown (default: benchmarks/results/gpu.md; --tiny: the folder)")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, on a CPU: proves the script")
    parser.add_argument("--inner", choices=["weights", "measure"], help=argparse.SUPPRESS)
    parser.add_argument("--records", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    given = parsed(words)
    if given.inner:
        inner(given)
        return 0
    try:
        name = check_host(given.tiny)
        kinds, parts = _chosen(given.kinds, KINDS), _chosen(given.parts, PARTS)
    except TrainerError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stagegate_bench_")))
        folder.mkdir(parents=True, exist_ok=True)
        output = given.output or (folder / "gpu.md" if given.tiny else REPOSITORY / "benchmarks" / "results" / "gpu.md")
        kind = "A tiny shape (no figure of speed)" if given.tiny else "Qwen3-8B's dimensions, random weights"
        title = f"## {kind} on {name}\n\n`python benchmarks/gpu.py{' --tiny' * given.tiny}`. {described()}"
        bench = Bench(folder.resolve(), output, given.tiny, time.monotonic() + 60 * given.minutes, title)
        complete = run(bench, kinds, parts)
        print("\n" + gpu_tables.document(title, bench.records))
    return 0 if complete else 5


if __name__ == "__main__":
    sys.exit(main())
