"""The base of a plan: loaded once, kept while what shapes it stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
