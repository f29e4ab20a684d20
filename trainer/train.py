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
from trl import SFTConfig, SFTTrainer

from trainer.config import Parameters
from trainer.encoding import Example
from trainer.errors import TrainingFailed
from trainer.model import Base

Report = Callable[..., None]  # report(event_name, **fields)


class Progress(TrainerCallback):
    """Reports step, loss, rate and time left; stops a run whose loss is no longer a number."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.started = time.monotonic()
        self.losses: list[float] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = time.monotonic()

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
        self.losses.append(loss)
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = state.global_step / seconds
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
        gradient_checkpointing=parameters.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if parameters.gradient_checkpointing else None,
        logging_steps=parameters.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # the filter would hide a NaN loss behind the last good one
        save_strategy="no",
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
    adapted: PeftModel, base: Base, examples: Sequence[Example], parameters: Parameters, folder: Path, report: Report
) -> dict[str, Any]:
    """Train the adapter in place; returns steps, epochs, examples, trained tokens, losses and seconds."""
    set_seed(parameters.seed)
    dataset = Dataset.from_dict({"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]})
    progress = Progress(report)
    trainer = SFTTrainer(
        model=adapted,
        args=settings(parameters, base, folder, len(examples)),
        train_dataset=dataset,
        processing_class=base.tokenizer,
        callbacks=[progress],
    )
    if base.dtype == torch.float32:  # TRL turns a quantised model's adapter to bfloat16, which CPUs crawl on
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    started = time.monotonic()
    outcome = trainer.train()
    seconds = time.monotonic() - started
    if outcome.global_step < 1 or not progress.losses:
        raise TrainingFailed("training ended without a step; check epochs, max_steps and the data")
    _check_weights(adapted)
    return {
        "steps": outcome.global_step,
        "epochs": round(float(trainer.state.epoch or 0.0), 3),
        "examples": len(examples),
        "trained_tokens": sum(example.trained_tokens for example in examples),
        "first_loss": progress.losses[0],
        "last_loss": progress.losses[-1],
        "seconds": round(seconds, 3),
    }


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
