"""The step trainer: transformers' loop sees one batch for each optimiser step, this module carries the step out.

A step's rows are laid out into passes that fit; the gradient is the mean over all tokens that the step trains. So
layout, memory and the number of processes change the order of additions, and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from transformers import AttentionInterface, PreTrainedModel, Trainer
from trl.trainer.utils import add_fused_lm_head

from trainer import ladder, lowrank, memory, packing, sharding
from trainer.crew import ALONE, Crew
from trainer.errors import TrainingFailed
from trainer.feed import Rows, Step, loader
from trainer.ladder import Failure, Rung


@dataclass(frozen=True)
class Manner:
    """How steps are carried out: the layout, the rung that it begins on, and what makes them faster.

    `compiled`: the decoder layers are compiled. `shared`: equal beginnings of a pass's rows are computed once.
    `fused`: the adapter's layers compute as trainer/lowrank.py does.
    """

    layout: str
    rung: Rung
    compiled: bool = False
    shared: bool = False
    fused: bool = False


@dataclass
class Counts:
    """What went through the model so far, for the training record; steps tried again count once."""

    trained_tokens: int = 0
    tokens: int = 0  # of rows
    pass_tokens: int = 0  # computed: with padding, without what rows share
    passes: int = 0


@dataclass
class Running:
    """What a checkpoint has to hold of the manner: the layout and rung in use, what memory refused, the counts."""

    layout: str
    rung: Rung
    out_of_memory: list[dict[str, Any]] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    asked: dict[str, Any] = field(default_factory=dict)  # what the user said of it

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Running:
        """From a checkpoint's record."""
        rung, counts = Rung(**record["rung"]), Counts(**record["counts"])
        return cls(record["layout"], rung, list(record["out_of_memory"]), counts, record["asked"])

    def resumed(self, before: Running) -> Running:
        """As it was left, so that the rest has the same bits; the manner of now where the user asks for another."""
        if before.asked == self.asked:
            return before
        return replace(self, out_of_memory=before.out_of_memory, counts=before.counts)


