"""trainer/throughput.py: the table of cards, the count of operations against torch's, and what makes time longer."""

from __future__ import annotations

from typing import Any

import pytest

from trainer import throughput
from trainer.shape import Shape, adapter_parameters, of_config, of_name
from trainer.throughput import Speed, answering_seconds, of_card, of_processor, training_flops, training_seconds

QWEN3_8B = of_name("Qwen/Qwen3-8B")
assert QWEN3_8B is not None
H200 = of_card("NVIDIA H200")
assert H200 is not None
TRAINING: dict[str, Any] = {
    "adapter": 40_000_000, "tokens": 100_000, "trained": 50_000, "pairs": 1e7, "steps": 10, "passes": 10,
    "checkpointing": False, "quantised": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tera", "giga"),
    [
        ("NVIDIA H200", 989, 4800),
        ("NVIDIA H100 80GB HBM3", 989, 3350),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("NVIDIA A100-PCIE-40GB", 312, 1555),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100 80GB PCIe", 312, 1935),
        ("NVIDIA L40S", 362, 864),
        ("NVIDIA L4", 121, 300),
        ("NVIDIA A10", 125, 600),
        ("NVIDIA A40", 150, 696),
        ("NVIDIA GeForce RTX 4090", 165, 1008),
        ("NVIDIA GeForce RTX 3090", 71, 936),
        ("NVIDIA GeForce RTX 5090", 210, 1792),
        ("Tesla V100-SXM2-16GB", 125, 900),
        ("Tesla T4", 65, 320),
        ("NVIDIA RTX A6000", 155, 768),
        ("NVIDIA RTX 6000 Ada Generation", 364, 960),
    ],
)
def test_a_card_is_known_by_the_name_that_nvidia_smi_tells(name: str, tera: float, giga: float) -> None:
    found = of_card(name)
    assert found is not None
    assert (found.flops, found.bandwidth) == (tera * 1e12, giga * 1e9)
    assert f"{tera} Tflop/s" in found.source


@pytest.mark.parametrize(
    "name", ["NVIDIA H2000", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100X", "AMD MI300X", ""]
)
def test_the_speed_of_another_card_is_not_invented(name: str) -> None:
    assert of_card(name) is None


def test_a_processor_is_measured_and_its_cores_count() -> None:
    one, four = of_processor(1), of_processor(4)
    assert one is not None and four is not None
    assert one.flops > 1e8 and one.bandwidth > 1e8 and not one.ahead
    assert four.flops > one.flops
    assert "measured here" in one.source and "4 cores" in four.source


def test_a_processor_without_numpy_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_MEASURE", "raise ImportError('numpy')")
    of_processor.cache_clear()
    assert of_processor(2) is None
    monkeypatch.setattr(throughput, "_MEASURE", "print(1e9, 2e9)")
    of_processor.cache_clear()
    found = of_processor(2)
    of_processor.cache_clear()
    assert found is not None and (found.flops, found.bandwidth) == (2e9, 2e9)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_the_operations_are_those_that_torch_counts(checkpointing: bool) -> None:
    """Against its FlopCounterMode over forward and backward of a tiny Qwen3 with an adapter on all linear modules."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        num_hidden_layers=4, hidden_size=128, intermediate_size=320, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=512, attn_implementation="eager",
    )  # fmt: skip
    adapted: Any = get_peft_model(
        Qwen3ForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
    ).train()
    if checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.enable_input_require_grads()
    tokens = 64
    with FlopCounterMode(display=False) as counter:
        hidden = adapted.base_model.model.model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
        hidden.last_hidden_state.sum().backward()
    shape = of_config(config.to_dict())
    assert shape is not None
    # Eager attention computes all pairs, and twice (not 2.5 times) as much on the way back; the head is not run here.
    pairs = float(tokens * tokens)
    counted = training_flops(
        shape, adapter_parameters(shape, 8, "all-linear"), tokens, 0, pairs, checkpointing=checkpointing
    )
    counted -= 4 * shape.layers * shape.query_width * pairs * 0.5
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_training_lasts_longer_for_more_of_everything() -> None:
    plain = training_seconds(QWEN3_8B, H200, **TRAINING)
    assert plain == pytest.approx(4 * 8e9 * 1e5 / (989e12 * 0.4), rel=0.1), "about 4 N for each token"
    for change in ({"checkpointing": True}, {"quantised": True}, {"steps": 11}, {"tokens": 200_000}):
        assert training_seconds(QWEN3_8B, H200, **{**TRAINING, **change}) > plain
    slower = of_card("NVIDIA A100-SXM4-80GB")
    assert slower is not None and training_seconds(QWEN3_8B, slower, **TRAINING) > 2 * plain


def test_short_passes_cost_the_start_of_their_kernels() -> None:
    few = {**TRAINING, "tokens": 100, "trained": 50, "pairs": 1e3}
    once, often = (training_seconds(QWEN3_8B, H200, **{**few, "passes": passes}) for passes in (10, 20))
    assert often - once == pytest.approx(10 * 36 * throughput.TRAINING_LAYER_SECONDS)
    waits = Speed(H200.flops, H200.bandwidth, "", ahead=False)
    assert training_seconds(QWEN3_8B, waits, **few) > once, "one that starts nothing ahead does one after the other"


def seconds(shape: Shape, answers: list[tuple[int, int]], **changes: Any) -> float:
    assert H200 is not None
    wanted: dict[str, Any] = {"prompt": 0, "quantised": False, "dtype_bytes": 2, **changes}
    return answering_seconds(shape, H200, answers=answers, **wanted)


def test_a_batch_lasts_as_long_as_its_longest_answer_whatever_its_rows() -> None:
    assert seconds(QWEN3_8B, [(1, 200)]) == seconds(QWEN3_8B, [(32, 200)])
    assert seconds(QWEN3_8B, [(16, 200), (16, 100)]) == pytest.approx(1.5 * seconds(QWEN3_8B, [(32, 200)]))
    assert seconds(QWEN3_8B, [(4096, 200)]) > seconds(QWEN3_8B, [(32, 200)]), "until it computes more than it reads"
    assert seconds(QWEN3_8B, [(1, 200)], prompt=10_000) > seconds(QWEN3_8B, [(1, 200)])
