"""Training one adapter: TRL's SFTTrainer carries the loop, this module sets it up and watches it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from trl import SFTConfig

from trainer.checkpoint import Schedule, Store
from trainer.config import Parameters
from trainer.crew import ALONE, Crew
from trainer.encoding import Example
from trainer.errors import InputError, TrainingFailed
from trainer.model import Base
from trainer.resume import STATE, Keeper, ResumableTrainer, Saver, cost_estimate, load_weights

Report = Callable[..., None]  # report(event_name, **fields)


class Progress(TrainerCallback):
    """Reports step, loss, rate and time left; stops a run whose loss is no longer a number."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.started = time.monotonic()
        self.started_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = time.monotonic()
        self.started_step = state.global_step  # more than 0 when it goes on from a checkpoint

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"the loss is {loss} at step {state.global_step}; lower the learning rate or check the data"
            )
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = (state.global_step - self.started_step) / seconds
        self.report(
            "progress",
            step=state.global_step,
            steps=state.max_steps,
            loss=round(loss, 4),
            learning_rate=float(logs.get("learning_rate", 0.0)),
            steps_per_second=round(rate, 3),
            seconds_left=round((state.max_steps - state.global_step) / rate) if rate else None,
        )


def warm_up(parameters: Parameters, examples: int) -> float:
    """The warm-up, in steps or as a share; none for a run of one step, which it would train at rate 0.

    transformers rounds a share up, so that 3 % of one step would be the whole run.
    """
    per_step = parameters.per_device_train_batch_size * parameters.gradient_accumulation_steps
    steps = parameters.max_steps if parameters.max_steps > 0 else parameters.num_train_epochs * -(-examples // per_step)
    return 0.0 if steps <= 1 and parameters.warmup_steps < 1 else parameters.warmup_steps


def settings(parameters: Parameters, base: Base, folder: Path, examples: int) -> SFTConfig:
    """TRL's configuration; nothing in it is left to a default that would shape the result unseen."""
    on_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=parameters.num_train_epochs,
        max_steps=parameters.max_steps,
        per_device_train_batch_size=parameters.per_device_train_batch_size,
        gradient_accumulation_steps=parameters.gradient_accumulation_steps,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.lr_scheduler_type,
        warmup_steps=warm_up(parameters, examples),
        weight_decay=parameters.weight_decay,
        max_grad_norm=parameters.max_grad_norm,
        optim="adamw_torch",
        seed=parameters.seed,
        data_seed=parameters.seed,
        bf16=base.dtype == torch.bfloat16,
        fp16=base.dtype == torch.float16,
        gradient_checkpointing=parameters.gradient_checkpointing is True,
        gradient_checkpointing_kwargs={"use_reentrant": False} if parameters.gradient_checkpointing is True else None,
        logging_steps=parameters.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # the filter would hide a NaN loss behind the last good one
        save_strategy="no",  # Saver decides, and ResumableTrainer writes
        restore_callback_states_from_checkpoint=True,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,  # lengths were checked before: TRL would cut without a word
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=on_gpu,
        use_cpu=not on_gpu,
    )


def train(
    adapted: PeftModel, base: Base, examples: Sequence[Example], parameters: Parameters, folder: Path, report: Report,
    store: Store | None = None, crew: Crew = ALONE,
) -> dict[str, Any]:  # fmt: skip
    """Train the adapter in place, from the newest checkpoint in `store` that fits, if one is given.

    Returns steps, epochs, examples, trained tokens, losses, seconds, the account of the checkpoints, and `spent`:
    the seconds of this process alone.
    """
    masked = [example.row_id for example in examples if not example.trained_tokens]
    if masked:
        raise InputError(f"row {masked[0]!r} trains no token (one of {len(masked)}); give the assistant an answer")
    set_seed(parameters.seed)
    dataset = Dataset.from_dict({"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]})
    trainer = ResumableTrainer(
        model=adapted,
        args=settings(parameters, base, folder, len(examples)),
        train_dataset=dataset,
        processing_class=base.tokenizer,
        callbacks=[Progress(report)],
    )
    if base.dtype == torch.float32:  # TRL turns a quantised model's adapter to bfloat16, which CPUs crawl on
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    schedule = Schedule(parameters.save_steps, parameters.save_seconds, cost_estimate(adapted))
    keeper = Keeper(None if schedule.is_off else store, schedule, report)
    state = _run(trainer, keeper)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    if state.global_step < 1 or not losses:
        raise TrainingFailed("training ended without a step; check epochs, max_steps and the data")
    if state.global_step < state.max_steps:
        raise TrainingFailed(f"training ended at step {state.global_step} of {state.max_steps}; look at the log above")
    _check_weights(adapted)
    return {
        "steps": state.global_step,
        "epochs": round(float(state.epoch or 0.0), 3),
        "examples": len(examples),
        "trained_tokens": sum(example.trained_tokens for example in examples),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **keeper.account(),
        "checkpoints_skipped": keeper.choice.skipped,
        "spent": keeper.spent(),
    }


def _run(trainer: ResumableTrainer, keeper: Keeper) -> TrainerState:
    """The loop, from its beginning, from a checkpoint, or not at all when the checkpoint is that of the last step."""
    found = keeper.choose()
    if found is not None and found.step >= found.total_steps:
        load_weights(trainer.model, found.path)  # transformers would skip the training and keep the weights of before
        return TrainerState.load_from_json(str(found.path / STATE))
    trainer.keeper = keeper
    trainer.add_callback(Saver(keeper, trainer))
    with keeper.training():
        trainer.train(resume_from_checkpoint=str(found.path) if found else None)
    return trainer.state


def _check_weights(adapted: PeftModel) -> None:
    """TrainingFailed when a trained weight is not finite or no weight ever moved."""
    moved = False
    for name, weight in adapted.named_parameters():
        if not weight.requires_grad:
            continue
        if not bool(torch.isfinite(weight).all()):
            raise TrainingFailed(f"the weight {name} is not finite; lower the learning rate")
        moved = moved or ("lora_B" in name and bool(weight.any()))  # lora_B starts at zero
    if not moved:
        raise TrainingFailed("no weight of the adapter moved; raise the learning rate or the epochs")
