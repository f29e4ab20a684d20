"""Which rows make a step, in which order, from a sequence or from a memory-mapped data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import skip_first_batches
from datasets import Dataset, load_from_disk

from trainer import feed
from trainer.crew import ALONE, Crew
from trainer.encoding import IGNORED, Example

LENGTHS = [5, 9, 3, 7, 8, 4, 6]


def example(number: int, length: int) -> Example:
    ids = [number * 100 + place for place in range(length)]
    return Example(f"row-{number}", 0, ids, [IGNORED] * 2 + ids[2:])


EXAMPLES = [example(number, length) for number, length in enumerate(LENGTHS)]


def mapped(folder: Path, examples: list[Example]) -> Dataset:
    """The examples as a data set on disk, as tokenisation writes it."""
    columns = {
        "input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples],
        "row_id": [e.row_id for e in examples], "length": [len(e.input_ids) for e in examples],
        "trained_tokens": [e.trained_tokens for e in examples],
    }  # fmt: skip
    Dataset.from_dict(columns).save_to_disk(str(folder))
    return load_from_disk(str(folder))


@pytest.fixture(params=["sequence", "memory-mapped", "chosen from it"])
def examples(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sequence":
        return EXAMPLES
    if request.param == "memory-mapped":
        return mapped(tmp_path / "rows", EXAMPLES)
    turned = mapped(tmp_path / "rows", EXAMPLES[::-1])
    return turned.select(range(len(EXAMPLES) - 1, -1, -1))  # by an index, as a shuffled or filtered one


def crew_of(rank: int, size: int) -> Crew:
    crew = Crew()
    crew.rank, crew.size = rank, size
    return crew


def steps(examples: Any, epoch: int = 0, per_step: int = 3, seed: int = 42, crew: Crew = ALONE) -> list[feed.Step]:
    loader = feed.loader(feed.Rows(examples, crew), per_step, seed)
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def names(found: list[feed.Step]) -> list[list[str]]:
    return [[item.row_id for item in step.items] for step in found]


def test_an_epoch_holds_every_row_once_and_its_last_step_is_short(examples: Any) -> None:
    found = steps(examples)
    assert [len(step.items) for step in found] == [3, 3, 1]
    assert sorted(name for step in names(found) for name in step) == [e.row_id for e in EXAMPLES]


def test_a_row_keeps_its_ids_and_labels(examples: Any) -> None:
    by_name = {e.row_id: e for e in EXAMPLES}
    for step in steps(examples):
        for item in step.items:
            wanted = by_name[item.row_id]
            assert (item.input_ids.tolist(), item.labels.tolist()) == (wanted.input_ids, wanted.labels)
            assert item.input_ids.dtype == item.labels.dtype == torch.int64 and len(item) == len(wanted.input_ids)
        assert step.trained_tokens == sum(by_name[item.row_id].trained_tokens for item in step.items)


def test_the_order_is_a_function_of_seed_and_epoch_alone(examples: Any) -> None:
    torch.manual_seed(1)
    first = names(steps(examples))
    torch.manual_seed(2)
    assert names(steps(examples)) == first == names(steps(EXAMPLES))
    assert names(steps(examples, epoch=1)) != first != names(steps(examples, seed=43))
    assert names(steps(examples, epoch=1)) != names(steps(examples, seed=43, epoch=0))


def test_steps_that_a_checkpoint_has_behind_are_skipped(examples: Any) -> None:
    rest = skip_first_batches(feed.loader(feed.Rows(examples), 3, 42), 2)
    rest.batch_sampler.batch_sampler.set_epoch(4)  # as transformers does it
    assert names(list(rest)) == names(steps(examples, epoch=4))[2:]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_processes_share_the_rows_of_a_step(examples: Any, size: int) -> None:
    whole = steps(examples)
    shares = [steps(examples, crew=crew_of(rank, size)) for rank in range(size)]
    for number, step in enumerate(whole):
        parts = [share[number] for share in shares]
        found = sorted(item.row_id for part in parts for item in part.items)
        assert found == sorted(item.row_id for item in step.items)
        assert {part.trained_tokens for part in parts} == {step.trained_tokens}, "of the whole step, in each of them"
    assert not shares[-1][-1].items, "the last step has one row"


def test_the_longest_rows_come_first_so_that_shares_are_alike(examples: Any) -> None:
    for step in steps(examples):
        lengths = [len(item) for item in step.items]
        assert lengths == sorted(lengths, reverse=True)


def test_what_is_counted_over_all_rows(examples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "COUNTED_AT_A_TIME", 3)
    rows = feed.Rows(examples)
    assert (len(rows), rows.tokens(), rows.trained_tokens(), rows.longest()) == (7, sum(LENGTHS), sum(LENGTHS) - 14, 9)
    assert rows.untrained() == (0, "")


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_that_train_nothing_are_counted_and_the_first_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    monkeypatch.setattr(feed, "COUNTED_AT_A_TIME", 3)
    changed = [Example(e.row_id, 0, e.input_ids, [IGNORED] * len(e.labels)) if n in (4, 6) else e
               for n, e in enumerate(EXAMPLES)]  # fmt: skip
    assert feed.Rows(mapped(tmp_path / "rows", changed) if on_disk else changed).untrained() == (2, "row-4")


def test_a_data_set_is_read_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    found = Dataset.__getitem__

    def counted(self: Any, key: Any) -> Any:
        asked.append(len(key) if isinstance(key, list) else 1)
        return found(self, key)

    monkeypatch.setattr(Dataset, "__getitem__", counted)
    steps(mapped(tmp_path / "rows", EXAMPLES))
    assert max(asked) == 3


def test_each_token_learns_the_label_of_the_next() -> None:
    assert feed.learned(torch.tensor([IGNORED, 5, 6])).tolist() == [5, 6, IGNORED]
