"""Which form of the base is chosen: whole, in 4 bits or in shares, for several processes and cards."""

from __future__ import annotations

from typing import Any

import pytest

from trainer import shape
from trainer.budget import Lengths
from trainer.choices import Choices, for_answers, for_base, for_training
from trainer.config import Parameters
from trainer.device import Device
from trainer.errors import InputError
from trainer.estimate import SAFE_SHARE
from trainer.way import Way
from trainer.workload import Question, Workload

SHAPES = {name: shape.of_name(f"Qwen/Qwen3-{name}") for name in ("8B", "32B")}
CPU = Device("cpu", "a processor", 1, 24 << 30, False, None, False, False, 2)
WORK = Workload(
    rows=28, examples=28, tokens=14_000, trained_tokens=7_000, longest=900, pairs=4e6,
    questions=tuple(Question(300, 250) for _ in range(12)), counted="counted",
)  # fmt: skip


def card(gigabytes: float, **more: Any) -> Device:
    values = {"memory_bytes": int(gigabytes * 1e9), "liger": True, "count": 1, **more}
    return Device("cuda", "a card", bf16_native=True, capability=(8, 9), flash_attention=False, cores=16, **values)


def base(device: Device, processes: int, model: str = "8B", **changes: Any) -> Choices:
    return for_base(Parameters(**{"use_qlora": "auto", **changes}), device, SHAPES.get(model), processes)


def shared(device: Device, processes: int, **changes: Any) -> tuple[bool, str]:
    found = base(device, processes, **changes)["shard_base"]
    return found.value, found.reason


def test_the_whole_base_is_kept_where_it_fits() -> None:
    assert shared(card(24), 4, use_qlora=False) == (False, "19.2 GB of 24.0 GB needed with the whole base")
    assert shared(card(16), 4, use_qlora=False) == (
        True, "19.2 GB of 16.0 GB would be needed with the whole base, 12.2 GB with a share",
    )  # fmt: skip
    assert shared(card(12), 4, use_qlora=False) == (
        False,
        "19.2 GB of 12.0 GB would be needed with the whole base, 12.2 GB with a share, which is too much as well",
    )
    assert shared(card(12), 8, use_qlora=False)[0], "twice as many processes, half of the share"


@pytest.mark.parametrize(
    ("device", "processes", "model", "changes", "value", "reason"),
    [
        (card(16), 1, "8B", {"use_qlora": False}, False, "one process has nothing to share with"),
        (card(16), 1, "8B", {"shard_base": True}, False, "one process has nothing to share with"),
        (card(16), 1, "8B", {"shard_base": True, "use_qlora": True}, False, "one process has nothing to share with"),
        (card(16), 4, "8B", {"use_qlora": True}, False, "weights of 4 bits are not shared"),
        (card(16), 4, "8B", {"use_qlora": False, "shard_base": False}, False, "asked for"),
        (card(80), 4, "8B", {"use_qlora": False, "shard_base": True}, True, "asked for"),
        (card(80), 4, "?", {"use_qlora": False, "shard_base": True}, True, "asked for"),
        (card(16), 4, "?", {"use_qlora": False}, False,
         "the architecture of the base is not known, so nothing can be estimated"),
        (CPU, 4, "32B", {"use_qlora": False}, False, "without a GPU all processes use the same memory"),
        (CPU, 2, "8B", {"use_qlora": False, "shard_base": True}, True, "asked for"),
    ],
)  # fmt: skip
def test_why_the_base_is_in_shares_or_not(
    device: Device, processes: int, model: str, changes: dict[str, Any], value: bool, reason: str
) -> None:
    assert shared(device, processes, model=model, **changes) == (value, reason)


