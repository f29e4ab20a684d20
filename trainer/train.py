"""Training one adapter: transformers carries the loop, trainer/loop.py its steps; this module sets up and watches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from trainer import ladder, packing
from trainer.checkpoint import Schedule, Store
from trainer.choices import Choices, for_training
from trainer.config import Parameters
from trainer.crew import ALONE, Crew
from trainer.encoding import Example
from trainer.errors import InputError, TrainingFailed
from trainer.feed import Rows
from trainer.ladder import Failure, Rung
from trainer.loop import Manner, Running
from trainer.model import Base
from trainer.resume import STATE, Keeper, ResumableTrainer, Saver, cost_estimate, load_weights, read_loop

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
    return 0.0 if steps_of(parameters, examples) <= 1 and parameters.warmup_steps < 1 else parameters.warmup_steps


def steps_of(parameters: Parameters, examples: int) -> int:
    """The optimiser steps of a training of so many examples."""
    if parameters.max_steps > 0:
        return parameters.max_steps
    return math.ceil(parameters.num_train_epochs * -(-examples // per_step(parameters)))


def per_step(parameters: Parameters) -> int:
    """The examples of an optimiser step, whatever the layout, the memory and the number of processes."""
    return parameters.per_device_train_batch_size * parameters.gradient_accumulation_steps


def settings(parameters: Parameters, base: Base, folder: Path, examples: int) -> TrainingArguments:
    """transformers' configuration; nothing in it is left to a default that would shape the result unseen."""
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=parameters.num_train_epochs,
        max_steps=parameters.max_steps,
        per_device_train_batch_size=per_step(parameters),  # one batch for each step: the loop makes passes of it
        gradient_accumulation_steps=1,
        learning_rate=parameters.learning_rate,
        lr_scheduler_type=parameters.lr_scheduler_type,
        warmup_steps=warm_up(parameters, examples),
        weight_decay=parameters.weight_decay,
        max_grad_norm=parameters.max_grad_norm,
        optim="adamw_torch_fused",
        seed=parameters.seed,
        data_seed=parameters.seed,
        bf16=base.dtype == torch.bfloat16,
        fp16=base.dtype == torch.float16,
        logging_steps=parameters.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # the filter would hide a NaN loss behind the last good one
        save_strategy="no",  # Saver decides, and ResumableTrainer writes
        restore_callback_states_from_checkpoint=True,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not on_gpu,
    )


def choose(
    parameters: Parameters, base: Base, examples: Sequence[Example] | Dataset, crew: Crew = ALONE
) -> Choices:  # fmt: skip
    """How these examples are trained on this base: packing, gradient_checkpointing, tokens_per_pass, compile.

    A model that does not keep rows apart without padding gets them padded, and the reason says why.
    """
    rows = Rows(examples, crew)
    lengths = rows.lengths()

    def found(asked: Parameters) -> Choices:
        steps = steps_of(parameters, len(rows))
        return for_training(asked, base.device, base.shape, base.choices, lengths, steps, crew.size)

    choices = found(parameters)
    if choices.value("packing") == packing.PADDING_FREE and (refused := packing.refusal(base.model)):
        choices = found(replace(parameters, packing=packing.PADDED))
        choices.add("packing", packing.PADDED, refused)
    return choices


