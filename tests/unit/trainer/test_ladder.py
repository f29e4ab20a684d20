"""The rungs that a training goes down when memory runs out."""

from __future__ import annotations

import pytest
import torch

from trainer import ladder
from trainer.ladder import Failure, Rung


def failed(tokens: int, rows: int = 1) -> Failure:
    return Failure(tokens, rows, "row-1", tokens // rows)


@pytest.mark.parametrize(
    ("problem", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_a_failed_allocation_is_one(problem: Exception, found: bool) -> None:
    assert ladder.is_out_of_memory(problem) is found


def test_an_allocation_that_really_fails_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert ladder.is_out_of_memory(caught.value)


def test_passes_are_halved_until_a_row_stands_alone_then_activations_are_recomputed() -> None:
    rung, seen = Rung(4096, False), []
    for failures in ([failed(3000, 5)], [failed(1400, 2)], [failed(1100)], [failed(1100)]):
        below = ladder.below(rung, failures)
        seen.append(below)
        rung = below or rung
    assert seen == [Rung(1500, False), Rung(700, False), Rung(700, True), None]


def test_a_pass_far_below_its_limit_is_the_one_that_is_halved() -> None:
    assert ladder.below(Rung(16384, False), [failed(300, 3)]) == Rung(150, False)


def test_the_processes_of_a_crew_take_the_same_rung() -> None:
    assert ladder.below(Rung(4096, False), [failed(900), failed(3000, 2)]) == Rung(1500, False)
    assert ladder.below(Rung(4096, True), [failed(900), failed(3000, 2)]) == Rung(1500, True)
    assert ladder.below(Rung(4096, True), [failed(900), failed(1000)]) is None


def test_there_is_a_pass_of_one_token_at_least() -> None:
    assert (
        ladder.below(Rung(1, False), [failed(2, 2)]) == Rung(1, False) == ladder.below(Rung(2, False), [failed(2, 2)])
    )


def test_what_people_are_told() -> None:
    text = ladder.told(7, Rung(4096, False), Rung(1500, False))
    assert text.startswith("out of memory at step 7: passes have at most 1500 tokens from here, 4096 before; ")
    assert "gradient checkpointing is on from here" in ladder.told(7, Rung(50, False), Rung(50, True))
    text = ladder.gave_up(failed(2048), "NVIDIA A10", 24 * 2**30)
    assert text == (
        "row 'row-1' with its 2048 tokens does not fit alone into the 24.0 GiB of NVIDIA A10, even with gradient "
        "checkpointing; shorten it, set use_qlora to true, lower lora_r or take a device with more memory"
    )
    assert "into the memory of this host, even" in ladder.gave_up(failed(2048), "this host", 0)


@pytest.mark.parametrize(
    ("rung", "failure", "advice"),
    [
        (Rung(4096, False), failed(900, 3), "set tokens_per_pass to 450 or less or gradient_checkpointing to true"),
        (Rung(4096, True), failed(900, 3), "set tokens_per_pass to 450 or less"),
        (Rung(4096, False), failed(900), "set gradient_checkpointing to true"),
        (Rung(4096, True), failed(900), "shorten it, lower lora_r or take more devices"),
    ],
)
def test_processes_that_share_the_base_are_told_what_to_set(rung: Rung, failure: ladder.Failure, advice: str) -> None:
    rows = "3 rows" if failure.rows > 1 else "row 'row-1' alone"
    assert ladder.of_shares(4, rung, failure, "NVIDIA A10", 24 * 2**30) == (
        f"out of memory at step 4: a pass of 900 tokens ({rows}) does not fit into the 24.0 GiB of NVIDIA A10, and "
        f"processes that share the base cannot try a smaller one; {advice}"
    )
    assert " does not fit into the memory of this host, and " in ladder.of_shares(4, rung, failure, "this host", 0)


def test_a_failure_names_the_longest_row_of_its_pass() -> None:
    class Item(list[int]):
        def __init__(self, row_id: str, tokens: int) -> None:
            super().__init__(range(tokens))
            self.row_id = row_id

    assert Failure.of(12, [Item("a", 4), Item("b", 7)]) == Failure(12, 2, "b", 7)
    assert Failure.of(1, []) == Failure(1, 0, "", 1), "a pass that teaches nothing has no row"
