"""Choices: what is chosen for which host, model and parameters, and why."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from trainer import budget, choices, shape
from trainer.budget import Lengths
from trainer.choices import Choices, for_answers, for_base, for_training
from trainer.config import FIELDS, Parameters
from trainer.device import Device
from trainer.errors import HostUnfit, InputError, TrainerError

CPU = Device("cpu", "AMD EPYC", 1, 24 << 30, False, None, False, False, 2)
H200 = Device("cuda", "NVIDIA H200", 1, 143771 << 20, True, (9, 0), False, False, 16)
RTX = Device("cuda", "RTX 4090", 1, 24564 << 20, True, (8, 9), True, True, 16)
T4 = Device("cuda", "Tesla T4", 1, 15360 << 20, False, (7, 5), True, True, 4)
QWEN = shape.of_name("Qwen/Qwen3-8B")
SMALL = shape.of_name("Qwen/Qwen3-0.6B")
assert QWEN is not None and SMALL is not None
WIDE = replace(SMALL, head_dim=320)
ROWS = Lengths(rows=28, tokens=28 * 300, longest=600, trained_share=0.4)


def parameters(**changes: Any) -> Parameters:
    return Parameters(**{"use_qlora": "auto", **changes})


def base(device: Device, model: Any = QWEN, **changes: Any) -> Choices:
    return for_base(parameters(**changes), device, model)


def training(device: Device, model: Any = QWEN, lengths: Lengths = ROWS, steps: int = 8, **changes: Any) -> Choices:
    return for_training(parameters(**changes), device, model, base(device, model, **changes), lengths, steps)


def answers(device: Device, model: Any = QWEN, rows: int = 40, tokens: int = 1500, **changes: Any) -> Choices:
    return for_answers(parameters(**changes), device, model, base(device, model, **changes), rows, tokens)


def test_choices_keep_their_order_and_their_reasons() -> None:
    found = Choices()
    found.add("dtype", "float32", "the host has no GPU")
    found.add("attention", "sdpa", "asked for")
    assert found.value("dtype") == "float32"
    assert found.table() == [
        {"name": "dtype", "value": "float32", "reason": "the host has no GPU"},
        {"name": "attention", "value": "sdpa", "reason": "asked for"},
    ]
    assert found.lines() == ["dtype: float32 (the host has no GPU)", "attention: sdpa (asked for)"]
    found.add("compile", False, "compile_above_steps is 0")
    assert found.lines()[2] == "compile: false (compile_above_steps is 0)"
    with pytest.raises(KeyError):
        found.value("packing")


@pytest.mark.parametrize(
    ("device", "wanted", "dtype", "reason"),
    [
        (CPU, "auto", "float32", "without a GPU types of 16 bits are slower"),
        (H200, "auto", "bfloat16", "native on NVIDIA H200"),
        (T4, "auto", "float16", "Tesla T4 has no native bfloat16"),
        (CPU, "bfloat16", "bfloat16", "asked for"),
        (H200, "float32", "float32", "asked for"),
        (T4, "bfloat16", "bfloat16", "asked for, though Tesla T4 only emulates it"),
        (T4, "float16", "float16", "asked for"),
    ],
)
def test_the_type_of_the_computation(device: Device, wanted: str, dtype: str, reason: str) -> None:
    found = base(device, compute_dtype=wanted)["dtype"]
    assert (found.value, found.reason) == (dtype, reason)


@pytest.mark.parametrize(
    ("device", "model", "wanted", "value", "reason"),
    [
        (CPU, QWEN, "auto", "sdpa", "this host has no GPU for flash-attn"),
        (H200, QWEN, "auto", "sdpa", "flash-attn is not installed"),
        (RTX, QWEN, "auto", "flash_attention_2", "flash-attn is installed"),
        (RTX, None, "auto", "flash_attention_2", "flash-attn is installed"),
        (T4, QWEN, "auto", "sdpa", "flash-attn wants the compute capability 8.0 and that of Tesla T4 is 7.5"),
        (replace(RTX, capability=None), QWEN, "auto", "sdpa",
         "flash-attn wants the compute capability 8.0 and that of RTX 4090 is not known"),
        (RTX, WIDE, "auto", "sdpa", "flash-attn takes heads of 256 and the base's have 320"),
        (RTX, QWEN, "flash_attention_2", "flash_attention_2", "asked for"),
        (RTX, QWEN, "sdpa", "sdpa", "asked for"),
        (CPU, QWEN, "sdpa", "sdpa", "asked for"),
        (CPU, QWEN, "eager", "eager", "asked for"),
        (RTX, QWEN, "eager", "eager", "asked for"),
    ],
)  # fmt: skip
def test_the_attention_is_what_the_host_has(device: Device, model: Any, wanted: str, value: str, reason: str) -> None:
    found = base(device, model, attention=wanted)["attention"]
    assert (found.value, found.reason) == (value, reason)


def test_flash_attention_is_left_alone_in_float32() -> None:
    found = base(RTX, compute_dtype="float32")["attention"]
    assert (found.value, found.reason) == ("sdpa", "flash-attn wants 16 bits and compute_dtype is float32")


@pytest.mark.parametrize(
    ("device", "model", "dtype", "kind", "why"),
    [
        (CPU, QWEN, "auto", HostUnfit, "this host has no GPU"),
        (H200, QWEN, "auto", HostUnfit, "flash-attn is not installed"),
        (T4, QWEN, "auto", HostUnfit, "that of Tesla T4 is 7.5"),
        (RTX, QWEN, "float32", InputError, "compute_dtype is float32"),
        (RTX, WIDE, "auto", InputError, "the base's have 320"),
    ],
)
def test_flash_attention_asked_for_and_not_to_be_had_is_refused(
    device: Device, model: Any, dtype: str, kind: type[TrainerError], why: str
) -> None:
    with pytest.raises(kind) as caught:
        base(device, model, attention="flash_attention_2", compute_dtype=dtype)
    sentence = str(caught.value)
    assert sentence.startswith("attention is flash_attention_2, but ") and why in sentence
    assert sentence.endswith("; set it to auto or sdpa") and "\n" not in sentence
    assert base(device, model, attention="auto", compute_dtype=dtype).value("attention") == "sdpa"
    assert base(RTX, QWEN, attention="flash_attention_2", compute_dtype="bfloat16").value("attention")


@pytest.mark.parametrize(
    ("device", "model", "wanted", "value", "reason"),
    [
        (RTX, QWEN, True, True, "asked for"),
        (RTX, QWEN, False, False, "asked for"),
        (CPU, QWEN, True, True, "asked for"),
        (CPU, QWEN, "auto", False, "without a GPU weights of 4 bits are slower"),
        (H200, QWEN, "auto", False, r"\d+\.\d GB of 150\.8 GB needed with the base in bfloat16"),
        (RTX, QWEN, "auto", True, r"\d+\.\d GB of 25\.8 GB would be needed with the base in bfloat16"),
        (RTX, SMALL, "auto", False, r"\d+\.\d GB of 25\.8 GB needed with the base in bfloat16"),
        (H200, None, "auto", True,
         "the architecture of the base is not known, .*; weights of 4 bits need the least memory"),
        (replace(H200, memory_bytes=0), QWEN, "auto", True,
         "the memory of the host is not known, .*; weights of 4 bits need the least memory"),
    ],
)  # fmt: skip
def test_the_base_is_quantised_where_memory_does_not_hold_it_whole(
    device: Device, model: Any, wanted: Any, value: bool, reason: str
) -> None:
    found = base(device, model, use_qlora=wanted)["quantise"]
    assert found.value is value
    assert re.fullmatch(reason, found.reason)


def test_longer_rows_and_larger_adapters_can_tip_the_scale() -> None:
    assert base(H200).value("quantise") is False
    assert base(H200, max_length=40000).value("quantise") is True
    assert base(H200, tokens_per_pass=40000).value("quantise") is True
    assert base(H200, compute_dtype="float32", lora_r=1024).value("quantise") is True


@pytest.mark.parametrize(
    ("device", "model", "wanted", "value", "reason"),
    [
        (RTX, QWEN, "auto", "liger", "Liger is installed"),
        (RTX, QWEN, "off", "off", "asked for"),
        (RTX, None, "auto", "off", "the architecture of the base is not known"),
        (H200, QWEN, "auto", "off", "Liger is not installed"),
        (CPU, QWEN, "auto", "off", "Liger's kernels want a GPU"),
    ],
)
def test_fused_kernels_are_used_where_they_are(
    device: Device, model: Any, wanted: str, value: str, reason: str
) -> None:
    found = base(device, model, fused_kernels=wanted)["fused_kernels"]
    assert (found.value, found.reason) == (value, reason)


@pytest.mark.parametrize(
    ("attention", "wanted", "value", "reason"),
    [
        ("auto", "auto", "padding_free", "no token is spent on padding"),
        ("sdpa", "auto", "padding_free", "no token is spent on padding"),
        ("eager", "auto", "padded", "eager attention computes every pair of tokens in a pass"),
        ("auto", "padded", "padded", "asked for"),
        ("eager", "padding_free", "padding_free", "asked for"),
    ],
)
def test_the_layout_of_a_step(attention: str, wanted: str, value: str, reason: str) -> None:
    for device in (CPU, RTX):
        found = training(device, attention=attention, packing=wanted)["packing"]
        assert (found.value, found.reason) == (value, reason)


@pytest.mark.parametrize(
    ("device", "model", "changes", "value", "reason"),
    [
        (H200, QWEN, {}, False, r"\d+\.\d GB of 150\.8 GB needed without it"),
        (RTX, QWEN, {}, True, r"\d+\.\d GB of 25\.8 GB would be needed without it; \d+\.\d GB with it"),
        (RTX, SMALL, {"lora_dropout": 0.0}, False, r"\d+\.\d GB of 25\.8 GB needed without it"),
        (CPU, SMALL, {}, False, r"\d+\.\d GB of 25\.8 GB needed without it"),
        (RTX, QWEN, {"gradient_checkpointing": False}, False, "asked for"),
        (H200, QWEN, {"gradient_checkpointing": True}, True, "asked for"),
        (H200, None, {}, True, "the architecture of the base is not known, so nothing can be estimated"),
        (H200, None, {"gradient_checkpointing": False}, False, "asked for"),
        (replace(CPU, memory_bytes=0), SMALL, {}, True,
         "the memory of the host is not known, so nothing can be estimated"),
    ],
)  # fmt: skip
def test_checkpointing_is_on_only_where_memory_asks_for_it(
    device: Device, model: Any, changes: dict[str, Any], value: bool, reason: str
) -> None:
    found = training(device, model, **changes)["gradient_checkpointing"]
    assert found.value is value
    assert re.fullmatch(reason, found.reason)


def test_a_whole_step_goes_through_at_once_where_it_fits() -> None:
    found = training(H200)["tokens_per_pass"]
    assert found.value == 8 * 600  # the shipped defaults: 1 x 8 examples in a step
    assert re.fullmatch(r"a step at once; \d+\.\d GB of 150\.8 GB needed", found.reason)
    assert training(H200, lengths=replace(ROWS, rows=3)).value("tokens_per_pass") == 3 * 600
    half = for_training(parameters(), H200, QWEN, base(H200), ROWS, 8, processes=2)
    assert half.value("tokens_per_pass") == 4 * 600


def test_a_pass_is_as_large_as_memory_holds_and_no_larger_than_is_worth_while() -> None:
    many = {"gradient_accumulation_steps": 1024}
    for device, model in ((H200, QWEN), (RTX, SMALL)):
        wide = replace(device, memory_bytes=device.memory_bytes * 40)
        assert training(wide, model, **many).value("tokens_per_pass") == choices.FULL_PASS["cuda"]
        assert training(wide, model, lengths=replace(ROWS, rows=9999), **many)["tokens_per_pass"].reason.startswith(
            "more gain little; "
        )
        found = training(device, model, lengths=replace(ROWS, rows=9999), **many)
        needs = budget.TrainingNeeds(parameters(**many), device, model, base(device, model), "padding_free", ROWS)
        tokens, checkpointing = found.value("tokens_per_pass"), found.value("gradient_checkpointing")
        assert ROWS.longest < tokens < choices.FULL_PASS["cuda"]
        assert needs.fit(tokens, checkpointing) and not needs.fit(tokens + choices.PASS_STEP, checkpointing)
        assert found["tokens_per_pass"].reason.startswith("more do not fit; ")


def test_checkpointing_is_not_bought_with_the_smallest_pass() -> None:
    """Where only tiny passes fit without it, larger ones with it are faster."""
    needs = budget.TrainingNeeds(parameters(), RTX, QWEN, base(RTX), "padding_free", ROWS)
    assert needs.fit(ROWS.longest, False) and not needs.fit(choices.FAIR_PASS["cuda"], False)
    found = training(RTX)
    assert found.value("gradient_checkpointing") and found.value("tokens_per_pass") == 4800
    one = training(RTX, gradient_accumulation_steps=1)  # there is no larger pass than one row
    assert not one.value("gradient_checkpointing") and one.value("tokens_per_pass") == 600


def test_a_row_that_may_be_too_long_is_tried_with_a_word() -> None:
    tight = replace(T4, memory_bytes=6 << 30)
    long = Lengths(10, 10 * 2000, 2000, 0.5)
    found = training(tight, lengths=long)
    assert found.value("gradient_checkpointing") is True and found.value("tokens_per_pass") == 2000
    assert re.fullmatch(
        r"the longest row alone, which may be too much; \d\.\d GB of 6\.4 GB would be needed",
        found["tokens_per_pass"].reason,
    )
    found = training(T4, lengths=long)
    assert found.value("tokens_per_pass") > 2000 and "too much" not in found["tokens_per_pass"].reason


@pytest.mark.parametrize(
    ("model", "asked", "tokens", "reason"),
    [
        (QWEN, 1024, 1024, "asked for"),
        (QWEN, 600, 600, "asked for"),
        (QWEN, 500, 500, "asked for; a row with more goes alone"),
        (None, 1024, 1024, "asked for"),
        (None, 500, 500, "asked for; a row with more goes alone"),
        (None, 0, 1200, "the architecture of the base is not known, so nothing can be estimated"),
    ],
)
def test_a_pass_is_what_was_asked_for(model: Any, asked: int, tokens: int, reason: str) -> None:
    found = training(H200, model, tokens_per_pass=asked, per_device_train_batch_size=2)["tokens_per_pass"]
    assert (found.value, found.reason) == (tokens, reason)


def test_a_model_that_does_not_take_rows_without_padding_gets_padded_ones() -> None:
    refusal = "Gemma has layers of sliding_attention"
    for wanted in ("auto", "padding_free"):
        asked = parameters(packing=wanted)
        found = for_training(asked, H200, QWEN, base(H200), ROWS, 8, refusal=refusal)["packing"]
        assert (found.value, found.reason) == ("padded", refusal)
        assert for_training(asked, H200, QWEN, base(H200), ROWS, 8).value("packing") == "padding_free"
    found = for_training(parameters(packing="padded"), H200, QWEN, base(H200), ROWS, 8, refusal=refusal)["packing"]
    assert (found.value, found.reason) == ("padded", "asked for")


def test_checkpointing_is_chosen_for_the_pass_that_was_asked_for() -> None:
    assert training(H200, tokens_per_pass=4096).value("gradient_checkpointing") is False
    assert training(H200, tokens_per_pass=32768, use_qlora=True).value("gradient_checkpointing") is True


@pytest.mark.parametrize(
    ("least", "steps", "value", "reason"),
    [
        (0, 10**6, False, "compile_above_steps is 0"),
        (1000, 999, False, "999 steps, and compiling pays from 1000 on"),
        (1000, 1000, True, "1000 steps, and compile_above_steps is 1000"),
    ],
)
def test_nothing_is_compiled_for_a_short_training(least: int, steps: int, value: bool, reason: str) -> None:
    found = training(H200, steps=steps, compile_above_steps=least)["compile"]
    assert (found.value, found.reason) == (value, reason)


@pytest.mark.parametrize(
    ("changes", "value", "reason"),
    [
        ({"lora_dropout": 0.0}, True, "without dropout equal beginnings have equal states"),
        ({"lora_dropout": 0.05}, False, "lora_dropout 0.05 draws for each row by itself"),
        ({"lora_dropout": 0.05, "share_prefixes": True}, True, "asked for"),
        ({"lora_dropout": 0.0, "share_prefixes": False}, False, "asked for"),
        ({"share_prefixes": True, "packing": "padded"}, False, "only rows without padding share tokens"),
    ],
)
def test_equal_beginnings_are_shared_where_that_changes_nothing(
    changes: dict[str, Any], value: bool, reason: str
) -> None:
    found = training(H200, **changes)["shared_prefixes"]
    assert (found.value, found.reason) == (value, reason)


def test_flash_attn_shares_no_beginnings() -> None:
    asked, device = parameters(lora_dropout=0.0), replace(H200, flash_attention=True)
    for attention, value in (("flash_attention_2", False), ("sdpa", True)):
        chosen = base(device, attention=attention)
        assert for_training(asked, device, QWEN, chosen, ROWS, 8).value("shared_prefixes") is value


@pytest.mark.parametrize(
    ("changes", "value", "reason"),
    [
        ({}, "fused", "scale and sums are part of the matrix products"),
        ({"fused_kernels": "off"}, "peft", "fused_kernels is off"),
        ({"compile_above_steps": 1}, "peft", "the compiler fuses it itself"),
    ],
)
def test_the_adapter_has_kernels_of_its_own(changes: dict[str, Any], value: str, reason: str) -> None:
    found = training(H200, steps=8, **changes)["adapter_kernel"]
    assert (found.value, found.reason) == (value, reason)


LARGE = replace(CPU, memory_bytes=2 * CPU.memory_bytes)
FLOAT32 = {"compute_dtype": "float32", "use_qlora": False}


@pytest.mark.parametrize(
    ("device", "model", "changes", "value", "reason"),
    [
        (H200, QWEN, FLOAT32, True, r"\d+\.\d GB of 150\.8 GB needed with a merged copy"),
        (RTX, QWEN, FLOAT32, False, r"\d+\.\d GB of 25\.8 GB would be needed with a merged copy"),
        (RTX, SMALL, FLOAT32, True, r"\d+\.\d GB of 25\.8 GB needed with a merged copy"),
        (CPU, SMALL, {}, True, r"\d+\.\d GB of 25\.8 GB needed with a merged copy"),
        (H200, QWEN, {}, False, "weights in bfloat16 would round the adapter away"),
        (T4, SMALL, {}, False, "weights in float16 would round the adapter away"),
        (H200, QWEN, {"use_qlora": True}, False, "a 4-bit base would be quantised anew"),
        (H200, QWEN, {**FLOAT32, "use_qlora": True}, False, "a 4-bit base would be quantised anew"),
        (H200, QWEN, {**FLOAT32, "merge_adapter": "off"}, False, "asked for"),
        (H200, None, FLOAT32, False, "the architecture of the base is not known, so nothing can be estimated"),
    ],
)
def test_weights_are_merged_where_that_is_exact_and_memory_holds_a_copy(
    device: Device, model: Any, changes: dict[str, Any], value: bool, reason: str
) -> None:
    found = answers(device, model, **changes)["merge"]
    assert found.value is value
    assert re.fullmatch(reason, found.reason)


@pytest.mark.parametrize(
    ("device", "model", "rows", "changes", "batch", "reason"),
    [
        (H200, QWEN, 40, {}, 40, r"all at once; \d+\.\d GB of 150\.8 GB needed"),
        (H200, SMALL, 600, {}, 256, r"more gain little; \d+\.\d GB of 150\.8 GB needed"),
        (LARGE, SMALL, 600, {}, 64, r"more gain little; \d+\.\d GB of 51\.5 GB needed"),
        (CPU, SMALL, 600, {}, 50, r"more do not fit; \d+\.\d GB of 25\.8 GB needed"),
        (H200, QWEN, 40, {"per_device_eval_batch_size": 7}, 7, "asked for"),
        (H200, None, 40, {}, 16, "the architecture of the base is not known, so nothing can be estimated"),
        (H200, None, 3, {}, 3, "the architecture of the base is not known, so nothing can be estimated"),
        (H200, None, 40, {"per_device_eval_batch_size": 64}, 64, "asked for"),
        (H200, QWEN, 0, {}, 1, r"all at once; .*"),
        (LARGE, SMALL, 65, {}, 64, r"more gain little; .*"),
        (LARGE, SMALL, 64, {}, 64, r"all at once; .*"),
    ],
)
def test_as_many_questions_at_a_time_as_memory_holds(
    device: Device, model: Any, rows: int, changes: dict[str, Any], batch: int, reason: str
) -> None:
    found = answers(device, model, rows=rows, **changes)["eval_batch"]
    assert found.value == batch
    assert re.fullmatch(reason, found.reason)


def test_answers_for_which_nobody_chose_are_asked_for_as_on_a_processor() -> None:
    from trainer import generate

    assert choices.MOST_QUESTIONS["cpu"] == generate.BATCH


def test_a_batch_of_answers_fits_and_one_more_does_not() -> None:
    found = answers(RTX, rows=200, tokens=4000)["eval_batch"]
    assert 1 < found.value < 200 and found.reason.startswith("more do not fit; ")
    assert answers(RTX, rows=found.value, tokens=4000).value("eval_batch") == found.value
    assert answers(RTX, rows=200, tokens=15000).value("eval_batch") < found.value
    assert answers(RTX, rows=200, tokens=500).value("eval_batch") > found.value
    tight = answers(replace(RTX, memory_bytes=2 << 30), rows=40)["eval_batch"]
    assert tight.value == 1 and "would be needed" in tight.reason


def test_a_merged_copy_leaves_room_for_fewer_questions() -> None:
    device = replace(RTX, memory_bytes=16 << 30)
    merged = answers(device, SMALL, rows=200, **FLOAT32)
    apart = answers(device, SMALL, rows=200, **FLOAT32, merge_adapter="off")
    assert merged.value("merge") and not apart.value("merge")
    assert merged.value("eval_batch") < apart.value("eval_batch")


def test_every_reason_is_one_plain_clause_and_every_choice_is_json() -> None:
    for device in (CPU, H200, RTX, T4):
        for model in (QWEN, SMALL, None):
            for found in (base(device, model), training(device, model), answers(device, model)):
                for row in found.table():
                    assert type(row["value"]) in (bool, int, str)
                    assert row["reason"] == row["reason"].strip(" .") and "\n" not in row["reason"]
                    assert not any(name.isupper() and "_" in name for name in row["reason"].split())


def test_nothing_here_asks_a_switch_for_its_truth() -> None:
    """ "auto" is true to Python: each switch is compared, for all three values."""
    for name in ("use_qlora", "gradient_checkpointing"):
        assert FIELDS[name].type == "bool | str"
    for wanted, expected in ((True, True), (False, False), ("auto", False)):
        found = training(H200, gradient_checkpointing=wanted)
        assert found.value("gradient_checkpointing") is expected
        assert base(H200, use_qlora=wanted).value("quantise") is expected
