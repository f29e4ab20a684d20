"""The adapter's own kernels against PEFT's: outputs and gradients, and which layers have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from trainer import lowrank


class Two(nn.Module):
    """Two linear layers, the first without a bias, and a head that gets no adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 12, bias=False), nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return found


def adapted(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model with adapters that do something from the beginning."""
    torch.manual_seed(3)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["first", "second"], "lora_dropout": 0.0, **changes}
    found = get_peft_model(Two().to(dtype), LoraConfig(**settings))
    for name, weight in found.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn_like(weight, dtype=torch.float32)
    return found


def outcome(model: Any, x: torch.Tensor, autocast: bool = False) -> list[torch.Tensor]:
    """Scores, the gradient of the input, and those of the adapter."""
    x = x.clone().requires_grad_()
    torch.manual_seed(7)  # of the dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = model(x)
    scores.float().square().sum().backward()
    found = [scores.detach(), x.grad, *(weight.grad for weight in model.parameters() if weight.requires_grad)]
    model.zero_grad()
    assert all(part is not None for part in found)
    return [part.clone() for part in found if part is not None]


@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.4}, {"use_rslora": True}])
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8)])
def test_outputs_and_gradients_are_those_of_peft(changes: dict[str, Any], shape: tuple[int, ...]) -> None:
    model, x = adapted(**changes), torch.randn(shape)
    wanted = outcome(model, x)
    with lowrank.fused(model) as count:
        assert count == 2
        found = outcome(model, x)
    assert [part.shape for part in found] == [part.shape for part in wanted]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found, wanted, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), "another order of additions"


def error(parts: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """The largest relative one."""
    pairs = zip(parts, truth, strict=True)
    return max(float(torch.linalg.norm(a.float() - b) / torch.linalg.norm(b)) for a, b in pairs)


@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.4}])
def test_mixed_precision_is_as_near_to_the_truth_as_with_peft(changes: dict[str, Any]) -> None:
    mixed, exact = adapted(torch.bfloat16, **changes), adapted(torch.float32, **changes)
    own, by_peft = 0.0, 0.0
    for seed in range(30):
        torch.manual_seed(seed)
        for name, weight in mixed.named_parameters():
            if "lora_" in name:
                weight.data = torch.randn_like(weight) * 0.3
        exact.load_state_dict(mixed.state_dict())
        x = torch.randn(5, 8)
        truth, with_peft = outcome(exact, x), outcome(mixed, x, autocast=True)
        with lowrank.fused(mixed):
            found = outcome(mixed, x, autocast=True)
        assert [part.dtype for part in found] == [part.dtype for part in with_peft]
        own, by_peft = own + error(found, truth), by_peft + error(with_peft, truth)
    assert own < 1.2 * by_peft


def test_gradients_are_right_by_finite_differences() -> None:
    torch.manual_seed(0)
    sizes = ((5, 8), (6, 8), (3, 8), (6, 3))
    x, weight, a, b = (torch.randn(size, dtype=torch.float64) for size in sizes)
    moving = [part.requires_grad_() for part in (x, a, b)]
    assert torch.autograd.gradcheck(lambda x, a, b: lowrank._Products.apply(x, weight, a, b, 1.5), moving)
    y = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: lowrank._Addition.apply(*given, 1.5), (y, *moving))


def test_afterwards_the_layers_are_pefts_again() -> None:
    model, x = adapted(), torch.randn(3, 8)
    before = model(x)
    with pytest.raises(KeyError), lowrank.fused(model):
        raise KeyError
    assert torch.equal(model(x), before)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_of_another_kind_are_left_to_peft(changes: dict[str, Any]) -> None:
    model = adapted(**changes, target_modules=["second"])
    with lowrank.fused(model) as count:
        assert count == 0
    with lowrank.fused(adapted(target_modules=["second"])) as count:
        assert count == 1


def test_a_base_that_learns_is_left_to_peft() -> None:
    model = adapted()
    model.base_model.model.first.base_layer.weight.requires_grad_(True)
    with lowrank.fused(model) as count:
        assert count == 1


def test_a_layer_with_two_adapters_at_once_is_left_to_peft() -> None:
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first"]))
    with lowrank.fused(model) as count:
        assert count == 2, "one of them is active"
    model.base_model.set_adapter(["default", "other"])
    with lowrank.fused(model) as count:
        assert count == 0
