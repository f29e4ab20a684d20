"""What a training does when memory runs out: smaller passes, then gradient checkpointing, then a plain sentence.

A rung changes how many forward and backward passes a step takes, never which examples it holds, the order of the
steps or their learning rates. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

# What torch, its CPU allocator and cuBLAS say; their types do not always tell an allocation from another error.
_TYPES = {"OutOfMemoryError", "MemoryError"}
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Rung:
    """The most tokens of a pass (a longer row goes alone), and whether activations are recomputed."""

    tokens_per_pass: int
    gradient_checkpointing: bool

    def record(self) -> dict[str, Any]:
        """The rung as reports and checkpoints hold it."""
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """The pass that did not fit: its tokens with padding, its rows, and the longest of them."""

    tokens: int
    rows: int
    row_id: str
    longest: int

    @classmethod
    def of(cls, tokens: int, items: Sequence[Any]) -> Failure:
        """That of a pass of these items (with `row_id` and a length in tokens); there may be none in it."""
        longest = max(items, key=len, default=None)
        return cls(tokens, len(items), longest.row_id if longest else "", len(longest) if longest else tokens)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on a GPU or on the CPU."""
    if {kind.__name__ for kind in type(problem).__mro__} & _TYPES:
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in _WORDS)


def below(rung: Rung, failures: Sequence[Failure]) -> Rung | None:
    """The next rung after these failures (one for each process that had one); None when there is none.

    Half of the largest pass that failed with several rows; when every failed pass was one row alone, gradient
    checkpointing.
    """
    several = [failure.tokens for failure in failures if failure.rows > 1]
    if several:
        return replace(rung, tokens_per_pass=max(1, min(rung.tokens_per_pass, max(several)) // 2))
    return None if rung.gradient_checkpointing else replace(rung, gradient_checkpointing=True)


def told(step: int, before: Rung, after: Rung) -> str:
    """The note for a rung that was taken."""
    if before.gradient_checkpointing != after.gradient_checkpointing:
        change = "gradient checkpointing is on from here"
    else:
        change = f"passes have at most {after.tokens_per_pass} tokens from here, {before.tokens_per_pass} before"
    return f"out of memory at step {step}: {change}; examples, steps and learning rates stay the same"


def of_shares(step: int, rung: Rung, failure: Failure, device: str, memory_bytes: int) -> str:
    """The sentence for a pass on a base in shares: the other processes wait in the middle of it, so none is tried."""
    rows = f"{failure.rows} rows" if failure.rows > 1 else f"row {failure.row_id!r} alone"
    changes = [f"tokens_per_pass to {failure.tokens // 2} or less"] if failure.rows > 1 else []
    changes += [] if rung.gradient_checkpointing else ["gradient_checkpointing to true"]
    told = "set " + " or ".join(changes) if changes else "shorten it, lower lora_r or take more devices"
    return (
        f"out of memory at step {step}: a pass of {failure.tokens} tokens ({rows}) does not fit into the "
        f"{_room(device, memory_bytes)}, and processes that share the base cannot try a smaller one; {told}"
    )


def _room(device: str, memory_bytes: int) -> str:
    return f"{memory_bytes / 2**30:.1f} GiB of {device}" if memory_bytes else f"memory of {device}"


def gave_up(failure: Failure, device: str, memory_bytes: int) -> str:
    """The sentence for a row that fits on no rung."""
    return (
        f"row {failure.row_id!r} with its {failure.longest} tokens does not fit alone into the "
        f"{_room(device, memory_bytes)}, even with "
        "gradient checkpointing; shorten it, set use_qlora to true, lower lora_r or take a device with more memory"
    )