class StepTrainer(Trainer):  # type: ignore[misc]
    """Steps of `per_step` rows, in passes; steps that do not fit are tried again one rung lower.

    `say` gets (step, rung before, rung after, failure) for each rung that is taken.
    """

    def __init__(
        self, *, rows: Rows, per_step: int, manner: Manner, crew: Crew = ALONE,
        say: Callable[[int, Rung, Rung, Failure], None] = lambda *_: None, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(train_dataset=rows, **more)
        self.rows = rows
        self.per_step = per_step
        self.manner = manner
        self.crew = crew
        self.say = say
        self.running = Running(manner.layout, manner.rung)
        self.recomputes = False
        # The crew adds the gradients up, once a step: accelerate has nothing to wrap.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)

    @property
    def base(self) -> PreTrainedModel:
        """The model below the adapter."""
        found = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        assert isinstance(found, PreTrainedModel)
        return found

    def _wrap_model(self, model: Any, *_: Any, **__: Any) -> Any:
        return model  # not even where one process sees several GPUs

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not sharding.is_sharded(getattr(model, "get_base_model", lambda: model)()):  # those are in their place
            super()._move_model_to_device(model, device)

    def get_train_dataloader(self) -> Any:
        """The steps, the same in every process; not sharded by accelerate."""
        return loader(self.rows, self.per_step, self.args.seed)

    def floating_point_ops(self, inputs: Any) -> int:
        """Nobody reads them, and counting walks through all weights at every step."""
        return 0

    def _get_num_items_in_batch(self, batch_samples: list[Step], device: torch.device) -> int | None:
        """The step's trained tokens; TrainingFailed when there is none."""
        trained = sum(step.trained_tokens for step in batch_samples)
        if batch_samples and trained < 1:
            raise TrainingFailed(f"step {self.state.global_step + 1} trains no token; check the labels of its rows")
        return trained

    def train(self, *args: Any, **more: Any) -> Any:
        """transformers' training, on a base that attends and scores as the passes need it and is itself afterwards."""
        base = self.base
        with contextlib.ExitStack() as during:
            during.enter_context(_fused_head(base))
            during.enter_context(packing.attending(base, self.running.layout))
            during.enter_context(_compiled(base, self.manner.compiled))
            if self.manner.fused:
                during.enter_context(lowrank.fused(self.model))
            if self.args.bf16 or self.args.fp16:  # autocast casts the adapter's weights; PEFT would widen activations
                during.enter_context(disable_input_dtype_casting(self.model))
            self.model.train()  # once: it walks through thousands of modules
            try:
                return super().train(*args, **more)
            finally:
                self._checkpoint_layers(False)

    def training_step(self, model: Any, inputs: Step, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a whole step; returns its loss, the mean over the step's trained tokens."""
        while True:
            loss, counts, failure = self._try(inputs)
            if not self.crew.any(failure is not None):
                break
            self._free()
            self._step_down([found for found in self.crew.gather(failure) if found is not None])
        if self.crew.size > 1:
            loss, counts = self._add_up(loss, counts)
        total = self.running.counts
        for name, value in asdict(counts).items():
            setattr(total, name, getattr(total, name) + value)
        return loss.to(self.args.device, torch.float32)

    def _try(self, step: Step) -> tuple[torch.Tensor, Counts, Failure | None]:
        """The step on the rung in use: its loss and counts in this process, or the pass that did not fit."""
        number, rung = self.state.global_step + 1, self.running.rung
        _seed(self.args.seed, number, self.crew.rank)  # so that a step tried again or resumed draws the same numbers
        self._checkpoint_layers(rung.gradient_checkpointing)
        loss = torch.zeros((), dtype=torch.float64)
        counts = Counts(trained_tokens=sum(int((item.labels[1:] >= 0).sum()) for item in step.items))
        losses = []
        passes = packing.passes(step.items, rung.tokens_per_pass, self.running.layout, self.manner.shared)
        for one in sharding.in_step(self.base, passes, self.running.layout, self.crew):
            found = self._carry_out(one, step.trained_tokens)
            if found is None:
                failure = Failure.of(one.tokens, one.items)
                if sharding.is_sharded(self.base):
                    raise TrainingFailed(ladder.of_shares(number, rung, failure, *_memory(self.args.device)))
                return loss, counts, failure
            losses.append(found)
            if not one.items:
                continue
            counts.tokens += sum(one.lengths)
            counts.pass_tokens += one.tokens
            counts.passes += 1
        return torch.stack(losses).double().sum() if losses else loss, counts, None

    def _carry_out(self, one: packing.Pass, trained_tokens: int) -> torch.Tensor | None:
        """The pass's share of the step's loss, its gradients added; None when memory ran out."""
        try:
            with self.crew.in_step():
                loss = self.compute_loss(self.model, one, num_items_in_batch=trained_tokens)
                self.accelerator.backward(loss)
            return loss.detach()
        except (RuntimeError, MemoryError) as problem:
            if not ladder.is_out_of_memory(problem):
                raise
            return None  # the frames below are gone with this, and what they held

    def compute_loss(
        self, model: Any, inputs: packing.Pass, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The pass's share of the step's loss: the sum over its learned tokens by the step's number of them."""
        attention = self.base.config._attn_implementation
        return packing.loss(model, inputs, attention, self.args.device) / num_items_in_batch

    def _checkpoint_layers(self, on: bool) -> None:
        """Recompute the activations of the decoder layers, or keep them; it may change during training."""
        if on and not self.recomputes:
            self.base.activation_checkpointing_enable({"use_reentrant": False})
        elif self.recomputes and not on:
            self.base.activation_checkpointing_disable()
        self.recomputes = on

    def _free(self) -> None:
        """What the failed passes left: their gradients, and memory that the allocator keeps."""
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _step_down(self, failures: list[Failure]) -> None:
        """One rung lower, the same in all processes; TrainingFailed when there is none."""
        number, before = self.state.global_step + 1, self.running.rung
        worst = max(failures, key=lambda failure: (failure.rows > 1, failure.tokens))
        after = ladder.below(before, failures)
        if after is None:
            name, size = _memory(self.args.device)
            raise TrainingFailed(ladder.gave_up(worst, name, size))
        self.running.rung = after
        self.running.out_of_memory.append(
            {"step": number, "from": before.record(), "to": after.record(), "pass": asdict(worst)}
        )
        self.say(number, before, after, worst)

    def _add_up(self, loss: torch.Tensor, counts: Counts) -> tuple[torch.Tensor, Counts]:
        """Gradients, loss and counts of the whole step, in every process; one without rows adds zeros."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        whole = torch.tensor([*asdict(counts).values(), 0.0], dtype=torch.float64, device=self.args.device)
        whole[-1] = loss
        self.crew.add_up([*(weight.grad for weight in weights), whole])
        *summed, loss = whole
        return loss, Counts(*(int(value) for value in summed))


def _seed(seed: int, step: int, rank: int) -> None:
    """The random numbers of a step in a process (dropout): a function of these three alone."""
    torch.manual_seed(((seed << 24) + step) * 1024 + rank)


@contextlib.contextmanager
def _fused_head(base: PreTrainedModel) -> Iterator[None]:
    """TRL's fused head, with log probabilities alone, while it is needed: on a resident base they would pile up."""
    before = vars(base).get("forward")
    add_fused_lm_head(base, outputs=("log_probs",))
    try:
        yield
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before


@contextlib.contextmanager
def _compiled(base: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """The decoder layers compiled, for rows of any length; as they were afterwards.

    Attention stays out of it: the lengths of the rows would be constants to the compiler, new ones in every pass.
    """
    layers = getattr(base.base_model, "layers", []) if wanted else []
    if layers:
        AttentionInterface.register(packing.ATTENTION, torch.compiler.disable(packing.row_by_row))
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        AttentionInterface.register(packing.ATTENTION, packing.row_by_row)


def _memory(device: torch.device) -> tuple[str, int]:
    """The name of the device and its bytes, 0 where they are not known."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return str(found.name), int(found.total_memory)
    limit = memory.limit_mib()
    return "this host", limit * 2**20 if limit else 0
