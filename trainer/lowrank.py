"""A LoRA layer's forward and backward as few kernels, in the place of PEFT's while an adapter is trained.

PEFT adds `lora_B(lora_A(x)) * scaling` to the base's output: the product with the scale and the sum are passes over
a whole activation, each with its own in the backward pass, and the gradients of the input meet in one more. Here the
scale and the sums are part of the matrix products (`addmm`). The results are PEFT's up to rounding, which the tests
hold against it; weights, names and files stay PEFT's.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch.autograd.function import once_differentiable


class _Products(torch.autograd.Function):  # type: ignore[misc]
    """y = x Wᵀ + s·x Aᵀ Bᵀ with a frozen W: x [tokens, in], W [out, in], A [rank, in], B [out, rank], one type."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, a: Any, b: Any, scaling: float) -> Any:
        inner = x @ a.t()
        ctx.save_for_backward(x, inner, weight, a, b)
        ctx.scaling = scaling
        return (x @ weight.t()).addmm_(inner, b.t(), alpha=scaling)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        x, inner, weight, a, b = ctx.saved_tensors
        back = (grad @ b).mul_(ctx.scaling)
        below = (grad @ weight).addmm_(back, a) if ctx.needs_input_grad[0] else None
        return below, None, back.t() @ x, (grad.t() @ inner).mul_(ctx.scaling), None


class _Addition(torch.autograd.Function):  # type: ignore[misc]
    """y + s·x Aᵀ Bᵀ, for a base whose product y [tokens, out] is its own affair: 4-bit weights, or dropout before A."""

    @staticmethod
    def forward(ctx: Any, y: Any, x: Any, a: Any, b: Any, scaling: float) -> Any:
        inner = x @ a.t()
        ctx.save_for_backward(x, inner, a, b)
        ctx.scaling = scaling
        return torch.addmm(y, inner, b.t(), alpha=scaling)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Any) -> tuple[Any, ...]:
        x, inner, a, b = ctx.saved_tensors
        back = (grad @ b).mul_(ctx.scaling)
        below = back @ a if ctx.needs_input_grad[1] else None
        return grad, below, back.t() @ x, (grad.t() @ inner).mul_(ctx.scaling), None


@contextlib.contextmanager
def fused(model: torch.nn.Module) -> Iterator[int]:
    """Within it the plain LoRA layers of the model compute as above; yields how many do."""
    layers = [module for module in model.modules() if is_plain(module)]
    try:
        for layer in layers:
            layer.forward = functools.partial(_forward, layer)
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward


def is_plain(module: torch.nn.Module) -> bool:
    """Whether a module is a LoRA layer with one adapter of two matrices, above a frozen linear layer."""
    if not isinstance(module, LoraLayer) or len(module.active_adapters) != 1 or module.merged:
        return False
    name, linear = module.active_adapters[0], isinstance(module, LoraLinear) or _is_4bit(module)
    if not linear or name not in module.lora_A or name in module.lora_variant or module.lora_bias.get(name):
        return False
    return not any(weight.requires_grad for weight in module.get_base_layer().parameters())


def _is_4bit(module: torch.nn.Module) -> bool:
    return type(module).__name__ == "Linear4bit"  # PEFT has the class only where bitsandbytes is


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The layer's output for x [.., in]: [.., out]."""
    name, base = layer.active_adapters[0], layer.get_base_layer()
    a, b, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
    dropout = layer.lora_dropout[name]
    if type(base) is torch.nn.Linear and base.bias is None and isinstance(dropout, torch.nn.Identity):
        rows, weight = _rows(x, kind or base.weight.dtype), base.weight.to(kind or base.weight.dtype)
        found = _Products.apply(rows, weight, a.to(rows.dtype), b.to(rows.dtype), scaling)
    else:
        y = base(x)
        rows = _rows(dropout(x), y.dtype)
        found = _Addition.apply(_rows(y, y.dtype), rows, a.to(y.dtype), b.to(y.dtype), scaling)
    return found.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def _rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).to(dtype)