def test_auto_takes_the_whole_base_then_4_bits_then_shares() -> None:
    whole = base(card(80), 8)
    assert (whole.value("quantise"), whole.value("shard_base")) == (False, False)
    bits = base(card(32), 8, "32B")
    assert (bits.value("quantise"), bits.value("shard_base")) == (True, False)
    shares = base(card(24), 8, "32B")
    assert (shares.value("quantise"), shares.value("shard_base")) == (False, True)
    assert shares["quantise"].reason == (
        "187.3 GB of 24.0 GB would be needed with the base in bfloat16, and 23.9 GB with weights of 4 bits; "
        "shares of the whole weights fit"
    )
    for processes, changes in ((4, {}), (1, {}), (8, {"shard_base": False})):  # four shares are more than 4 bits
        found = base(card(24), processes, "32B", **changes)
        assert (found.value("quantise"), found.value("shard_base")) == (True, False)


def test_who_asks_for_shares_gets_no_4_bits() -> None:
    found = base(card(32), 4, shard_base=True)
    assert (found.value("quantise"), found.value("shard_base")) == (False, True)
    assert found["quantise"].reason == "shard_base is true, and weights of 4 bits are not shared"
    assert base(card(32), 1, shard_base=True).value("quantise"), "one process shares nothing"
    assert base(card(32), 4, shard_base="auto").value("quantise")


def test_shares_of_4_bits_are_refused_in_one_sentence() -> None:
    with pytest.raises(InputError) as caught:
        base(card(32), 2, use_qlora=True, shard_base=True)
    assert str(caught.value) == (
        "shard_base is true and use_qlora is true, but the 4-bit weights of bitsandbytes cannot be shared; set "
        "use_qlora to false, or shard_base to auto"
    )
    for changes in ({"use_qlora": False, "shard_base": True}, {"use_qlora": True, "shard_base": "auto"}):
        assert base(card(32), 2, **changes).value("shard_base") is (changes["shard_base"] is True)


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_not_tried_on_shares_is_off(asked: bool) -> None:
    parameters = Parameters(use_qlora=False, compute_dtype="float32", compile_above_steps=1, shard_base=asked)
    model = SHAPES["8B"]
    found = for_base(parameters, card(80), model, 2)
    training = for_training(parameters, card(80), model, found, Lengths(28, 8400, 600, 0.4), 8, 2)
    answers = for_answers(parameters, card(80), model, found, 12, 600, 2)
    told = [(choice.value, choice.reason) for choice in (found["fused_kernels"], training["compile"], answers["merge"])]
    if asked:
        untried = "not tried on a base in shares"
        assert told == [
            ("off", untried), (False, untried), (False, "a base in shares is never whole on one device"),
        ]  # fmt: skip
    else:
        assert [value for value, _ in told] == ["liger", True, True]


def test_passes_and_batches_are_chosen_for_the_share() -> None:
    """A share leaves room, and what is gathered takes some of it again."""
    parameters, model = Parameters(use_qlora=False, max_length=1024), SHAPES["8B"]
    found = {
        processes: Way(parameters, card(20, count=processes), model, WORK, 8) for processes in (1, 2, 4)
    }  # fmt: skip
    assert [way.choices.value("shard_base") for way in found.values()] == [False, True, True]
    assert found[1].fit().unfit and not found[2].fit().unfit and not found[4].fit().unfit
    training, answering = found[2].needs()
    for need in (training, answering):
        assert need.total <= 20e9 * SAFE_SHARE
        assert need.weights == -(-16381470720 // 2) and need.gathered > 0
    assert found[4].needs()[1].cache >= answering.cache
    assert found[4].fit().total != found[1].fit().total


def test_an_estimate_that_does_not_fit_names_shares_as_the_way_out() -> None:
    asked = Parameters(use_qlora=False, shard_base=False, gradient_checkpointing=True, num_processes=4)
    found = Way(asked, card(16, count=4), SHAPES["8B"], WORK, 8).fit()
    assert "set shard_base to auto, which needs 1" in found.unfit and not found.impossible
    asked = Parameters(use_qlora=False, shard_base=True, num_processes=2)
    found = Way(asked, card(14, count=2), SHAPES["8B"], WORK, 8).fit()
    assert "set shard_base to auto, use_qlora to true, which needs " in found.unfit and not found.impossible
    asked = Parameters(use_qlora=True, num_processes=8)
    found = Way(asked, card(24, count=8), SHAPES["32B"], WORK, 8).fit()
    assert "set use_qlora to auto, which needs " in found.unfit and not found.impossible
