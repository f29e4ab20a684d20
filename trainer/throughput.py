"""How long training and answering take: operations and bytes over what a device can do. No torch.

A time is estimated only for a device whose figures are known. What no data sheet tells (the share of the peak that is
reached, the cost of starting kernels one by one) is an assumption with a name here, told beside every estimate, and
gives way to what the last run on the host measured.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Protocol

from trainer.shape import Shape

TRAINING_SHARE = 0.4  # of a GPU's dense 16-bit peak that matrix products of a training reach
BANDWIDTH_SHARE = 0.7  # of the memory bandwidth
PROCESSOR_SHARE = 0.5  # of what one large product measures: a model's are smaller, and it does more than multiply
# Kernels are started one after another by Python: a layer cannot be passed faster, however few tokens there are.
# Seconds for a layer with adapters, forward and backward (with recomputation half as much again), and for one layer
# of one new token.
TRAINING_LAYER_SECONDS = 3e-3
ANSWERING_LAYER_SECONDS = 0.8e-3
NF4_UNPACKED_BYTES = 4.5  # read half a byte, write two, read them again for the product


class Base(Protocol):
    """What of a device counts here: trainer.device.Device has it."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Speed:
    """Operations (16-bit, dense) and bytes per second of one device, and where the figures come from."""

    flops: float
    bandwidth: float
    source: str
    share: float = TRAINING_SHARE


# Name as nvidia-smi tells it, dense 16-bit tensor Tflop/s with float32 sums, GB/s. From NVIDIA's data sheets, and for
# the GeForce and RTX cards from its Ampere, Ada and Blackwell architecture whitepapers; where these tell a figure with
# sparsity, half of it. V100 and T4 have no bfloat16: theirs is float16.
_CARDS: tuple[tuple[str, float, float], ...] = (
    (r"H200( NVL)?", 989, 4800),
    (r"H20", 148, 4000),
    (r"H(100|800)( 80GB HBM3| SXM5?|-SXM.*)", 989, 3350),
    (r"H800", 989, 3350),
    (r"H100 NVL", 835, 3900),
    (r"H(100|800) PCIe", 756, 2000),
    (r"A(100|800)-(SXM4|PCIE|PCIe)-40GB", 312, 1555),
    (r"A(100|800)-SXM4?-80GB", 312, 2039),
    (r"A(100|800) 80GB PCIe", 312, 1935),
    (r"L40S", 362, 864),
    (r"L40", 181, 864),
    (r"L4", 121, 300),
    (r"A10G?", 125, 600),
    (r"A40", 150, 696),
    (r"RTX 6000 Ada Generation", 364, 960),
    (r"RTX A6000", 155, 768),
    (r"GeForce RTX 5090", 210, 1792),
    (r"GeForce RTX 4090", 165, 1008),
    (r"GeForce RTX 3090", 71, 936),
    (r"V100-.*", 125, 900),
    (r"T4", 65, 320),
)


def of_card(name: str) -> Speed | None:
    """The published speed of a GPU by the name that nvidia-smi tells; None for one that is not in the table."""
    plain = re.sub(r"^(NVIDIA|Tesla)\s+", "", name.strip())
    plain = re.sub(r"^(NVIDIA|Tesla)\s+", "", plain)
    for pattern, tera, giga in _CARDS:
        if re.fullmatch(pattern, plain):
            return Speed(tera * 1e12, giga * 1e9, f"{plain}: {tera:g} Tflop/s and {giga:g} GB/s, as NVIDIA tells")
    return None


def of_processor() -> Speed | None:
    """What the processor does with a float32 product and a copy, measured in some tenths of a second; needs numpy."""
    try:
        import numpy
    except ImportError:
        return None
    side = 512
    left, right = numpy.ones((side, side), numpy.float32), numpy.ones((side, side), numpy.float32)
    copied = numpy.zeros(4 << 20, numpy.float32)
    product = _fastest(lambda: left @ right)
    copy = _fastest(lambda: copied.copy())
    flops, bandwidth = 2 * side**3 / product, 2 * copied.nbytes / copy
    source = f"measured here: {flops / 1e9:.0f} Gflop/s (float32) and {bandwidth / 1e9:.0f} GB/s"
    return Speed(flops, bandwidth, source, PROCESSOR_SHARE)


def _fastest(work: object, seconds: float = 0.15) -> float:
    """The shortest of the calls within that time: others that use the processor only ever make one longer."""
    assert callable(work)
    end, best = time.perf_counter() + seconds, float("inf")
    while True:
        began = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - began)
        if now >= end:
            return best


def training_flops(
    shape: Shape, adapter: int, tokens: int, trained: int, pairs: float, *, checkpointing: bool
) -> float:
    """Operations of forward and backward for so many tokens, `trained` of which go through the head.

    A product of N weights takes 2 N for each token forward, 2 N for the gradient of its input and 2 N for that of its
    weights (Kaplan et al. 2020, section 2.1: 6 N together). The base is frozen and needs no gradient of weights: 4 N,
    and 2 N more where checkpointing runs forward twice. The adapter needs all three. TRL's head computes its
    logits again on the way back: 6 N. `pairs` of tokens that see each other take 4 x query width in a layer forward
    and 2.5 times that backward (Dao et al. 2022, section B.5: with recomputation).
    """
    again = 1 if checkpointing else 0
    linear = shape.linear_parameters * (4 + 2 * again) + adapter * (6 + 2 * again)
    head = 6 * shape.vocabulary * shape.hidden
    return linear * tokens + head * trained + 4 * shape.layers * shape.query_width * pairs * (3.5 + again)


def training_seconds(
    shape: Shape, speed: Speed, *, adapter: int, tokens: int, trained: int, pairs: float, passes: int,
    checkpointing: bool, quantised: bool,
) -> float:  # fmt: skip
    """Seconds for so many tokens in so many passes, on one device."""
    flops = training_flops(shape, adapter, tokens, trained, pairs, checkpointing=checkpointing)
    busy = flops / (speed.flops * speed.share)
    walks = 3 if checkpointing else 2
    if quantised:  # every pass unpacks every weight on each of its walks through the layers
        busy += passes * walks * shape.linear_parameters * NF4_UNPACKED_BYTES / (speed.bandwidth * BANDWIDTH_SHARE)
    return max(busy, passes * shape.layers * TRAINING_LAYER_SECONDS * walks / 2)


def answering_seconds(
    shape: Shape, speed: Speed, *, prompt: int, answers: list[tuple[int, int]], quantised: bool, dtype_bytes: int
) -> float:
    """Seconds for questions of `prompt` tokens together; `answers` are (rows, tokens of the longest) of each batch.

    A new token of all rows of a batch reads every weight once: the larger of that, its operations and the start of
    its kernels is its time. A batch lasts as long as its longest answer.
    """
    matrix = shape.linear_parameters + shape.vocabulary * shape.hidden
    weight_bytes = shape.linear_parameters * (NF4_UNPACKED_BYTES if quantised else dtype_bytes)
    weight_bytes += shape.vocabulary * shape.hidden * dtype_bytes
    seconds = 2.0 * shape.linear_parameters * prompt / (speed.flops * speed.share)
    for rows, tokens in answers:
        one = max(
            weight_bytes / (speed.bandwidth * BANDWIDTH_SHARE),
            2.0 * matrix * rows / (speed.flops * speed.share),
            shape.layers * ANSWERING_LAYER_SECONDS,
        )
        seconds += one * tokens
    return seconds
