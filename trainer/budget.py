"""What a training takes of a device's memory, and how that is said in a reason. No torch."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.config import Parameters
from trainer.copies import size
from trainer.device import Device
from trainer.estimate import SAFE_SHARE, Attention, Memory, training_memory
from trainer.shape import Shape

if TYPE_CHECKING:
    from trainer.choices import Choices

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ATTENTION: dict[str, Attention] = {"flash_attention_2": "flash", "sdpa": "sdpa", "eager": "eager"}
ASKED = "asked for"
PADDING_FREE, PADDED = "padding_free", "padded"


@dataclass(frozen=True)
class Lengths:
    """What a stage's examples add up to: rows, tokens, the longest row, the share of the tokens that is trained."""

    rows: int
    tokens: int
    longest: int
    trained_share: float


def lengths_of(lengths: Iterable[int], trained: Iterable[int]) -> Lengths:
    """The summary of examples of these lengths (tokens), of which so many tokens each are trained."""
    rows, tokens, longest = 0, 0, 0
    for length in lengths:
        rows, tokens, longest = rows + 1, tokens + int(length), max(longest, int(length))
    return Lengths(rows, tokens, longest, sum(int(count) for count in trained) / tokens if tokens else 0.0)


def safe_memory(device: Device) -> int:
    """Bytes of one device that an estimate may fill; 0 where its memory is not known."""
    return int(device.memory_bytes * SAFE_SHARE)


class TrainingNeeds:
    """What a training takes on a device, by the tokens of a pass and with or without checkpointing."""

    def __init__(
        self, parameters: Parameters, device: Device, shape: Shape | None, base: Choices, packing: str,
        lengths: Lengths, processes: int = 1,
    ) -> None:  # fmt: skip
        self.parameters, self.device, self.shape, self.base, self.lengths = parameters, device, shape, base, lengths
        self.quantised = "quantise" in base and bool(base.value("quantise"))  # not chosen yet: neither
        self.shards = shards(base, processes)
        # Rows one after another attend without a mask, each by itself: what sdpa then saves is what flash-attn saves.
        self.attention: Attention = "flash" if packing == PADDING_FREE else ATTENTION[base.value("attention")]
        self.room = safe_memory(device)
        self.known = shape is not None and self.room > 0

    def memory(self, tokens: int, checkpointing: bool) -> Memory:
        """The estimate; only where `known`."""
        assert self.shape is not None
        return training_memory(
            self.shape, rank=self.parameters.lora_r, targets=self.parameters.lora_target_modules,
            quantised=self.quantised, dtype_bytes=DTYPE_BYTES[self.base.value("dtype")],
            tokens_per_pass=tokens, longest=self.lengths.longest, checkpointing=checkpointing,
            trained_share=self.lengths.trained_share, dropout=self.parameters.lora_dropout > 0,
            attention=self.attention, on_gpu=self.device.kind == "cuda", shards=self.shards,
        )  # fmt: skip

    def with_base(self, *, quantised: bool = False, shards: int = 1) -> TrainingNeeds:
        """The same training on another form of the base."""
        other = copy.copy(self)
        other.quantised, other.shards = quantised, shards
        return other

    def fit(self, tokens: int, checkpointing: bool) -> bool:
        return self.memory(tokens, checkpointing).total <= self.room

    def told(self, tokens: int, checkpointing: bool, condition: str = "") -> str:
        return told(self.memory(tokens, checkpointing).total, self.device, condition)


def shards(base: Choices, processes: int) -> int:
    """How many processes share the base; 1 where each holds all of it."""
    return processes if "shard_base" in base and base.value("shard_base") else 1


def told(need: int, device: Device, condition: str = "") -> str:
    """`48.2 GB of 150.1 GB needed without it`; `would be` where the safe share does not hold it."""
    verb = "needed" if need <= safe_memory(device) else "would be needed"
    return f"{size(need)} of {size(device.memory_bytes)} {verb} {condition}".rstrip()


def unknown(shape: Shape | None) -> str:
    """Why nothing can be estimated: the shape or, where there is one, the memory is missing."""
    missing = "architecture of the base" if shape is None else "memory of the host"
    return f"the {missing} is not known, so nothing can be estimated"
