"""What a training takes of a device, and how it is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer import budget, choices, shape
from trainer.config import Parameters
from trainer.device import Device

GPU = Device("cuda", "a GPU", 1, 100_000_000_000, True, (9, 0), True, False, 8)
MODEL = shape.of_name("Qwen/Qwen3-8B")
ROWS = budget.Lengths(10, 5000, 800, 0.5)


def needs(
    device: Device = GPU, model: shape.Shape | None = MODEL, attention: str = "sdpa", packing: str = "padding_free"
) -> budget.TrainingNeeds:
    parameters = Parameters(use_qlora=False, attention=attention)
    return budget.TrainingNeeds(parameters, device, model, choices.for_base(parameters, device, model), packing, ROWS)


def test_examples_are_summed_up_one_by_one() -> None:
    assert budget.lengths_of(iter([3, 10, 7]), iter([1, 4, 5])) == budget.Lengths(3, 20, 10, 0.5)
    assert budget.lengths_of([], []) == budget.Lengths(0, 0, 0, 0.0)


def test_a_part_of_the_memory_stays_free() -> None:
    assert budget.safe_memory(GPU) == 90_000_000_000
    assert budget.safe_memory(replace(GPU, memory_bytes=0)) == 0


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (48_200_000_000, "48.2 GB of 100.0 GB needed without it"),
        (90_000_000_000, "90.0 GB of 100.0 GB needed without it"),
        (90_000_000_001, "90.0 GB of 100.0 GB would be needed without it"),
        (31_000_000, "31.0 MB of 100.0 GB needed without it"),
    ],
)
def test_what_does_not_fit_would_be_needed(need: int, words: str) -> None:
    assert budget.told(need, GPU, "without it") == words
    assert budget.told(need, GPU) == words.removesuffix(" without it")


def test_more_tokens_need_more_and_checkpointing_needs_less() -> None:
    found = needs()
    assert found.known
    small, large = found.memory(1000, False), found.memory(4000, False)
    assert small.total < large.total and small.weights == large.weights
    assert found.memory(4000, True).total < large.total
    assert found.memory(10, False) == found.memory(ROWS.longest, False), "no pass is shorter than the longest row"
    assert found.fit(4000, True) and not found.fit(400_000, True)
    assert found.told(400_000, True).endswith("of 100.0 GB would be needed")


def test_the_attention_and_the_layout_count() -> None:
    def total(attention: str, packing: str) -> int:
        return needs(attention=attention, packing=packing).memory(4000, False).total

    assert total("eager", "padded") > total("sdpa", "padded") > total("flash_attention_2", "padded")
    assert total("sdpa", "padding_free") == total("flash_attention_2", "padding_free")


def test_what_is_missing_is_named() -> None:
    assert not needs(model=None).known and "architecture" in budget.unknown(None)
    assert not needs(replace(GPU, memory_bytes=0)).known and "memory of the host" in budget.unknown(MODEL)
