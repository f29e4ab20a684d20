"""What a checkpoint holds and how a training goes on from it exactly: weights, optimiser, random numbers, loop.

transformers' own loop does the resuming; this module writes and reads what it needs, and makes an error of
everything that it would pass over with a warning.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import safe_globals

from trainer.checkpoint import Checkpoint, Choice, Schedule, Store
from trainer.crew import ALONE, Crew
from trainer.encoding import first_line
from trainer.errors import TrainingFailed
from trainer.loop import StepTrainer

TERMINATED = 128 + signal.SIGTERM  # what a shell calls a process that ended on SIGTERM
WEIGHTS, LOOP, STATE = "adapter.safetensors", "loop.json", "trainer_state.json"
BYTES_PER_SECOND = 200e6  # a rented disk, for the first checkpoint; from then on its own time counts
LEAST_SECONDS = 0.1  # the fsyncs and renames of even the smallest: 2.9 MB took 0.09 to 0.14 s on two busy cores


class Keeper:
    """Writes one training's checkpoints when they are due, and keeps the account of them; without a store: none.

    In a crew the first process does both; the others only end with it, behind the same step.
    """

    def __init__(
        self, store: Store | None, schedule: Schedule, report: Callable[..., None], crew: Crew = ALONE
    ) -> None:
        self.store = store
        self.crew = crew
        self.schedule = schedule
        self.report = report
        self.choice = Choice()
        self.resumed_from: list[int] = []
        self.written = 0
        self.earlier_seconds = 0.0  # of training, up to the checkpoint that this process went on from
        self.earlier_checkpoint_seconds = 0.0
        self.training_seconds = 0.0  # of this process, without its checkpoints
        self.checkpoint_seconds = 0.0
        self.clock = 0.0
        self.failure = ""
        self.terminating = False

    def choose(self) -> Checkpoint | None:
        """The checkpoint to go on from; every one that is passed over is told with its reason."""
        if self.store is None:
            return None
        began = time.monotonic()
        self.choice = self.store.choose()
        found, skipped = self.choice.checkpoint, self.choice.skipped
        for item in skipped:
            self._tell(f"checkpoint {item['name']} is not used: {item['reason']}")
        if found is not None:
            self._read_account(read_loop(found.path), found.step)
            self.report("resumed", step=found.step, checkpoint=found.path.name, skipped=skipped)
            complete = found.step >= found.total_steps
            self._tell(
                f"training was complete in {found.path.name}: its weights are taken, nothing is trained"
                if complete
                else f"resumed from {found.path.name} of {found.total_steps} steps"
            )
        elif skipped:
            self.report("not resumed", skipped=skipped)
            self._tell("no checkpoint can be used: the stage trains from its beginning")
        self.checkpoint_seconds += time.monotonic() - began
        return found

    def _read_account(self, loop: dict[str, Any], step: int) -> None:
        self.resumed_from = [*loop["resumed_from_steps"], step]
        self.written = loop["checkpoints_written"]
        self.earlier_checkpoint_seconds, self.earlier_seconds = loop["checkpoint_seconds"], loop["seconds"]

    def account(self) -> dict[str, Any]:
        """What the training record tells. Seconds count what led to the result: not the steps lost by a kill."""
        return {
            "seconds": round(self.earlier_seconds + self.training_seconds, 3),
            "resumed_from_steps": self.resumed_from,
            "checkpoints_written": self.written,
            "checkpoint_seconds": round(self.earlier_checkpoint_seconds + self.checkpoint_seconds, 3),
        }

    def spent(self) -> dict[str, float]:
        """The seconds of this process alone."""
        return {
            "train_seconds": round(self.training_seconds, 3),
            "checkpoint_seconds": round(self.checkpoint_seconds, 3),
        }

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Around the loop: time is counted, and SIGTERM waits for a checkpoint when there can be one."""
        self.clock = self.schedule.since = time.monotonic()
        with self._held_signal() if self.store is not None else contextlib.nullcontext():
            yield
        self._count_training()

    def _count_training(self) -> None:
        now = time.monotonic()
        self.training_seconds += now - self.clock
        self.clock = now

    @contextlib.contextmanager
    def _held_signal(self) -> Iterator[None]:
        """Within it the first SIGTERM asks for a checkpoint after the step; a second one ends the process at once."""
        if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
            yield
            return

        def asked(number: int, frame: Any) -> None:
            self.terminating = True
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

        before = signal.signal(signal.SIGTERM, asked)
        try:
            yield
            if self.crew.any(self.terminating):  # behind the last step's checkpoint
                raise SystemExit(TERMINATED)
        finally:
            signal.signal(signal.SIGTERM, before)

    def is_due(self, step: int, last: bool) -> bool:
        """Whether a checkpoint is to be written, or the process to end, after this step."""
        if self.store is None:
            return False
        self.terminating = self.crew.any(self.terminating)
        return self.terminating or (self.crew.is_first and self.schedule.due(step, last))

    def save(self, trainer: Any) -> None:
        """Write a checkpoint of the trainer as it stands. A disk that refuses it does not end the training.

        After SIGTERM this ends the process, whether the checkpoint could be written or not.
        """
        if not self.crew.is_first:  # asked only when all are to end
            self.crew.barrier()
            raise SystemExit(TERMINATED)
        self._count_training()
        check_finite(trainer)
        step = trainer.state.global_step
        size = self._write(trainer, step)
        seconds = time.monotonic() - self.clock
        self.clock += seconds  # not training
        self.checkpoint_seconds += seconds
        self.schedule.written(seconds)
        if size is not None:
            self.written += 1
            self.report("checkpoint", step=step, seconds=round(seconds, 3), bytes=size)
        if self.terminating:
            print("ended on SIGTERM " + ("without a checkpoint" if size is None else f"after checkpoint step-{step}"))
            self.crew.barrier()
            raise SystemExit(TERMINATED)

    def _write(self, trainer: Any, step: int) -> int | None:
        """The bytes of the checkpoint, None when it could not be written: told once for each reason."""
        assert self.store is not None
        account = {**self.account(), "checkpoints_written": self.written + 1}
        try:
            return self.store.write(step, trainer.state.max_steps, lambda folder: fill(trainer, folder, account))
        except (OSError, RuntimeError, SafetensorError) as problem:  # torch and safetensors have errors of their own
            reason = first_line(problem)
            if reason != self.failure:
                self._tell(f"no checkpoint could be written at step {step} ({reason}); training goes on without it")
            self.failure = reason
            return None

    def _tell(self, text: str) -> None:
        print(text, flush=True)
        self.report("note", text=text)


