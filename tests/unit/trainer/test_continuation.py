"""Training that begins with the weights of an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict

from trainer import model
from trainer.continuation import begin_with
from trainer.errors import InputError


@pytest.fixture
def saved(tmp_path: Path, tiny_base: Path, tiny_parameters: Any) -> Path:
    """An adapter of rank 4 whose lora_B has moved, as a stage leaves it."""
    adapted = model.attach_adapter(model.load_base(str(tiny_base), tiny_parameters()), tiny_parameters(lora_r=4))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.125)
    adapted.save_pretrained(str(tmp_path / "saved"))
    record = {"fingerprint": {"parts": {"base": "this base"}}}
    (tmp_path / "saved" / "training_config.json").write_text(json.dumps(record))
    return tmp_path / "saved"


@pytest.fixture
def attach(tiny_base: Path, tiny_parameters: Any, saved: Path) -> Callable[..., Any]:
    """Attaches a fresh adapter and lets it begin with the saved one."""

    def do(base_hash: str = "this base", **changes: Any) -> Any:
        parameters = tiny_parameters(**{"lora_r": 4, "initial_adapter": str(saved), **changes})
        adapted = model.attach_adapter(model.load_base(str(tiny_base), parameters), parameters)
        begin_with(adapted, parameters, base_hash)
        return adapted

    return do


def test_the_weights_are_those_of_the_adapter_and_are_trained(attach: Callable[..., Any]) -> None:
    adapted = attach()
    weights = get_peft_model_state_dict(adapted)
    assert all(bool((w == 0.125).all()) for name, w in weights.items() if "lora_B" in name)
    assert any(weight.requires_grad for weight in adapted.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_r": 8}, "has lora_r 4, the stage 8; set lora_r to 4"),
        ({"lora_alpha": 7}, "has lora_alpha 32, the stage 7"),
        ({"lora_target_modules": "q_proj"}, "weights differ, the first is"),
        ({"base_hash": "other"}, "was trained on another base model"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    attach: Callable[..., Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        attach(**changes)


def test_an_adapter_without_a_record_of_its_base_is_taken(attach: Callable[..., Any], saved: Path) -> None:
    (saved / "training_config.json").write_text("no json")
    with pytest.raises(InputError, match="cannot be read"):
        attach()
    (saved / "training_config.json").unlink()
    assert attach("any base")
