"""How a stage is run on this host: each choice with its reason. No torch.

Pure functions of the parameters, the device and the base's shape. A choice that depends on memory compares the
estimate (trainer/estimate.py) with a share of one device's memory; where the shape is not known it is the careful one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trainer import fitting
from trainer.budget import (
    ASKED,
    DTYPE_BYTES,
    PADDED,
    PADDING_FREE,
    Lengths,
    TrainingNeeds,
    safe_memory,
    shards,
    told,
    unknown,
)
from trainer.config import Parameters
from trainer.copies import size
from trainer.device import Device
from trainer.errors import HostUnfit, InputError
from trainer.estimate import answering_memory
from trainer.shape import Shape
from trainer.tables import literal

# Unpacking an nf4 weight moves about 4.5 bytes, multiplying n tokens with it takes 2 n operations: at 4.8 TB/s and
# 990 Tflop/s (the data sheet of an H200, bfloat16) the unpacking costs 464/n of the multiplication: 11 % in a pass of
# 4,096 tokens, which is less than the 20 to 30 % of checkpointing, and 3 % in one of 16,384, beyond which there is
# little to gain. A processor is busy with far fewer.
FULL_PASS = {"cuda": 16384, "cpu": 4096}
FAIR_PASS = {"cuda": 4096, "cpu": 512}
PASS_STEP = 256  # tokens: passes are tried in steps of so many
# At a time. A step reads all weights (2 bytes each) for 2 operations a weight and row: by the figures above a GPU is
# busy from 206 rows on. On a processor 64 are 20 % faster than 32 and 5 % slower than 128: measured with 57 and 228
# questions of the embedded base.
MOST_QUESTIONS = {"cuda": 256, "cpu": 64}
CAREFUL_QUESTIONS = 16  # where memory cannot be estimated
FLASH_HEADS = 256  # the widest head of flash-attn 2, which wants Ampere (8, 0) or newer and 16 bits (its README)
FLASH_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Choice:
    """What was chosen and why, in a sentence for the report."""

    name: str
    value: Any
    reason: str


class Choices(dict[str, Choice]):
    """Choices by name, in the order in which they were made."""

    def add(self, name: str, value: Any, reason: str) -> None:
        self[name] = Choice(name, value, reason)

    def value(self, name: str) -> Any:
        """What was chosen; KeyError for a name that nobody has chosen yet."""
        return self[name].value

    def table(self) -> list[dict[str, Any]]:
        """[{name, value, reason}] as the report holds it."""
        return [asdict(choice) for choice in self.values()]

    def lines(self) -> list[str]:
        """What the log says of each."""
        return [f"{choice.name}: {literal(choice.value)} ({choice.reason})" for choice in self.values()]


def for_base(parameters: Parameters, device: Device, shape: Shape | None, processes: int = 1) -> Choices:
    """dtype, attention, quantise, shard_base and fused_kernels: all that shapes the base loaded by `processes`.

    Errors: HostUnfit or InputError for an attention, or shares of a quantised base, that cannot be had.
    """
    choices = Choices()
    choices.add("dtype", *_dtype(parameters, device))
    choices.add("attention", *_attention(parameters, device, shape, choices.value("dtype")))
    longest = Lengths(1, parameters.max_length, parameters.max_length, 1.0)
    needs = TrainingNeeds(parameters, device, shape, choices, _packing(parameters, choices)[0], longest)
    choices.add("quantise", *fitting.quantise(parameters, needs, processes, FAIR_PASS["cuda"]))
    choices.add("shard_base", *fitting.shard_base(parameters, needs, processes, choices.value("quantise")))
    choices.add("fused_kernels", *_fused_kernels(parameters, device, shape, choices))
    return choices


def for_training(
    parameters: Parameters, device: Device, shape: Shape | None, base: Choices, lengths: Lengths, steps: int,
    processes: int = 1, refusal: str = "",
) -> Choices:  # fmt: skip
    """packing, shared_prefixes, gradient_checkpointing, tokens_per_pass, compile and adapter_kernel of one training.

    It has `steps` optimiser steps.
    `tokens_per_pass` counts padding; a longer row goes alone. `processes` share the examples of a step.
    `refusal` says why the model does not take rows without padding, if it does not.
    """
    choices = Choices()
    choices.add("packing", *_packing(parameters, base, refusal))
    choices.add("shared_prefixes", *_shared_prefixes(parameters, choices.value("packing"), base))
    needs = TrainingNeeds(parameters, device, shape, base, choices.value("packing"), lengths, processes)
    examples = parameters.per_device_train_batch_size * parameters.gradient_accumulation_steps
    share = min(-(-examples // processes), max(lengths.rows, 1))
    passes = _passes if needs.known else _careful_passes
    passes(choices, parameters, needs, share * lengths.longest)  # no step of a process has more tokens
    choices.add("compile", *_compile(parameters, steps, needs.shards))
    choices.add("adapter_kernel", *_adapter_kernel(parameters, choices.value("compile")))
    return choices


def for_answers(
    parameters: Parameters, device: Device, shape: Shape | None, base: Choices, rows: int, tokens: int,
    processes: int = 1,
) -> Choices:  # fmt: skip
    """merge and eval_batch for `rows` questions of at most `tokens` with their answers.

    `merge` says that memory holds a merged copy of the weights and nothing known speaks against it; merging.choose
    has the last word, with the model at hand.
    """
    choices, room = Choices(), safe_memory(device)
    known = shape is not None and room > 0
    asked, most = parameters.per_device_eval_batch_size, min(max(rows, 1), MOST_QUESTIONS[device.kind])
    first = asked or min(most, CAREFUL_QUESTIONS)  # merging saves more than a batch beyond this one

    def need(batch: int, merged: bool) -> int:
        assert shape is not None
        return answering_memory(
            shape, quantised=base.value("quantise"), dtype_bytes=DTYPE_BYTES[base.value("dtype")], batch=batch,
            tokens=tokens, merged_copy=merged, on_gpu=device.kind == "cuda", shards=shards(base, processes),
        ).total  # fmt: skip

    obstacle = _merge_obstacle(parameters, base) or ("" if known else unknown(shape))
    if obstacle:
        choices.add("merge", False, obstacle)
    else:
        choices.add("merge", need(first, True) <= room, told(need(first, True), device, "with a merged copy"))
    if asked or not known:
        choices.add("eval_batch", first, ASKED if asked else unknown(shape))
        return choices
    merged = choices.value("merge")
    batch = next((size for size in range(most, 1, -1) if need(size, merged) <= room), 1)
    why = "all at once" if batch >= rows else "more gain little" if batch == most else "more do not fit"
    choices.add("eval_batch", batch, _joined(why, told(need(batch, merged), device)))
    return choices


def _merge_obstacle(parameters: Parameters, base: Choices) -> str:
    """Why merged weights would not answer the same, as far as that is known without the model."""
    if parameters.merge_adapter == "off":
        return ASKED
    if base.value("quantise"):
        return "a 4-bit base would be quantised anew"
    if shards(base, 2) > 1:
        return "a base in shares is never whole on one device"
    dtype = base.value("dtype")
    return "" if dtype == "float32" else f"weights in {dtype} would round the adapter away"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _dtype(parameters: Parameters, device: Device) -> tuple[str, str]:
    wanted = parameters.compute_dtype
    if wanted == "bfloat16" and device.kind == "cuda" and not device.bf16_native:
        return wanted, f"{ASKED}, though {device.name} only emulates it"
    if wanted != "auto":
        return wanted, ASKED
    if device.kind == "cpu":
        return "float32", "without a GPU types of 16 bits are slower"
    if device.bf16_native:
        return "bfloat16", f"native on {device.name}"
    return "float16", f"{device.name} has no native bfloat16"


def _attention(parameters: Parameters, device: Device, shape: Shape | None, dtype: str) -> tuple[str, str]:
    wanted = parameters.attention
    unfit, refused = _lacks_flash(device), _refuses_flash(shape, dtype)
    if wanted == "flash_attention_2" and (unfit or refused):
        kind = HostUnfit if unfit else InputError
        raise kind(f"attention is flash_attention_2, but {unfit or refused}; set it to auto or sdpa")
    if wanted != "auto":
        return wanted, ASKED
    if unfit or refused:
        return "sdpa", unfit or refused
    return "flash_attention_2", "flash-attn is installed"


def _lacks_flash(device: Device) -> str:
    """Why the host cannot run flash-attn, empty where it can."""
    if device.kind == "cpu":
        return "this host has no GPU for flash-attn"
    if device.capability is None or device.capability < FLASH_CAPABILITY:
        told = ".".join(map(str, device.capability)) if device.capability else "not known"
        return f"flash-attn wants the compute capability 8.0 and that of {device.name} is {told}"
    return "" if device.flash_attention else "flash-attn is not installed"


def _refuses_flash(shape: Shape | None, dtype: str) -> str:
    """Why flash-attn does not take this base, empty where it does."""
    if dtype == "float32":
        return "flash-attn wants 16 bits and compute_dtype is float32"
    if shape is not None and shape.head_dim > FLASH_HEADS:
        return f"flash-attn takes heads of {FLASH_HEADS} and the base's have {shape.head_dim}"
    return ""


def _fused_kernels(parameters: Parameters, device: Device, shape: Shape | None, chosen: Choices) -> tuple[str, str]:
    if parameters.fused_kernels == "off":
        return "off", ASKED
    if device.kind == "cpu":
        return "off", "Liger's kernels want a GPU"
    if not device.liger:
        return "off", "Liger is not installed"
    if shape is None:
        return "off", "the architecture of the base is not known"
    if chosen.value("shard_base"):
        return "off", "not tried on a base in shares"
    return "liger", "Liger is installed"


def _packing(parameters: Parameters, base: Choices, refusal: str = "") -> tuple[str, str]:
    if refusal and parameters.packing != PADDED:
        return PADDED, refusal
    if parameters.packing != "auto":
        return parameters.packing, ASKED
    if base.value("attention") == "eager":
        return PADDED, "eager attention computes every pair of tokens in a pass"
    return PADDING_FREE, "no token is spent on padding"


def _shared_prefixes(parameters: Parameters, packing: str, base: Choices) -> tuple[bool, str]:
    if packing != PADDING_FREE:
        return False, "only rows without padding share tokens"
    if base.value("attention") == "flash_attention_2":
        return False, "flash-attn's own function does not join rows"
    if isinstance(parameters.share_prefixes, bool):
        return parameters.share_prefixes, ASKED
    if parameters.lora_dropout:
        return False, f"lora_dropout {parameters.lora_dropout:g} draws for each row by itself"
    return True, "without dropout equal beginnings have equal states"


def _adapter_kernel(parameters: Parameters, compiled: bool) -> tuple[str, str]:
    if parameters.fused_kernels == "off":
        return "peft", "fused_kernels is off"
    if compiled:
        return "peft", "the compiler fuses it itself"
    return "fused", "scale and sums are part of the matrix products"


def _passes(choices: Choices, parameters: Parameters, needs: TrainingNeeds, step: int) -> None:
    """gradient_checkpointing and tokens_per_pass: both trade memory for time, so they are chosen together."""
    longest, asked = needs.lengths.longest, parameters.tokens_per_pass
    full, fair = (max(longest, asked or min(step, most[needs.device.kind])) for most in (FULL_PASS, FAIR_PASS))
    checkpointing = parameters.gradient_checkpointing
    if isinstance(checkpointing, bool):
        choices.add("gradient_checkpointing", checkpointing, ASKED)
    else:
        checkpointing = not needs.fit(fair, False)
        more = f"{size(needs.memory(fair, True).total)} with it" if checkpointing else ""
        choices.add("gradient_checkpointing", checkpointing, _joined(needs.told(fair, False, "without it"), more))
    if asked:
        choices.add("tokens_per_pass", asked, _asked_pass(asked, longest))
        return
    tokens = next((n for n in range(full, longest, -PASS_STEP) if needs.fit(n, checkpointing)), longest)
    if not needs.fit(tokens, checkpointing):
        why = "the longest row alone, which may be too much"
    else:
        why = "a step at once" if tokens >= step else "more gain little" if tokens == full else "more do not fit"
    choices.add("tokens_per_pass", tokens, _joined(why, needs.told(tokens, checkpointing)))


def _careful_passes(choices: Choices, parameters: Parameters, needs: TrainingNeeds, step: int) -> None:
    """The same without an estimate: checkpointing, and as many rows at a time as the parameters name."""
    longest, asked = needs.lengths.longest, parameters.tokens_per_pass
    wanted, why = parameters.gradient_checkpointing, unknown(needs.shape)
    choices.add("gradient_checkpointing", *((wanted, ASKED) if isinstance(wanted, bool) else (True, why)))
    if asked:
        choices.add("tokens_per_pass", asked, _asked_pass(asked, longest))
    else:
        choices.add("tokens_per_pass", min(step, parameters.per_device_train_batch_size * longest), why)


def _asked_pass(asked: int, longest: int) -> str:
    return ASKED if asked >= longest else f"{ASKED}; a row with more goes alone"


def _compile(parameters: Parameters, steps: int, shards: int) -> tuple[bool, str]:
    least = parameters.compile_above_steps
    if not least:
        return False, "compile_above_steps is 0"
    if shards > 1:
        return False, "not tried on a base in shares"
    if steps < least:
        return False, f"{steps} steps, and compiling pays from {least} on"
    return True, f"{steps} steps, and compile_above_steps is {least}"
