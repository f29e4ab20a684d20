"""trainer/way.py: what fits a device, and what to change where it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trainer.config import Parameters
from trainer.device import Device
from trainer.shape import of_name
from trainer.way import Fit, Way
from trainer.workload import Question, Workload

QWEN3_8B = of_name("Qwen/Qwen3-8B")
WORK = Workload(
    rows=28, examples=28, tokens=14_000, trained_tokens=7_000, longest=900, pairs=4e6,
    questions=tuple(Question(300, 250) for _ in range(12)), counted="counted",
)  # fmt: skip


def card(gigabytes: float, name: str = "NVIDIA card") -> Device:
    return Device("cuda", name, 1, int(gigabytes * 1e9), True, (8, 0), False, False, 16)


def way(gigabytes: float, work: Workload = WORK, **changes: Any) -> Way:
    return Way(Parameters(**changes), card(gigabytes), QWEN3_8B, work, 8)


def test_what_fits_says_nothing() -> None:
    found = way(141).fit()
    assert found.unfit == "" and not found.impossible
    assert found.training is not None and found.answering is not None
    assert found.total == max(found.training.total, found.answering.total)


def test_a_base_of_unknown_shape_is_not_judged() -> None:
    assert Way(Parameters(), card(8), None, WORK, 8).fit() == Fit()


def test_a_device_of_unknown_memory_is_not_judged() -> None:
    unknown = replace(card(8), memory_bytes=0)
    found = Way(Parameters(), unknown, QWEN3_8B, WORK, 8).fit()
    assert found.unfit == "" and found.total is not None


@pytest.mark.parametrize(
    ("gigabytes", "changes", "remedy"),
    [
        (20, {"use_qlora": False}, "set use_qlora to true"),
        (24, {"gradient_checkpointing": False, "tokens_per_pass": 8192}, "set tokens_per_pass to 0"),
        (24, {"per_device_eval_batch_size": 256}, "set per_device_eval_batch_size to 0"),
    ],
)
def test_what_was_asked_for_and_does_not_fit_names_what_to_change(
    gigabytes: int, changes: dict[str, Any], remedy: str
) -> None:
    questions = tuple(Question(300, 250) for _ in range(300))
    work = replace(WORK, questions=questions)
    found = way(gigabytes, work, **changes).fit()
    assert remedy in found.unfit and not found.impossible
    assert f"needs {found.total / 1e9:.1f} GB" in found.unfit if found.total else False
    assert f"90% of the {gigabytes}.0 GB of NVIDIA card are {gigabytes * 0.9:.1f} GB" in found.unfit
    name, value = remedy.removeprefix("set ").split(" to ")
    assert way(gigabytes, work, **{**changes, name: {"true": True}.get(value, 0)}).fit().unfit == "", "its word holds"
    assert way(141, work, **changes).fit().unfit == "", "on a larger card nothing need be changed"


def test_what_never_fits_names_the_smallest_card_that_would() -> None:
    found = way(6).fit()
    assert found.impossible and "with all that saves memory" in found.unfit
    assert "a smaller base model or shorter rows" in found.unfit
    gigabytes = float(found.unfit.partition("take a card of ")[2].partition(" GB")[0])
    fits = way(gigabytes, gradient_checkpointing=True, per_device_eval_batch_size=1, merge_adapter="off").fit()
    assert fits.unfit == "" and not fits.impossible


def test_without_a_gpu_it_is_the_host_that_is_too_small() -> None:
    host = Device("cpu", "a processor", 1, 4 << 30, False, None, False, False, 2)
    found = Way(Parameters(), host, QWEN3_8B, WORK, 8).fit()
    assert found.impossible and "take a host with more memory" in found.unfit


def test_answers_are_counted_for_the_rows_there_are() -> None:
    few, many = (
        way(141, replace(WORK, questions=tuple(Question(300, 250) for _ in range(n))), per_device_eval_batch_size=64)
        for n in (2, 64)
    )
    assert few.needs()[1].cache * 32 == many.needs()[1].cache
