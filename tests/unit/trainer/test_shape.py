"""trainer/shape.py: sizes of a decoder from its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from trainer.shape import adapted_modules, adapter_parameters, of_config, of_folder, of_name

SIZES = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 160,
}  # fmt: skip


def built(settings: PreTrainedConfig) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings)


@pytest.mark.parametrize(
    "settings",
    [
        Qwen3Config(**SIZES, head_dim=32),
        Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True, attention_bias=True),
        Qwen2Config(**SIZES),
        LlamaConfig(**SIZES, mlp_bias=True, attention_bias=True),
        LlamaConfig(**{**SIZES, "num_key_value_heads": None}),
        MistralConfig(**SIZES, head_dim=8),
    ],
    ids=["qwen3", "qwen3 tied and biased", "qwen2", "llama biased", "llama without groups", "mistral"],
)
def test_the_counts_are_those_of_the_model_that_transformers_builds(settings: PreTrainedConfig) -> None:
    shape = of_config(settings.to_dict())
    assert shape is not None
    model = built(settings)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    linear = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not n.endswith("lm_head")]
    assert shape.linear_parameters == sum(m.weight.numel() for m in linear)


@pytest.mark.parametrize("targets", ["all-linear", "q_proj, v_proj", "model.layers.0.mlp.down_proj,down_proj"])
def test_an_adapter_has_the_weights_that_peft_makes(targets: str) -> None:
    from peft import LoraConfig, get_peft_model

    settings = Qwen3Config(**SIZES, head_dim=32)
    wanted = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
    adapted = get_peft_model(built(settings), LoraConfig(task_type="CAUSAL_LM", r=5, target_modules=wanted))
    shape = of_config(settings.to_dict())
    assert shape is not None
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert adapter_parameters(shape, 5, targets) == trained > 0


def test_a_module_that_the_layers_do_not_have_gets_no_adapter() -> None:
    shape = of_config(Qwen3Config(**SIZES).to_dict())
    assert shape is not None
    assert list(adapted_modules(shape, "q_proj,c_attn")) == ["q_proj"]
    assert adapter_parameters(shape, 8, "c_attn") == 0


@pytest.mark.parametrize(
    ("name", "billions", "without_embeddings"),
    # https://huggingface.co/Qwen/Qwen3-8B and its sisters, "Number of Parameters"
    [
        ("Qwen/Qwen3-0.6B", 0.6, 0.44),
        ("Qwen/Qwen3-1.7B", 1.7, 1.4),
        ("Qwen/Qwen3-4B", 4.0, 3.6),
        ("Qwen/Qwen3-8B", 8.2, 6.95),
        ("qwen/qwen3-14b-base", 14.8, 13.2),
        ("Qwen/Qwen3-32B", 32.8, 31.2),
    ],
)
def test_a_published_model_has_the_size_that_its_makers_tell(
    name: str, billions: float, without_embeddings: float
) -> None:
    shape = of_name(name)
    assert shape is not None
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.05)
    assert (shape.parameters - shape.embedding_parameters) / 1e9 == pytest.approx(without_embeddings, abs=0.06)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-9B", "other/Qwen3-8B", "Qwen/Qwen3", "embedded", "Qwen/Qwen3-30B-A3B"])
def test_a_model_of_another_name_is_unknown(name: str) -> None:
    assert of_name(name) is None


def test_a_folder_tells_its_shape(tmp_path: Path) -> None:
    settings = Qwen3Config(**SIZES, head_dim=32)
    settings.save_pretrained(tmp_path)
    assert of_folder(tmp_path) == of_config(settings.to_dict()) is not None


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff", json.dumps({"model_type": "qwen3"})])
def test_a_folder_without_a_fit_config_is_unknown(tmp_path: Path, text: str) -> None:
    assert of_folder(tmp_path) is None
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert of_folder(tmp_path) is None


def test_an_architecture_of_other_layers_is_unknown() -> None:
    known = Qwen3Config(**SIZES).to_dict()
    assert of_config(known) is not None
    assert of_config({**known, "model_type": "qwen3_moe"}) is None
    assert of_config({**known, "hidden_size": "wide"}) is None