def train(
    adapted: PeftModel, base: Base, examples: Sequence[Example] | Dataset, parameters: Parameters, folder: Path,
    report: Report, store: Store | None = None, choices: Choices | None = None, crew: Crew = ALONE,
) -> dict[str, Any]:  # fmt: skip
    """Train the adapter in place, from the newest checkpoint in `store` that fits, if one is given.

    `choices` are those of `choose`, which is asked when there are none. In a crew only the first process reports and
    writes checkpoints, all read them.

    Returns steps, epochs, examples, trained tokens, losses, seconds, how the steps were carried out, the account of
    the checkpoints, and `spent`: the seconds of this process alone.
    """
    rows = Rows(examples, crew)
    masked, row_id = rows.untrained()
    if masked:
        raise InputError(f"row {row_id!r} trains no token (one of {masked}); give the assistant an answer")
    if isinstance(base.model.get_output_embeddings(), BaseTunerLayer):
        raise InputError("lora_target_modules names the output head, which is not trained; leave it out")
    if not crew.is_first:
        report = _silent
    set_seed(parameters.seed)
    choices = choose(parameters, base, examples, crew) if choices is None else choices
    rung = Rung(choices.value("tokens_per_pass"), choices.value("gradient_checkpointing"))
    for weight in adapted.parameters():  # updates of 1e-4 would be lost in 16 bits
        if weight.requires_grad:
            weight.data = weight.data.float()
    trainer = ResumableTrainer(
        model=adapted,
        args=settings(parameters, base, folder, len(rows)),
        rows=rows,
        per_step=per_step(parameters),
        manner=Manner(
            layout=choices.value("packing"),
            rung=rung,
            compiled=choices.value("compile"),
            shared=choices.value("shared_prefixes"),
            fused=choices.value("adapter_kernel") == "fused",
        ),
        crew=crew,
        say=_teller(report),
        callbacks=[Progress(report)],
    )
    schedule = Schedule(parameters.save_steps, parameters.save_seconds, cost_estimate(adapted))
    keeper = Keeper(None if schedule.is_off else store, schedule, report, crew)
    trainer.running.asked = {name: getattr(parameters, name) for name in ("packing", "tokens_per_pass", "attention")}
    state = _run(trainer, keeper)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    if state.global_step < 1 or not losses:
        raise TrainingFailed("training ended without a step; check epochs, max_steps and the data")
    if state.global_step < state.max_steps:
        raise TrainingFailed(f"training ended at step {state.global_step} of {state.max_steps}; look at the log above")
    _check_weights(adapted)
    account = keeper.account()
    return {
        "steps": state.global_step,
        "epochs": round(float(state.epoch or 0.0), 3),
        "examples": len(rows),
        "trained_tokens": rows.trained_tokens(),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **account,
        **_carried_out(trainer.running, state.global_step, account["seconds"]),
        "checkpoints_skipped": keeper.choice.skipped,
        "spent": keeper.spent(),
    }


def _carried_out(running: Running, steps: int, seconds: float) -> dict[str, Any]:
    """What the training record tells of layout, passes and memory; tokens are those of all epochs."""
    counts = running.counts
    return {
        "layout": running.layout,
        **running.rung.record(),
        "out_of_memory": running.out_of_memory,
        "train_tokens": counts.tokens,
        "pass_tokens": counts.pass_tokens,
        "train_tokens_trained": counts.trained_tokens,
        "train_tokens_per_second": round(counts.tokens / seconds, 1) if seconds else 0.0,
        "padding_share": _beyond(counts.pass_tokens, counts.tokens),
        "prefix_share": _beyond(counts.tokens, counts.pass_tokens),  # of the rows' tokens, not computed again
        "passes": counts.passes,
        "passes_per_step": round(counts.passes / steps, 2),
    }


def _beyond(whole: int, part: int) -> float:
    """The share of `whole` that is more than `part`."""
    return round(1 - part / whole, 4) if whole > part else 0.0


def _silent(*_: Any, **__: Any) -> None:
    """The report of a process that is not the first."""


def _teller(report: Report) -> Callable[[int, Rung, Rung, Failure], None]:
    """Tells of a rung that was taken: an event for programs, a note for people."""

    def say(step: int, before: Rung, after: Rung, failure: Failure) -> None:
        pass_ = {"tokens": failure.tokens, "rows": failure.rows, "row_id": failure.row_id}
        report("out_of_memory", step=step, before=before.record(), after=after.record(), failed=pass_)
        text = ladder.told(step, before, after)
        print(text, flush=True)
        report("note", text=text)

    return say


def _run(trainer: ResumableTrainer, keeper: Keeper) -> TrainerState:
    """The loop, from its beginning, from a checkpoint, or not at all when the checkpoint is that of the last step."""
    found = trainer.crew.once(keeper.choose)
    keeper.choice.checkpoint = found  # the first process chose it for all
    if found is not None:
        trainer.running = trainer.running.resumed(Running.of(read_loop(found.path)["running"]))
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
