"""Trainings in processes of their own, killed or signalled where a test wants it. The libraries are imported once.

A server process imports them and forks one child for each attempt, so that an attempt costs its training only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 12
# Seven rows, four to a step: an epoch has two steps, the last one is short, the order is shuffled.
QUESTIONS = ("电场？", "电势？", "高斯定理？", "导体？", "电容？", "磁场？", "感应？")
ROWS = [
    {"id": f"row-{n}", "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text * 2}]}
    for n, text in enumerate(QUESTIONS)
]


@dataclass
class Attempt:
    """What one process does: where it keeps its things, and how it is broken off."""

    folder: Path  # of the attempt's results: adapter, losses.json, reports.jsonl
    parameters: dict[str, Any]
    checkpoints: Path | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    kill_in_step: int = 0  # SIGKILL between the first two passes of this step
    terminate_in_step: tuple[int, ...] = ()  # SIGTERM in this step; named twice: sent twice
    kill_at_call: tuple[str, int] = ("", 0)  # SIGKILL at the n-th call of a function of os in the checkpoint's writing
    file_limit_bytes: int = 0  # no file may grow beyond it, as on a full disk
    nan_in_step: int = 0
    full_in_step: int = 0  # memory runs out in this step's passes of several rows


def carry_out(attempt: Attempt) -> None:
    """The child: one training, its adapter and losses written behind it."""
    import torch
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    from trainer import checkpoint, encoding, model, resume, train
    from trainer.config import Parameters
    from trainer.errors import TrainerError

    torch.set_num_threads(1)
    attempt.folder.mkdir(parents=True, exist_ok=True)
    reports = (attempt.folder / "reports.jsonl").open("a", encoding="utf-8", buffering=1)
    if attempt.file_limit_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def report(event: str, **fields: Any) -> None:
        reports.write(json.dumps({"event": event, **fields}) + "\n")

    class Patience(TrainerCallback, ExportableState):  # type: ignore[misc]
        """Counts the losses, as early stopping counts those that are no better."""

        count = 0

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            self.count += "loss" in logs

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {"count": self.count}}

    class Breaking(resume.ResumableTrainer):
        """Breaks off where it is told to, and leaves its log of losses."""

        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            self.add_callback(Patience())
            self.passes = 0

        def training_step(self, *args: Any, **more: Any) -> Any:
            self.passes = 0
            loss = super().training_step(*args, **more)
            assert self.passes > 1, "a step is broken off between its passes"
            return loss * float("nan") if self.state.global_step + 1 == attempt.nan_in_step else loss

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            step, self.passes = self.state.global_step + 1, self.passes + 1
            if self.passes == 2 and step == attempt.kill_in_step:
                os.kill(os.getpid(), signal.SIGKILL)
            for wanted in attempt.terminate_in_step:
                if self.passes == 2 and step == wanted:
                    os.kill(os.getpid(), signal.SIGTERM)
            loss = super().compute_loss(model, inputs, *args, **more)
            if step == attempt.full_in_step and len(inputs.lengths) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return loss

        def train(self, *args: Any, **more: Any) -> Any:
            outcome = super().train(*args, **more)
            losses = [entry for entry in self.state.log_history if "loss" in entry]
            counted = next(c.count for c in self.callback_handler.callbacks if isinstance(c, Patience))
            write_json(attempt.folder / "losses.json", {"losses": losses, "counted": counted})
            return outcome

    train.ResumableTrainer = Breaking  # type: ignore[misc]
    _arm(attempt, checkpoint.Store)
    parameters = Parameters(**attempt.parameters)
    base = model.load_base(parameters.model_name_or_path, parameters)
    rows = list(enumerate(ROWS, 1))
    examples, findings = encoding.encode(rows, base.tokenizer, "rows", enable_thinking=False, max_length=256)
    assert not findings
    adapted = model.attach_adapter(base, parameters)
    store = checkpoint.Store(attempt.checkpoints, attempt.inputs) if attempt.checkpoints else None
    try:
        record = train.train(adapted, base, examples, parameters, attempt.folder, report, store)
    except TrainerError as problem:
        report("failed", message=str(problem))
        raise SystemExit(problem.exit_code) from None
    write_json(attempt.folder / "record.json", record)
    adapted.save_pretrained(str(attempt.folder), safe_serialization=True)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _arm(attempt: Attempt, store: Any) -> None:
    """Make the checkpoint's writing die, or hit a limit, where the attempt says so."""
    write = store.write
    name, count = attempt.kill_at_call
    seen = 0

    def armed(self: Any, step: int, total: int, fill: Callable[[Path], None]) -> int:
        nonlocal seen
        if attempt.file_limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (attempt.file_limit_bytes, resource.RLIM_INFINITY))
        original = getattr(os, name) if name else None

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **more)  # type: ignore[misc]

        if name:
            setattr(os, name, counted)
        try:
            return int(write(self, step, total, fill))
        finally:
            if name:
                setattr(os, name, original)
            if attempt.file_limit_bytes:
                limits = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    store.write = armed


class Server:
    """Starts attempts one after another."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["trainer.train", "trainer.resume", "tests.unit.trainer.interrupted"])

    def run(self, attempt: Attempt) -> int | None:
        """The exit code of an attempt, negative for a signal."""
        return self.call(carry_out, attempt)

    def call(self, function: Callable[..., None], *arguments: Any) -> int | None:
        """The exit code of a process that does nothing but this."""
        child = self.context.Process(target=function, args=arguments)
        child.start()
        child.join(180)
        if child.is_alive():
            child.kill()
            child.join()
            raise AssertionError("the attempt did not end")
        return child.exitcode


def carry_out_job(
    root: Path, job: dict[str, Any], reports: Path, dies_in_evaluation: bool, all_files_are_big: bool = False
) -> None:
    """A child that is a worker with one job; it may be killed when the training lies behind it."""
    from trainer import lines, worker
    from trainer.job import StageJob
    from trainer.state import Layout

    def dies(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if all_files_are_big:
        lines.BIG_BYTES = 1
    if dies_in_evaluation:
        StageJob._evaluate = dies  # type: ignore[method-assign,assignment]
    with reports.open("a", encoding="utf-8") as stream:
        worker.Worker(Layout(root), os.dup(stream.fileno())).carry_out(job)


def read_reports(path: Path, *events: str) -> list[dict[str, Any]]:
    """The reports of the attempts that wrote to a file, only those of the given events."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [item for item in found if item["event"] in events]
