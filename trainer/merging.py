"""Answering with the adapter merged into the base's weights, and the weights put back as they were, bit by bit.

A merged weight W + s·BA saves two small products at each linear layer and each token. In float32 the answers stay
the same; bfloat16 and float16 weights would round most of the adapter away, and a 4-bit weight would be quantised anew.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer

from trainer import memory, sharding
from trainer.choices import Choice
from trainer.config import Parameters
from trainer.model import Base

NAME = "merge"
SHARE = 0.5  # of the free memory that the copies may take: the answers' keys and values need the rest
MEMINFO = Path("/proc/meminfo")


def choose(adapted: PeftModel, base: Base, parameters: Parameters) -> Choice:
    """Whether to answer on merged weights, with the reason."""
    if parameters.merge_adapter == "off":
        return Choice(NAME, False, "as merge_adapter asks")
    reason = obstacle(adapted, base)
    return Choice(NAME, not reason, reason or "a float32 base answers the same and faster")


def obstacle(adapted: PeftModel, base: Base) -> str:
    """Why merged weights would not answer the same, or do not fit beside the originals; "" when they may be used."""
    if base.quantised:
        return "a 4-bit base would be quantised anew"
    if sharding.is_sharded(base.model):
        return "a base in shares is never whole on one device"
    if base.dtype != torch.float32:
        return f"weights in {str(base.dtype).removeprefix('torch.')} would round the adapter away"
    layers = _layers(adapted)
    uses = Counter(id(weight) for _, module in adapted.named_modules() for weight in module.parameters(recurse=False))
    for layer in layers:
        if type(layer) is not LoraLinear or layer.lora_variant or any(layer.lora_bias.values()):
            return f"an adapter of another kind ({type(layer).__name__}) changes more than one weight"
        weight = layer.get_base_layer().weight
        if weight.dtype != torch.float32:
            return f"a weight in {str(weight.dtype).removeprefix('torch.')} would round the adapter away"
        if uses[id(weight)] > 1:
            return "a weight with an adapter is also used without it"
    needed = sum(layer.get_base_layer().weight.nbytes for layer in layers)
    free = free_bytes(base.model.device)
    if free is not None and needed > SHARE * free:
        return f"the merged weights need {needed / 2**30:.1f} GiB beside the originals, {free / 2**30:.1f} GiB are free"
    return ""


def _layers(adapted: PeftModel) -> list[LoraLayer]:
    return [module for module in adapted.modules() if isinstance(module, LoraLayer)]


def free_bytes(device: torch.device) -> int | None:
    """The memory that a process can still get on the device; None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        told = MEMINFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(r"^MemAvailable: +(\d+) kB$", told, re.MULTILINE)
    limit = memory.limit_mib()  # a container's, which /proc/meminfo does not know
    found = [int(match[1]) * 1024] if match else []
    if limit is not None:
        found.append(limit * 2**20 - _resident_bytes())
    return min(found) if found else None


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def merged(adapted: PeftModel) -> Iterator[None]:
    """Within: weights that hold the active adapter, and the adapter itself switched off. Afterwards: the very tensors.

    The originals are set aside and not computed back: W + s·BA - s·BA is not W.
    """
    aside: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for layer in _layers(adapted):
                weight = layer.get_base_layer().weight
                aside.append((weight, weight.data))
                for name in layer.active_adapters:
                    weight.data = weight.data + layer.get_delta_weight(name)
        with adapted.disable_adapter():  # type: ignore[no-untyped-call]
            yield
    finally:
        for weight, original in aside:
            weight.data = original
