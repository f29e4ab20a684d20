"""How long training and answering take: operations and bytes over what a device can do. No torch.

A time is estimated only for a device whose figures are known. What no data sheet tells (the share of the peak that is
reached, the cost of starting kernels one by one) is an assumption with a name here, told beside every estimate, and
gives way to what the last run on the host measured.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

from trainer.shape import Shape

TRAINING_SHARE = 0.4  # of a GPU's dense 16-bit peak that matrix products of a training reach
BANDWIDTH_SHARE = 0.7  # of the memory bandwidth
# Of what one large product measures. The embedded base reached 0.38 in training and in answering (one core with
# AVX-512, torch 2.13, processor time).
PROCESSOR_SHARE = 0.38
# Kernels are started one after another by Python: a layer cannot be passed faster, however few tokens there are.
# Seconds for a layer with adapters, forward and backward (with recomputation half as much again), and for one layer
# of one new token; then what every optimiser step and every new token costs beside. On that core the embedded base's
# three layers took 18.7 ms for a step of 8 tokens, and 4.6 ms for a new token.
TRAINING_LAYER_SECONDS = 3e-3
ANSWERING_LAYER_SECONDS = 0.8e-3
STEP_SECONDS = 10e-3
TOKEN_SECONDS = 2e-3
MEASURE_SECONDS = 10.0  # a machine that cannot even import numpy in that time is not measured
# The best of many calls: others that use the cores only ever make one longer.
_MEASURE = """
import time
import numpy
side = 384
left, right = numpy.ones((side, side), numpy.float32), numpy.ones((side, side), numpy.float32)
data = numpy.zeros(4 << 20, numpy.float32)
def fastest(work, seconds):
    end, best = time.perf_counter() + seconds, 1e9
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best
print(2 * side**3 / fastest(lambda: left @ right, 0.1), 2 * data.nbytes / fastest(data.copy, 0.1))
"""
NF4_UNPACKED_BYTES = 4.5  # read half a byte, write two, read them again for the product


@dataclass(frozen=True)
class Speed:
    """Operations and bytes per second of one device, and where the figures come from.

    `ahead`: kernels are started while others still compute, so that only the longer of both counts.
    """

    flops: float
    bandwidth: float
    source: str
    share: float = TRAINING_SHARE
    ahead: bool = True

    def together(self, computing: float, starting: float) -> float:
        return max(computing, starting) if self.ahead else computing + starting


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


@cache
def of_processor(cores: int) -> Speed | None:
    """What so many cores do with a float32 product and a copy, from one of them; None without numpy.

    Measured in a process of its own, because the threads of a product wait for each other where others use the
    cores, and numpy takes their number from the environment when it is imported. Takes about half a second.
    """
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE], env={**os.environ, **one}, capture_output=True, text=True, check=True,
            timeout=MEASURE_SECONDS,
        )  # fmt: skip
        product, copy = (float(word) for word in done.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    flops, bandwidth = cores * product, copy  # the cores share the bandwidth
    source = f"measured here: {flops / 1e9:.0f} Gflop/s (float32, {cores} cores) and {bandwidth / 1e9:.0f} GB/s"
    return Speed(flops, bandwidth, source, PROCESSOR_SHARE, ahead=False)


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
    shape: Shape, speed: Speed, *, adapter: int, tokens: int, trained: int, pairs: float, steps: int, passes: int,
    checkpointing: bool, quantised: bool,
) -> float:  # fmt: skip
    """Seconds for so many tokens in so many optimiser steps and passes, on one device."""
    flops = training_flops(shape, adapter, tokens, trained, pairs, checkpointing=checkpointing)
    busy = flops / (speed.flops * speed.share)
    walks = 3 if checkpointing else 2
    if quantised:  # every pass unpacks every weight on each of its walks through the layers
        busy += passes * walks * shape.linear_parameters * NF4_UNPACKED_BYTES / (speed.bandwidth * BANDWIDTH_SHARE)
    starting = passes * shape.layers * TRAINING_LAYER_SECONDS * walks / 2
    return speed.together(busy, starting) + steps * STEP_SECONDS


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
        busy = max(
            weight_bytes / (speed.bandwidth * BANDWIDTH_SHARE), 2.0 * matrix * rows / (speed.flops * speed.share)
        )
        seconds += tokens * (speed.together(busy, shape.layers * ANSWERING_LAYER_SECONDS) + TOKEN_SECONDS)
    return seconds