class Saver(TrainerCallback):
    """Asks the loop for a checkpoint when one is due, and gives it back what it had counted before."""

    def __init__(self, keeper: Keeper, trainer: Any) -> None:
        self.keeper = keeper
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)  # the steps between two logs as they are now, not as they were
        found = self.keeper.choice.checkpoint
        if found is not None:
            restore_loop(self.trainer, read_loop(found.path))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.keeper.is_due(state.global_step, state.global_step >= state.max_steps):
            control.should_save = True


class ResumableTrainer(StepTrainer):
    """The step trainer with the keeper's checkpoints, which it reads without forgiveness; without a keeper: none.

    In a crew the first process writes for all: weights, moments and losses are the same in each, and the random
    numbers of a step are a function of seed, step and process.
    """

    keeper: Keeper | None = None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.keeper is not None:
            self.keeper.save(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.model if model is None else model, Path(resume_from_checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.crew.size > 1:
            return
        super()._load_rng_state(checkpoint)  # which only logs what it cannot restore
        with safe_globals():
            saved = torch.load(Path(checkpoint) / "rng_state.pth", weights_only=True)
        same = torch.equal(torch.random.get_rng_state(), saved["cpu"])
        if torch.cuda.is_available():
            same = same and "cuda" in saved and torch.equal(torch.cuda.random.get_rng_state(), saved["cuda"])
        if not same:
            raise TrainingFailed(
                f"the random numbers of {Path(checkpoint).name} could not be restored; remove that checkpoint"
            )


def cost_estimate(model: PeftModel) -> float:
    """Seconds that the first checkpoint may take: weights and both moments of AdamW, in float32."""
    count = sum(int(weight.numel()) for weight in trained_weights(model).values())
    return LEAST_SECONDS + count * 12 / BYTES_PER_SECOND


def fill(trainer: Any, folder: Path, account: dict[str, Any]) -> None:
    """Put everything that the next step depends on into an empty folder."""
    weights = {name: w.detach().cpu().contiguous() for name, w in trained_weights(trainer.model).items()}
    save_file(weights, folder / WEIGHTS)
    trainer._save_optimizer_and_scheduler(str(folder))
    trainer._save_scaler(str(folder))
    if trainer.crew.size == 1:
        trainer._save_rng_state(str(folder))
    trainer.store_flos()
    callbacks = [*trainer.callback_handler.callbacks, trainer.control]
    states: dict[str, list[Any]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            states.setdefault(type(callback).__name__, []).append(callback.state())
    trainer.state.stateful_callbacks = {name: s if len(s) > 1 else s[0] for name, s in states.items()}
    trainer.state.save_to_json(str(folder / STATE))
    loop = {
        "loss": trainer._tr_loss.item(),
        "total_loss": trainer._total_loss_scalar,
        "last_logged_step": trainer._globalstep_last_logged,
        "running": trainer.running.record(),
        **account,
    }
    (folder / LOOP).write_text(json.dumps(loop, indent=1), encoding="utf-8")


def read_loop(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / LOOP).read_text(encoding="utf-8")))


def restore_loop(trainer: Any, loop: dict[str, Any]) -> None:
    """What transformers counts between two logs, and would begin anew: without it the losses differ."""
    trainer._tr_loss.fill_(loop["loss"])
    trainer._total_loss_scalar = loop["total_loss"]
    trainer._globalstep_last_logged = loop["last_logged_step"]
    trainer._initial_global_step = 0


def trained_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def load_weights(model: Any, folder: Path) -> None:
    """The trained weights of a checkpoint into the model; TrainingFailed unless they fit one by one."""
    saved, wanted = load_file(folder / WEIGHTS), trained_weights(model)
    odd = sorted(saved.keys() ^ wanted.keys()) or [
        name for name, w in wanted.items() if (saved[name].shape, saved[name].dtype) != (w.shape, w.dtype)
    ]
    if odd:
        raise TrainingFailed(
            f"the weights of checkpoint {folder.name} do not fit the adapter: {len(odd)} differ, the first is "
            f"{odd[0]}; remove that checkpoint"
        )
    with torch.no_grad():
        for name, weight in wanted.items():
            weight.copy_(saved[name])


def check_finite(trainer: Any) -> None:
    """TrainingFailed when loss or weights are no numbers: such a state must not be gone on from."""
    step = trainer.state.global_step
    if not math.isfinite(trainer._tr_loss.item()):
        raise TrainingFailed(f"the loss is not finite at step {step}; lower the learning rate or check the data")
    for name, weight in trained_weights(trainer.model).items():
        if not bool(torch.isfinite(weight).all()):
            raise TrainingFailed(f"the weight {name} is not finite at step {step}; lower the learning rate")
