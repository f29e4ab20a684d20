"""How a stage would be run on a device: its choices, the memory of it, and what to change where it does not fit.

No torch. The choices are made by the same functions as in the worker (trainer.choices).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from trainer import choices as chosen
from trainer import workload
from trainer.budget import DTYPE_BYTES, Lengths, TrainingNeeds, safe_memory, shards
from trainer.choices import Choices
from trainer.config import Parameters
from trainer.copies import size
from trainer.device import Device
from trainer.estimate import SAFE_SHARE, Memory, answering_memory
from trainer.shape import Shape
from trainer.workload import Question, Workload

CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141)  # that are sold


@dataclass(frozen=True)
class Fit:
    """The memory of training and answering, None where the base's shape is not known.

    `unfit` says what does not fit and what to change; `impossible`: nothing that can be changed here helps.
    """

    training: Memory | None = None
    answering: Memory | None = None
    unfit: str = ""
    impossible: bool = False

    @property
    def total(self) -> int | None:
        """The larger of both."""
        if self.training is None or self.answering is None:
            return None
        return max(self.training.total, self.answering.total)


class Way:
    """One stage of these parameters on this device, 0 `processes`: as the parameters or the device say.

    Errors: those of trainer.choices.for_base.
    """

    def __init__(
        self, parameters: Parameters, device: Device, shape: Shape | None, work: Workload, steps: int,
        processes: int = 0,
    ) -> None:  # fmt: skip
        self.parameters, self.device, self.shape, self.work, self.steps = parameters, device, shape, work, steps
        asked = processes or parameters.num_processes
        self.processes = asked or (device.count if device.kind == "cuda" else 1)
        self.lengths = Lengths(work.examples, work.tokens, work.longest, work.trained_share)
        self.width = max((q.prompt + self.answer(q)[1] for q in work.questions), default=1)
        base = chosen.for_base(parameters, device, shape, self.processes)
        training = chosen.for_training(parameters, device, shape, base, self.lengths, steps, self.processes)
        answers = chosen.for_answers(parameters, device, shape, base, work.asked, self.width, self.processes)
        self.choices = Choices({**base, **training, **answers})

    def answer(self, question: Question) -> tuple[int, int]:
        """(expected, allowed) tokens of the answer to a question."""
        return workload.answer_tokens(question, self.parameters, self.work.usual_answer)

    def needs(self) -> tuple[Memory, Memory]:
        """Memory of training and of answering; only where the shape is known."""
        assert self.shape is not None
        choose = self.choices.value
        needs = TrainingNeeds(
            self.parameters, self.device, self.shape, self.choices, choose("packing"), self.lengths, self.processes
        )
        answering = answering_memory(
            self.shape, quantised=choose("quantise"), dtype_bytes=DTYPE_BYTES[choose("dtype")],
            batch=min(choose("eval_batch"), max(1, self.work.asked)), tokens=self.width,
            prompt=max((q.prompt for q in self.work.questions), default=1), merged_copy=choose("merge"),
            on_gpu=self.device.kind == "cuda", shards=shards(self.choices, self.processes),
        )  # fmt: skip
        return needs.memory(choose("tokens_per_pass"), choose("gradient_checkpointing")), answering

    def fit(self) -> Fit:
        """Whether it fits, else the first change that makes it fit."""
        if self.shape is None:
            return Fit()
        training, answering = self.needs()
        room, need = safe_memory(self.device), max(training.total, answering.total)
        if not room or need <= room:
            return Fit(training, answering)
        which = "training" if training.total > room else "answering"
        told = (
            f"{which} needs {size(need)}, and {SAFE_SHARE:.0%} of the {size(self.device.memory_bytes)} of "
            f"{self.device.name} are {size(room)}"
        )
        least = need
        for changes in self._remedies():
            changed = Way(
                replace(self.parameters, **changes), self.device, self.shape, self.work, self.steps, self.processes
            )
            found = max(memory.total for memory in changed.needs())
            least = min(least, found)
            if found <= room:
                named = ", ".join(f"{name} to {str(value).lower()}" for name, value in changes.items())
                return Fit(training, answering, f"{told}; set {named}, which needs {size(found)}")
        card = next((f"a card of {gb} GB" for gb in CARDS_GB if gb * 1e9 * SAFE_SHARE >= least), "a larger card")
        more = card if self.device.kind == "cuda" else "a host with more memory"
        told += f" ({size(least)} with all that saves memory); take {more}, a smaller base model or shorter rows"
        return Fit(training, answering, told, True)

    def _remedies(self) -> Iterator[dict[str, Any]]:
        """Changes that save memory, those first that cost least; then all together."""
        together: dict[str, Any] = {}
        for name, value in (
            ("per_device_eval_batch_size", 0), ("tokens_per_pass", 0), ("merge_adapter", "off"),
            ("gradient_checkpointing", True), ("shard_base", "auto"), ("use_qlora", True),
            *([("use_qlora", "auto")] if self.processes > 1 else []),  # many shares are less than 4 bits
            ("per_device_eval_batch_size", 1),
        ):  # fmt: skip
            if getattr(self.parameters, name) != value:
                together[name] = value
                # Weights of 4 bits are not shared: both together would be refused.
                refused = name == "use_qlora" and self.parameters.shard_base is True
                yield {**({"shard_base": "auto"} if refused else {}), name: value}
        yield together
