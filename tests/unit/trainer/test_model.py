"""Loading the base, plain or quantised, and putting adapters on and off it without a trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import bitsandbytes.functional
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import encoding, model, train
from trainer.base import build
from trainer.errors import HostUnfit, InputError, TrainingFailed

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture
def load(tiny_base: Path, tiny_parameters: Any) -> Callable[..., model.Base]:
    return lambda **changes: model.load_base(str(tiny_base), tiny_parameters(**changes))


@pytest.fixture
def fit(tiny_rows: Any, tiny_parameters: Any, tmp_path: Path) -> Callable[..., PeftModel]:
    """Trains a new adapter for a few steps on a base and returns the adapted model."""

    def run(base: model.Base, **changes: Any) -> PeftModel:
        parameters = tiny_parameters(**{"max_steps": 3, **changes})
        examples, _ = encoding.encode(
            list(enumerate(tiny_rows, 1)), base.tokenizer, "rows", enable_thinking=False, max_length=256
        )
        adapted = model.attach_adapter(base, parameters)
        train.train(adapted, base, examples, parameters, tmp_path / "train", lambda *_, **__: None)
        return adapted

    return run


def saved(adapted: PeftModel, folder: Path) -> bytes:
    adapted.save_pretrained(str(folder), safe_serialization=True)
    return (folder / "adapter_model.safetensors").read_bytes()


def weights(of: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in of.state_dict().items()}


def adapted_modules(adapted: PeftModel) -> set[str]:
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if ".lora_A" in name}


def test_the_default_adapter_is_r16_alpha_32_on_all_linear_layers(load: Any, tiny_base: Path) -> None:
    from trainer.config import Parameters

    base = load()
    adapted = model.attach_adapter(base, Parameters(model_name_or_path=str(tiny_base)))
    config = adapted.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (16, 32, 0.05, "none")
    assert adapted_modules(adapted) == LINEAR
    assert all(name.endswith("weight") and "lora_" in name for name, w in adapted.named_parameters() if w.requires_grad)


def test_target_modules_may_be_listed(load: Any, tiny_parameters: Any) -> None:
    adapted = model.attach_adapter(load(), tiny_parameters(lora_target_modules="q_proj, v_proj,", lora_r=4))
    assert adapted_modules(adapted) == {"q_proj", "v_proj"}
    assert adapted.peft_config["default"].r == 4


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ("q_prj", "'q_prj', which is no module of the base model; did you mean q_proj?"),
        ("q_proj,query", "'query', which is no module of the base model"),
        (",", "no name, which is no module of the base model"),
        ("q_norm", "'q_norm'"),
    ],
)
def test_a_target_that_cannot_be_one_is_refused_in_one_sentence(
    load: Any, tiny_parameters: Any, wanted: str, named: str
) -> None:
    with pytest.raises(InputError) as caught:
        model.attach_adapter(load(), tiny_parameters(lora_target_modules=wanted))
    assert str(caught.value).startswith("lora_target_modules ")
    assert named in str(caught.value) or wanted == "q_norm"
    assert "\n" not in str(caught.value)
    assert adapted_modules(model.attach_adapter(load(), tiny_parameters(lora_target_modules="q_proj"))) == {"q_proj"}


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_adapters_come_and_go_without_a_trace(
    load: Any, fit: Any, tmp_path: Path, gradient_checkpointing: bool
) -> None:
    base = load()
    before = weights(base.model)
    # Another run first, so that the second one finds whatever the first has left behind.
    model.detach_adapter(fit(base, seed=7, learning_rate=3e-3, gradient_checkpointing=gradient_checkpointing), base)
    after = weights(base.model)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    second = saved(fit(base, gradient_checkpointing=gradient_checkpointing), tmp_path / "second")
    fresh = saved(fit(load(), gradient_checkpointing=gradient_checkpointing), tmp_path / "fresh")
    assert second == fresh
    assert [p.name for p in (tmp_path / "fresh").iterdir() if p.suffix in (".bin", ".pt", ".pth")] == []


def test_another_seed_is_another_adapter(load: Any, fit: Any, tmp_path: Path) -> None:
    base = load()
    one = fit(base)
    first = saved(one, tmp_path / "one")
    model.detach_adapter(one, base)
    assert saved(fit(base, seed=43), tmp_path / "two") != first


@pytest.fixture
def stored(load: Any, tiny_parameters: Any, tmp_path: Path) -> Path:
    """A saved adapter whose B matrices are not zero."""
    adapted = model.attach_adapter(load(), tiny_parameters(lora_r=2))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.01)
    saved(adapted, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_saved_adapter_is_loaded_whole(load: Any, stored: Path) -> None:
    base = load()
    adapted = model.load_adapter(base, stored)
    kept = load_file(stored / "adapter_model.safetensors")
    found = {name.replace(".default.", "."): w for name, w in adapted.state_dict().items() if "lora_" in name}
    assert set(found) == set(kept)
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    assert not any(w.requires_grad for w in adapted.parameters())


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[min(tensors)]


def add(tensors: dict[str, torch.Tensor]) -> None:
    name = min(tensors)
    tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()


@pytest.mark.parametrize("change", [drop, add])
def test_an_adapter_with_other_keys_is_refused(load: Any, stored: Path, tmp_path: Path, change: Any) -> None:
    odd = Path(shutil.copytree(stored, tmp_path / "odd"))
    tensors = load_file(odd / "adapter_model.safetensors")
    save_file(tensors, odd / "adapter_model.safetensors", metadata={"format": "pt"})
    model.load_adapter(load(), odd)  # rewritten alone it is still accepted
    change(tensors)
    save_file(tensors, odd / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingFailed, match="the adapter in odd does not fit the base: 1 keys differ, the first is "):
        model.load_adapter(load(), odd)


def test_an_adapter_that_is_not_safetensors_is_not_read(load: Any, stored: Path) -> None:
    tensors = load_file(stored / "adapter_model.safetensors")
    (stored / "adapter_model.safetensors").unlink()
    torch.save(tensors, stored / "adapter_model.bin")
    with pytest.raises(TrainingFailed, match="has no adapter_model.safetensors"):
        model.load_adapter(load(), stored)


def test_code_that_comes_with_a_model_is_never_run(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for of in (AutoModelForCausalLM, AutoTokenizer):
        original = of.from_pretrained

        def noted(*args: Any, original: Any = original, **options: Any) -> Any:
            asked.append(options.get("trust_remote_code"))
            return original(*args, **options)

        monkeypatch.setattr(of, "from_pretrained", noted)
    load()
    assert asked == [False, False]


def test_a_model_that_brings_code_is_refused(load: Any, tiny_base: Path, tiny_parameters: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "model"))
    assert model.load_base(str(folder), tiny_parameters()).source == str(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "model_type": "custom",
        "auto_map": {name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForCausalLM")},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(InputError):
        model.load_base(str(folder), tiny_parameters())
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_safetensors_are_refused(tiny_base: Path, tiny_parameters: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "model"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    model.load_base(str(folder), tiny_parameters())
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="could not be loaded: ") as caught:
        model.load_base(str(folder), tiny_parameters())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "dtype"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_type_of_the_computation(load: Any, wanted: str, dtype: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = load(compute_dtype=wanted)
    assert base.dtype == dtype
    assert {w.dtype for w in base.model.parameters()} == {dtype}


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, tiny_recipe: Any) -> Path:
    """A base whose rows are whole blocks of nf4 (64 weights), as those of real models are."""
    recipe = replace(tiny_recipe, hidden_size=64, steps=2)
    return build(tmp_path_factory.mktemp("models"), tiny_corpus, recipe, say=lambda text: None)


def test_qlora_trains_on_a_base_of_4_bits(wide_base: Path, tiny_parameters: Any, fit: Any, tmp_path: Path) -> None:
    base = model.load_base(str(wide_base), tiny_parameters(use_qlora=True))
    assert base.quantised
    layers = [m for m in base.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == base.model.config.num_hidden_layers * len(LINEAR)
    for layer in layers:
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.quant_type == "nf4"
        assert layer.weight.quant_state.nested  # double quantisation
    adapted = fit(base, use_qlora=True)
    assert {layer.compute_dtype for layer in layers} == {torch.float32}
    assert adapted_modules(adapted) == LINEAR
    trained = {name: w for name, w in adapted.named_parameters() if "lora_B" in name}
    assert all(bool(w.any()) and w.dtype == torch.float32 for w in trained.values())


def test_a_base_of_4_bits_is_the_same_after_answers_and_adapters(
    wide_base: Path, tiny_parameters: Any, fit: Any, tmp_path: Path
) -> None:
    def fresh() -> model.Base:
        return model.load_base(str(wide_base), tiny_parameters(use_qlora=True))

    base, ids = fresh(), torch.tensor([[10, 20, 30, 40]])
    before = weights(base.model)
    adapted = fit(base, use_qlora=True)
    first = saved(adapted, tmp_path / "first")
    with torch.inference_mode():
        answered = adapted.eval()(ids).logits
    model.detach_adapter(adapted, base)
    after = weights(base.model)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    again = fit(base, use_qlora=True)
    assert saved(again, tmp_path / "again") == first
    # Loaded from its file onto another 4-bit base the adapter answers as it did where it was trained.
    other = fresh()
    with torch.inference_mode():
        plain = other.model.eval()(ids).logits
        loaded = model.load_adapter(other, tmp_path / "first").eval()(ids).logits
    assert torch.equal(loaded, answered)
    assert not torch.equal(loaded, plain)


def test_a_bitsandbytes_that_does_not_work_is_named_with_a_remedy(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA Setup failed despite CUDA being available.\nPlease run the following command")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", broken)
    with pytest.raises(HostUnfit) as caught:
        load(use_qlora=True)
    sentence = str(caught.value)
    assert "CUDA Setup failed" in sentence and "set use_qlora to false" in sentence and "\n" not in sentence
    assert not load(use_qlora=False).quantised  # without it the same host is fit


def test_what_was_chosen_is_what_is_loaded(load: Any) -> None:
    base = load(attention="auto")
    assert base.model.config._attn_implementation == base.choices.value("attention") == "sdpa"
    assert base.shape.layers == base.model.config.num_hidden_layers and base.device.kind == "cpu"
    eager = load(attention="eager", compute_dtype="bfloat16")
    assert eager.model.config._attn_implementation == eager.choices.value("attention") == "eager"
    assert str(eager.dtype) == "torch.bfloat16" and eager.choices["dtype"].reason == "asked for"
    assert not load(use_qlora="auto").quantised
    with pytest.raises(HostUnfit, match="flash_attention_2"):
        load(attention="flash_attention_2")


def test_given_choices_are_not_made_again(load: Any, tiny_base: Path, tiny_parameters: Any) -> None:
    chosen = load(compute_dtype="bfloat16", attention="eager").choices
    base = model.load_base(str(tiny_base), tiny_parameters(), choices=chosen)
    assert base.choices == chosen and base.choices is not chosen
    assert str(base.dtype) == "torch.bfloat16"


def test_a_model_without_sdpa_attends_as_it_can(
    load: Any, tiny_base: Path, tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen3ForCausalLM

    monkeypatch.setattr(Qwen3ForCausalLM, "_supports_sdpa", False)
    base = load(attention="auto")
    assert (base.choices.value("attention"), base.choices["attention"].reason) == (
        "eager", "Qwen3ForCausalLM has no other",
    )  # fmt: skip
    with pytest.raises(InputError, match="could not be loaded"):
        load(attention="sdpa")


def test_fused_kernels_leave_the_loss_alone(
    load: Any, tiny_base: Path, tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.integrations.liger

    asked: list[Any] = []
    monkeypatch.setattr(
        transformers.integrations.liger, "apply_liger_kernel", lambda of, settings: asked.append((of, settings))
    )
    choices = load().choices
    assert asked == []
    choices.add("fused_kernels", "liger", "Liger is installed")
    base = model.load_base(str(tiny_base), tiny_parameters(), choices=choices)
    ((fused, settings),) = asked
    assert fused is base.model
    assert settings == {
        "rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False,
    }  # fmt: skip
