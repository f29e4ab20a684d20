"""The base of a plan: loaded once, kept while what shapes it stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer import base as embedded
from trainer import device as devices
from trainer import sharding
from trainer.crew import Crew
from trainer.errors import InputError
from trainer.resident import Resident
from trainer.state import Layout


@pytest.fixture
def resident(tmp_path: Path) -> Resident:
    """A place for a base, its reports thrown away."""
    return Resident(Layout(tmp_path), lambda *_, **__: None)


def test_the_resident_base_is_kept_while_its_parameters_are_the_same(
    resident: Resident, tiny_parameters: Any, tiny_corpus: Path
) -> None:
    first = resident.get(tiny_parameters(), tiny_corpus)
    same = tiny_parameters(learning_rate=0.5, max_new_tokens=3, lora_r=2, num_train_epochs=9.0)
    assert resident.get(same, tiny_corpus) is first
    other = resident.get(tiny_parameters(compute_dtype="bfloat16"), tiny_corpus)
    assert other is not first
    assert str(other.dtype) == "torch.bfloat16"


def test_auto_is_the_same_base_as_what_it_chooses(resident: Resident, tiny_parameters: Any, tiny_corpus: Path) -> None:
    first = resident.get(tiny_parameters(use_qlora="auto", compute_dtype="auto"), tiny_corpus)
    assert not first.quantised and str(first.dtype) == "torch.float32"
    assert first.choices["quantise"].reason == "without a GPU weights of 4 bits are slower"
    assert resident.get(tiny_parameters(use_qlora=False, compute_dtype="float32"), tiny_corpus) is first
    for other in ({"use_qlora": True}, {"attention": "eager"}):
        assert resident.get(tiny_parameters(**other), tiny_corpus) is not first


def test_a_base_is_looked_for_once_in_a_plan(
    resident: Resident, tiny_parameters: Any, tiny_corpus: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the embedded one, whose files are hashed whenever it is looked for."""
    built: list[Path] = []

    def build(models: Path, corpus: Path, say: Any) -> Path:
        built.append(corpus)
        return tiny_base

    monkeypatch.setattr(embedded, "build", build)
    parameters = tiny_parameters(model_name_or_path="embedded")
    first = resident.get(parameters, tiny_corpus)
    for changes in ({}, {"lora_r": 3}, {"compute_dtype": "bfloat16"}, {"use_qlora": True}):
        resident.get(tiny_parameters(model_name_or_path="embedded", **changes), tiny_corpus)
    assert built == [tiny_corpus]
    assert first.source == str(tiny_base)
    resident.get(tiny_parameters(model_name_or_path=str(tiny_base)), tiny_corpus)
    resident.get(parameters, tiny_corpus)
    assert len(built) == 2


def test_the_base_before_is_gone_when_the_next_one_is_loaded(
    resident: Resident, tiny_parameters: Any, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    from trainer import model

    model_before = weakref.ref(resident.get(tiny_parameters(), tiny_corpus).model)
    original, there = model.load_base, []

    def load(*words: Any, **options: Any) -> Any:
        there.append(model_before())
        return original(*words, **options)

    monkeypatch.setattr(model, "load_base", load)
    resident.get(tiny_parameters(compute_dtype="bfloat16"), tiny_corpus)
    assert there == [None], "a GPU has no room for two"


def test_checks_and_the_making_of_a_copy_are_no_loading(
    resident: Resident, tiny_parameters: Any, tiny_corpus: Path
) -> None:
    resident.get(tiny_parameters(), tiny_corpus)
    assert resident.spent == {}
    resident.get(tiny_parameters(use_qlora=True), tiny_corpus)
    assert sorted(resident.spent) == ["check_seconds", "prepare_seconds"]
    resident.get(tiny_parameters(use_qlora=True), tiny_corpus)
    assert resident.spent == {}, "the stages after it spend nothing"


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_of_several_processes_alone_looks_and_prepares(
    tmp_path: Path, tiny_parameters: Any, tiny_corpus: Path, tiny_base: Path, rank: int
) -> None:
    class Two(Crew):
        """One of two processes; what the first one would say is known."""

        size = 2

        def broadcast(self, value: Any) -> Any:
            told.append(value)
            return value if self.is_first else answers[len(told) - 1]

    told: list[Any] = []
    crew = Two()
    crew.rank = rank
    answers = [str(tiny_base), ({}, None)]
    found = Resident(Layout(tmp_path), lambda *_, **__: None, crew)
    base = found.get(tiny_parameters(use_qlora=True), tiny_corpus)
    assert base.quantised and len(told) == 2
    assert [value is None for value in told] == ([False, False] if rank == 0 else [True, True])
    assert any((tmp_path / "models").glob("prepared-*")) == (rank == 0)


class Unlike(Crew):
    """One of two processes whose card is the larger one, and which loads in turn."""

    size = 2
    turns = 0

    def gather(self, value: Any) -> list[Any]:
        return [value, value // 2]

    def one_by_one(self, make: Any) -> Any:
        self.turns += 1
        return make()


@pytest.mark.parametrize("asked", [True, False])
def test_a_base_in_shares_is_loaded_by_one_process_after_another(
    tmp_path: Path, tiny_parameters: Any, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    shared: list[Any] = []
    monkeypatch.setattr(sharding, "shard", shared.append)
    crew = Unlike()
    found = Resident(Layout(tmp_path), lambda *_, **__: None, crew)
    base = found.get(tiny_parameters(shard_base=asked), tiny_corpus)
    assert crew.turns == asked and shared == ([base.model] if asked else [])
    assert base.choices.value("shard_base") is asked
    assert base.device.memory_bytes == devices.found().memory_bytes // 2, "what is chosen fits every card"
    assert found.get(tiny_parameters(shard_base=asked), tiny_corpus) is base
    found.get(tiny_parameters(shard_base=not asked), tiny_corpus)
    assert crew.turns == 1, "another form of the base is another base"


def test_a_base_that_is_not_there_is_refused_in_one_sentence(
    resident: Resident, tiny_parameters: Any, tiny_corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        resident.get(tiny_parameters(model_name_or_path=str(tmp_path / "empty")), tiny_corpus)
    assert str(tmp_path / "empty") in str(caught.value) and "\n" not in str(caught.value)
    assert resident.get(tiny_parameters(), tiny_corpus).source


def test_a_base_of_a_hub_is_fetched_and_loaded_from_its_copy(
    resident: Resident, online: Any, tiny_parameters: Any, tiny_corpus: Path, model_hub: Any
) -> None:
    there = {name: getattr(online(), name) for name in ("model_name_or_path", "hf_endpoint")}
    found = resident.get(tiny_parameters(**there), tiny_corpus)
    assert found.source == str(resident.layout.models / "acme--Tiny-3" / model_hub.branches["main"])
