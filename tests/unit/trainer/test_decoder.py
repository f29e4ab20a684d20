"""The decoder's tokens are those of transformers' generate(), however rows come and go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer import decoder
from trainer.crew import Crew

STOPS, PAD = (7, 11), 0


def small(kind: type, config: type, **changes: Any) -> Any:
    """A model of random weights, wide enough apart that no two tokens are nearly as likely as each other."""
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 300, "initializer_range": 0.3}  # fmt: skip
    return kind(config(**sizes, **changes)).eval()


@pytest.fixture(scope="module")
def tiny() -> Any:
    return small(Qwen3ForCausalLM, Qwen3Config, head_dim=8)


def make_prompts(*lengths: int) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(12, 300, (length,), generator=drawn).tolist() for length in lengths]


PROMPTS = make_prompts(40, 33, 33, 20, 19, 18, 12, 5, 5, 3, 1)


def expected(network: Any, prompt: list[int], cap: int, stops: tuple[int, ...] = STOPS) -> list[int]:
    """What generate() answers to one question alone."""
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=cap, eos_token_id=list(stops), pad_token_id=PAD, use_cache=True
    )
    output = network.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=settings,
    )  # fmt: skip
    return list(output[0, len(prompt) :].tolist())


def answered(
    network: Any, prompts: list[list[int]], caps: list[int], slots: int, stops: tuple[int, ...] = STOPS
) -> list[list[int]]:
    found: dict[int, list[int]] = {}

    def done(index: int, tokens: list[int]) -> None:
        assert index not in found
        found[index] = list(tokens)

    decoder.Decoder(network, stops, PAD).answer(prompts, caps, slots, done)
    return [found[index] for index in range(len(prompts))]


def clear(network: Any, prompt: list[int], tokens: list[int]) -> bool:
    """Whether no token was a close call: two equally likely ones are decided by rounding, in any loop."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    best = logits.float().topk(2).values
    return bool((best[:, 0] - best[:, 1] > 1e-4).all())


@pytest.mark.parametrize("slots", [1, 2, 4, 5, 64])
def test_tokens_are_those_of_generate_with_few_slots_or_many(tiny: Any, slots: int) -> None:
    caps = [9, 30, 1, 25, 2, 40, 13, 13, 28, 60, 7]
    wanted = [expected(tiny, prompt, cap) for prompt, cap in zip(PROMPTS, caps, strict=True)]
    assert all(clear(tiny, prompt, tokens) for prompt, tokens in zip(PROMPTS, wanted, strict=True))
    assert answered(tiny, PROMPTS, caps, slots) == wanted


def test_each_row_ends_at_its_stop_token(tiny: Any) -> None:
    # Stops that this model really writes, in different places of different answers.
    free = [expected(tiny, prompt, 40, ()) for prompt in PROMPTS]
    stops = (free[0][3], free[1][17], free[4][8])
    wanted = [expected(tiny, prompt, 40, stops) for prompt in PROMPTS]
    lengths = {len(tokens) for tokens in wanted}
    assert len(lengths) > 2 and any(tokens[-1] in stops for tokens in wanted)
    assert answered(tiny, PROMPTS, [40] * len(PROMPTS), 4, stops) == wanted
    assert answered(tiny, PROMPTS, [40] * len(PROMPTS), 4, (399,)) == free  # a token that is never written


@pytest.mark.parametrize("spare", [1, 2, 7])
def test_a_cache_that_grows_often_holds_the_same(tiny: Any, monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    caps = [20] * len(PROMPTS)
    wanted = answered(tiny, PROMPTS, caps, 4)
    monkeypatch.setattr(decoder, "SPARE_COLUMNS", spare)
    assert answered(tiny, PROMPTS, caps, 4) == wanted == [expected(tiny, prompt, 20) for prompt in PROMPTS]


@pytest.mark.parametrize("backwards", [False, True])
def test_prompts_are_read_in_groups_that_fit(tiny: Any, monkeypatch: pytest.MonkeyPatch, backwards: bool) -> None:
    prompts = PROMPTS[::-1] if backwards else PROMPTS
    read: list[tuple[int, int]] = []

    def watch(module: Any, inputs: Any, kwargs: dict[str, Any]) -> None:
        read.append(tuple(kwargs["input_ids"].shape))

    handle = tiny.register_forward_pre_hook(watch, with_kwargs=True)
    monkeypatch.setattr(decoder, "READ_TOKENS", 40)
    try:
        found = answered(tiny, prompts, [3] * len(prompts), 64)
    finally:
        handle.remove()
    sizes = [rows * width for rows, width in read if width > 1 or rows == 1]
    assert max(sizes) <= 40
    assert found == [expected(tiny, prompt, 3) for prompt in prompts]


def test_no_more_rows_than_slots_are_answered_at_a_time(tiny: Any) -> None:
    rows: list[int] = []
    handle = tiny.register_forward_pre_hook(
        lambda module, inputs, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        answered(tiny, PROMPTS, [3] * len(PROMPTS), 4)
        few, rows[:] = max(rows), []
        answered(tiny, PROMPTS, [3] * len(PROMPTS), 64)
    finally:
        handle.remove()
    assert (few, max(rows)) == (4, len(PROMPTS))


def test_a_row_that_has_ended_costs_nothing(tiny: Any) -> None:
    rows: list[int] = []
    handle = tiny.register_forward_pre_hook(
        lambda module, inputs, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        answered(tiny, PROMPTS[:3], [2, 5, 3], 3, (399,))
    finally:
        handle.remove()
    assert rows == [3, 3, 2, 1, 1]


def test_no_prompts_are_no_work(tiny: Any) -> None:
    assert answered(tiny, [], [], 4) == []


class Waiting(Crew):
    """One of two processes that share the weights; the other one has `turns` to go."""

    size = 2

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def any(self, flag: bool) -> bool:
        self.turns -= 1
        return flag or self.turns >= 0


@pytest.mark.parametrize(("turns", "wanted"), [(7, 7), (3, 3), (2, 3), (0, 3)])
@pytest.mark.parametrize("asked", [True, False])
def test_a_process_takes_part_in_the_turns_of_the_others(tiny: Any, asked: bool, turns: int, wanted: int) -> None:
    """Three turns of its own, and one token without a cache for each that others have beyond."""
    shapes: list[tuple[int, ...]] = []
    prompts = PROMPTS[:2] if asked else []
    found: dict[int, list[int]] = {}
    handle = tiny.register_forward_pre_hook(
        lambda module, inputs, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        shared = decoder.Decoder(tiny, (399,), PAD, Waiting(turns))
        shared.answer(prompts, [3] * len(prompts), 4, found.__setitem__)
    finally:
        handle.remove()
    own = [(2, 40), (2, 1), (2, 1)] if asked else []
    assert len(shapes) == (wanted if asked else turns)
    assert shapes == own + [(1, 1)] * (len(shapes) - len(own))
    assert [found[index] for index in range(len(prompts))] == [expected(tiny, prompt, 3, (399,)) for prompt in prompts]


def test_models_whose_layers_keep_everything_are_for_it() -> None:
    llama = small(LlamaForCausalLM, LlamaConfig)
    assert decoder.is_for(llama)
    assert answered(llama, PROMPTS, [12] * len(PROMPTS), 4) == [expected(llama, prompt, 12) for prompt in PROMPTS]
    assert decoder.is_for(small(MistralForCausalLM, MistralConfig, sliding_window=None))
    assert not decoder.is_for(small(MistralForCausalLM, MistralConfig, sliding_window=8))
