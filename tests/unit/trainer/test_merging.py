"""Merged weights answer like base and adapter, and the base comes back bit by bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import encoding, generate, merging, model, train
from trainer.choices import Choice


def silent(*_: Any, **__: Any) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def tutor(
    tiny_base: Path, tiny_parameters: Any, tiny_rows: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[model.Base, Any]:
    """A base and the adapter with which it has learned its rows."""
    base = model.load_base(str(tiny_base), tiny_parameters())
    examples, _ = encoding.encode(
        list(enumerate(tiny_rows, 1)), base.tokenizer, "rows", enable_thinking=False, max_length=256
    )
    adapted = model.attach_adapter(base, tiny_parameters())
    train.train(adapted, base, examples, tiny_parameters(), tmp_path_factory.mktemp("train"), silent)
    return base, adapted


@pytest.fixture
def make_adapted(tiny_base: Path, tiny_parameters: Any) -> Callable[..., tuple[model.Base, Any]]:
    """Makes a base with a fresh adapter of some parameters."""

    def make(**changes: Any) -> tuple[model.Base, Any]:
        parameters = tiny_parameters(**changes)
        base = model.load_base(str(tiny_base), parameters)
        return base, model.attach_adapter(base, parameters)

    return make


def weights(adapted: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in adapted.named_parameters()}


def identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_merged_weights_answer_the_same(tutor: Any, tiny_rows: Any, tiny_parameters: Any) -> None:
    base, adapted = tutor
    rows = [*tiny_rows, *({"id": f"q{n}", "query": "电场与导体" * n} for n in range(1, 6))]

    def answers() -> list[Any]:
        return generate.answer(adapted, base.tokenizer, rows, tiny_parameters(), silent).predictions

    before, wanted = weights(adapted), answers()
    with adapted.disable_adapter():
        untrained = answers()
    assert wanted[0]["response"] == tiny_rows[0]["messages"][-1]["content"] != untrained[0]["response"]
    with merging.merged(adapted):
        assert answers() == wanted
        changed = [name for name, weight in adapted.named_parameters() if not torch.equal(weight, before[name])]
        assert changed and all("base_layer.weight" in name for name in changed)
    assert identical(weights(adapted), before)
    assert answers() == wanted
    trainable = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)


def test_the_base_comes_back_bit_by_bit_when_an_answer_fails(tutor: Any) -> None:
    _, adapted = tutor
    before = weights(adapted)
    places = {name: weight.data_ptr() for name, weight in adapted.named_parameters()}
    with pytest.raises(RuntimeError, match="half way"), merging.merged(adapted):
        assert not identical(weights(adapted), before)
        raise RuntimeError("half way")
    assert identical(weights(adapted), before)
    assert {name: weight.data_ptr() for name, weight in adapted.named_parameters()} == places  # the very tensors


def test_the_base_comes_back_when_merging_itself_fails(tutor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, adapted = tutor
    before, calls = weights(adapted), iter(range(100))
    real = merging.LoraLinear.get_delta_weight

    def fail_at_the_fourth(layer: Any, name: str) -> torch.Tensor:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("out of memory")
        return real(layer, name)

    monkeypatch.setattr(merging.LoraLinear, "get_delta_weight", fail_at_the_fourth)
    with pytest.raises(torch.OutOfMemoryError), merging.merged(adapted):
        raise AssertionError("never merged")
    assert next(calls) == 4 and identical(weights(adapted), before)


def test_adding_and_subtracting_would_not_bring_the_base_back(tutor: Any) -> None:
    _, adapted = tutor  # why the originals are kept
    before = weights(adapted)
    adapted.base_model.merge_adapter()
    adapted.base_model.unmerge_adapter()
    after = weights(adapted)
    for weight, (name, _) in zip(before.values(), adapted.named_parameters(), strict=True):
        adapted.get_parameter(name).data = weight
    assert not identical(after, before) and identical(weights(adapted), before)


def test_a_float32_base_is_merged_unless_told_not_to(make_adapted: Any, tiny_parameters: Any) -> None:
    base, adapted = make_adapted()
    chosen = merging.choose(adapted, base, tiny_parameters())
    assert (chosen.name, chosen.value) == ("merge", True) and "float32" in chosen.reason
    assert merging.choose(adapted, base, tiny_parameters(merge_adapter="off")).value is False
    planned = Choice("merge", False, "no room")
    assert merging.choose(adapted, base, tiny_parameters(), planned) == planned
    assert merging.choose(adapted, base, tiny_parameters(), replace(planned, value=True)) == chosen


def test_a_base_that_would_be_rounded_is_not_merged(make_adapted: Any) -> None:
    assert merging.obstacle(*reversed(make_adapted())) == ""
    assert "bfloat16" in merging.obstacle(*reversed(make_adapted(compute_dtype="bfloat16")))
    assert "4-bit" in merging.obstacle(*reversed(make_adapted(use_qlora=True)))


def test_a_weight_that_is_used_without_the_adapter_too_is_not_merged(make_adapted: Any) -> None:
    base, adapted = make_adapted(lora_target_modules="q_proj,lm_head")  # the head is the embedding's weight
    assert base.model.config.tie_word_embeddings
    assert "also used without it" in merging.obstacle(adapted, base)
    assert merging.obstacle(*reversed(make_adapted(lora_target_modules="q_proj,v_proj"))) == ""


def test_an_adapter_of_another_kind_is_not_merged(make_adapted: Any) -> None:
    base, adapted = make_adapted(lora_target_modules="embed_tokens")
    assert "another kind" in merging.obstacle(adapted, base)


@contextlib.contextmanager
def memory_told(monkeypatch: pytest.MonkeyPatch, folder: Path, kib: int, limit_mib: int | None) -> Iterator[None]:
    with monkeypatch.context() as patch:
        (folder / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {kib} kB\n", encoding="ascii")
        patch.setattr(merging, "MEMINFO", folder / "meminfo")
        patch.setattr(merging.memory, "limit_mib", lambda: limit_mib)
        yield


def test_memory_must_hold_the_originals_beside_the_merged_weights(
    make_adapted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapted = make_adapted()
    needed = sum(module.get_base_layer().weight.nbytes for module in merging._layers(adapted))
    fits = -(-2 * needed // 1024)
    with memory_told(monkeypatch, tmp_path, fits, None):
        assert merging.obstacle(adapted, base) == ""
    with memory_told(monkeypatch, tmp_path, fits - 1, None):
        assert "beside the originals" in merging.obstacle(adapted, base)
    own = merging._resident_bytes() // 2**20
    with memory_told(monkeypatch, tmp_path, 2**30, own + 500):
        assert merging.obstacle(adapted, base) == ""
    with memory_told(monkeypatch, tmp_path, 2**30, own - 50):  # of the container
        assert "beside the originals" in merging.obstacle(adapted, base)


def test_free_memory_is_unknown_where_nothing_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (merging.free_bytes(torch.device("cpu")) or 0) > 2**20
    monkeypatch.setattr(merging, "MEMINFO", tmp_path / "none")
    assert merging.free_bytes(torch.device("cpu")) is None
