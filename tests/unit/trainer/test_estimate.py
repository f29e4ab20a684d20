"""trainer/estimate.py: device memory from a model's shape, against what torch saves and against known totals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.estimate import (
    Memory,
    answering_memory,
    attention_bytes,
    cache_bytes,
    gathered_bytes,
    head_bytes,
    layer_bytes_per_token,
    training_memory,
    weight_bytes,
)
from trainer.shape import Shape, adapter_parameters, of_config, of_name

QWEN3_8B = of_name("Qwen/Qwen3-8B")
assert QWEN3_8B is not None
TRAINING: dict[str, Any] = {
    "rank": 16, "targets": "all-linear", "quantised": True, "dtype_bytes": 2, "tokens_per_pass": 2048,
    "longest": 1024, "checkpointing": False, "trained_share": 0.5,
}  # fmt: skip
GB = 1e9


def settings(layers: int, width: int) -> Qwen3Config:
    return Qwen3Config(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=5 * width // 2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=width // 2, vocab_size=128, attn_implementation="sdpa",
    )  # fmt: skip


def shape_of(config: Qwen3Config) -> Shape:
    found = of_config(config.to_dict())
    assert found is not None
    return found


def saved_bytes(config: Qwen3Config, tokens: int, dropout: float, dtype: torch.dtype, targets: Any) -> int:
    """Bytes of all tensors that a pass of two rows one after another saves for its way back, each counted once."""
    model = Qwen3ForCausalLM(config).to(dtype)
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_dropout=dropout, target_modules=targets)
    ).train()
    assert isinstance(adapted, PeftModel)
    own = {t.untyped_storage().data_ptr() for t in (*adapted.parameters(), *adapted.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    positions = torch.cat([torch.arange(tokens // 2), torch.arange(tokens - tokens // 2)])[None]
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        held = adapted.base_model.model.model(
            input_ids=torch.zeros(1, tokens, dtype=torch.long), position_ids=positions, use_cache=False
        )
    assert held is not None
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize(("width", "tokens"), [(32, 64), (64, 200), (128, 96)])
@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
def test_a_layer_saves_what_is_estimated(
    dtype: torch.dtype, dropout: float, width: int, tokens: int, targets: str
) -> None:
    wanted: Any = targets if targets == "all-linear" else targets.split(",")
    few, many = (saved_bytes(settings(layers, width), tokens, dropout, dtype, wanted) for layers in (2, 3))
    shape = shape_of(settings(1, width))
    per_token = layer_bytes_per_token(
        shape, rank=8, targets=targets, quantised=False, dtype_bytes=dtype.itemsize, dropout=dropout > 0, on_gpu=False
    )
    estimated = tokens * per_token + attention_bytes(
        shape, tokens, tokens, dtype_bytes=dtype.itemsize, attention="sdpa"
    )
    if dtype == torch.bfloat16:  # autocast keeps the adapter's weights in that type
        estimated += 2 * adapter_parameters(shape, 8, targets)
    assert many - few == pytest.approx(estimated, rel=0.01)


def test_qwen3_8b_weighs_what_its_files_weigh() -> None:
    """16.4 GB is the size of its safetensors on the hub; quantised it is 6.1 GB."""
    assert weight_bytes(QWEN3_8B, quantised=False, dtype_bytes=2) / GB == pytest.approx(16.4, abs=0.05)
    assert weight_bytes(QWEN3_8B, quantised=True, dtype_bytes=2) / GB == pytest.approx(6.1, abs=0.1)


def test_the_parts_make_the_total_and_each_is_told() -> None:
    found = training_memory(QWEN3_8B, **TRAINING)
    assert found.total == (
        found.weights + found.adapter + found.gradients + found.optimiser + found.activations + found.logits
        + found.overhead
    )  # fmt: skip
    assert min(found.adapter, found.gradients, found.optimiser, found.logits, found.overhead) > 0
    assert Memory(weights=2, cache=3).total == 5


def test_checkpointing_needs_far_less_and_more_tokens_need_more() -> None:
    plain = training_memory(QWEN3_8B, **TRAINING)
    recomputed = training_memory(QWEN3_8B, **{**TRAINING, "checkpointing": True})
    assert recomputed.activations < plain.activations / 8
    longer = training_memory(QWEN3_8B, **{**TRAINING, "tokens_per_pass": 4096})
    assert longer.activations > 2 * plain.activations  # the mask of a pass is quadratic
    flash = training_memory(QWEN3_8B, **{**TRAINING, "attention": "flash"})
    twice = training_memory(QWEN3_8B, **{**TRAINING, "attention": "flash", "tokens_per_pass": 4096})
    assert flash.activations < plain.activations and twice.activations == pytest.approx(2 * flash.activations)


def test_a_pass_holds_the_longest_row_whatever_it_was_to_hold() -> None:
    assert training_memory(QWEN3_8B, **{**TRAINING, "longest": 2048}) == training_memory(QWEN3_8B, **TRAINING)
    longer = training_memory(QWEN3_8B, **{**TRAINING, "longest": 2049})
    assert longer.activations > training_memory(QWEN3_8B, **TRAINING).activations


def test_the_adapter_of_a_quantised_base_is_bfloat16_that_of_another_float32() -> None:
    quantised = training_memory(QWEN3_8B, **TRAINING)
    plain = training_memory(QWEN3_8B, **{**TRAINING, "quantised": False})
    assert plain.adapter == 2 * quantised.adapter == 4 * adapter_parameters(QWEN3_8B, 16, "all-linear")
    assert plain.optimiser == 2 * plain.adapter and plain.gradients == plain.adapter


def test_the_head_never_needs_all_logits() -> None:
    whole = 100_000 * QWEN3_8B.vocabulary * 2
    assert head_bytes(QWEN3_8B, 100_000, 1.0, dtype_bytes=2, on_gpu=True) < whole / 8
    some = head_bytes(QWEN3_8B, 2048, 0.25, dtype_bytes=2, on_gpu=True)
    assert some < head_bytes(QWEN3_8B, 2048, 1.0, dtype_bytes=2, on_gpu=True)
    on_cpu = head_bytes(QWEN3_8B, 2048, 0.25, dtype_bytes=2, on_gpu=False)
    assert on_cpu == head_bytes(QWEN3_8B, 2048, 1.0, dtype_bytes=2, on_gpu=False), "there all tokens are projected"


def test_the_cache_is_that_which_transformers_keeps() -> None:
    from transformers import DynamicCache

    config = settings(3, 32)
    model, cache = Qwen3ForCausalLM(config), DynamicCache(config=config)
    with torch.inference_mode():
        model(input_ids=torch.zeros(4, 50, dtype=torch.long), past_key_values=cache, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(shape_of(settings(2, 32)), 4, 50, dtype_bytes=4) == kept  # one layer more while it is copied


def test_answering_grows_with_the_batch_and_a_merged_copy() -> None:
    wanted: dict[str, Any] = {"quantised": True, "dtype_bytes": 2, "batch": 16, "tokens": 2048}
    found = answering_memory(QWEN3_8B, **wanted)
    assert found.optimiser == found.gradients == 0
    twice = answering_memory(QWEN3_8B, **{**wanted, "batch": 32})
    assert twice.cache == 2 * found.cache and twice.weights == found.weights
    merged = answering_memory(QWEN3_8B, **wanted, merged_copy=True)
    assert merged.weights - found.weights == 2 * QWEN3_8B.linear_parameters


def test_shares_divide_the_weights_and_what_is_gathered_comes_on_top() -> None:
    whole = training_memory(QWEN3_8B, **{**TRAINING, "quantised": False})
    shares = training_memory(QWEN3_8B, **{**TRAINING, "quantised": False}, shards=4)
    assert whole.gathered == 0 and shares.weights == -(-whole.weights // 4)
    root = 2 * 2 * 151936 * 4096 + 2 * 4096  # embeddings, head, last norm in 16 bits
    layer = 2 * (QWEN3_8B.parameters - root // 2) // 36
    assert shares.gathered == 2 * root + layer, "the layers of this model are smaller than its embeddings"
    same = ("adapter", "gradients", "optimiser", "activations", "logits", "cache", "overhead")
    assert all(getattr(whole, name) == getattr(shares, name) for name in same)
    wanted: dict[str, Any] = {"quantised": False, "dtype_bytes": 2, "batch": 16, "tokens": 2048}
    answering = answering_memory(QWEN3_8B, **wanted, shards=4)
    assert (answering.weights, answering.gathered) == (shares.weights, shares.gathered)
    assert answering_memory(QWEN3_8B, **wanted).gathered == 0
    small = of_name("Qwen/Qwen3-0.6B")
    assert small is not None
    tall = replace(small, vocabulary=1000)
    root = 2 * (1000 * small.hidden + small.hidden)
    layer = 2 * (tall.parameters - root // 2) // small.layers
    assert gathered_bytes(tall, 2, dtype_bytes=2) == root + 4 * layer, "the larger of both counts"


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that torch's allocator of the CPU held at a time during `step`."""
    from torch.profiler import ProfilerActivity, profile

    step()  # what is made once only is made here
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    results: Any = recorded.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("vocabulary", "tokens"), [(2560, 512), (32768, 640)], ids=["whole logits", "tiles"])
def test_a_pass_peaks_where_it_is_estimated(
    dtype: torch.dtype, checkpointing: bool, vocabulary: int, tokens: int
) -> None:
    """Forward and backward of a pass of the worker, against the allocator: not less, and little more.

    With checkpointing a tiny model's terms are small and rounding up weighs more.
    """
    from trl.trainer.utils import add_fused_lm_head

    from trainer import packing
    from trainer.feed import Item

    config = Qwen3Config(**{**settings(12, 128).to_dict(), "vocab_size": vocabulary})
    model = Qwen3ForCausalLM(config).to(dtype)
    add_fused_lm_head(model, outputs=("log_probs",))
    adapted: Any = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_dropout=0.05, target_modules="all-linear")
    ).train()
    if checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    ids = torch.zeros(tokens // 2, dtype=torch.long)
    one = packing.lay_out([Item(name, ids, ids) for name in "ab"], "padding_free")

    def step() -> None:
        with (
            packing.attending(model, "padding_free"),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype.itemsize == 2),
        ):
            packing.loss(adapted, one, "sdpa", torch.device("cpu")).backward()

    estimated = training_memory(
        shape_of(config), rank=8, targets="all-linear", quantised=False, dtype_bytes=dtype.itemsize,
        tokens_per_pass=tokens, longest=tokens // 2, checkpointing=checkpointing, trained_share=1.0,
        attention="flash", on_gpu=False,
    )  # fmt: skip
    assert 0.99 <= (estimated.activations + estimated.logits) / peak_bytes(step) <= (1.35 if checkpointing else 1.1)


def test_the_sizes_that_the_estimate_repeats_are_those_of_the_code() -> None:
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    from trainer import decoder, estimate, packing

    assert (estimate.TILE_TOKENS, estimate.TILE_WORDS) == (
        chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE,
    )  # fmt: skip
    assert packing.DENSE_SCORES == estimate.DENSE_SCORES and decoder.READ_TOKENS == estimate.READ_TOKENS
