"""What an optimiser step is made of: which rows, in which order, and what of them this process takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from trainer.budget import Lengths
from trainer.crew import ALONE, Crew
from trainer.encoding import IGNORED, Example

COUNTED_AT_A_TIME = 65536  # numbers of a column that are looked at together: half a megabyte


@dataclass(frozen=True)
class Item:
    """One row of a step: ids and labels, int64 [tokens]; labels IGNORED where nothing is learned."""

    row_id: str
    input_ids: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return int(self.input_ids.numel())


@dataclass(frozen=True)
class Step:
    """The rows of an optimiser step that this process takes, the longest first, and the whole step's trained tokens."""

    items: list[Item]
    trained_tokens: int


class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
    """Examples by index, from a sequence or from a memory-mapped `datasets.Dataset`; only a step's rows are read.

    A Dataset has the columns input_ids, labels, row_id, length and trained_tokens.
    """

    def __init__(self, examples: Sequence[Example] | Dataset, crew: Crew = ALONE) -> None:
        self.examples = examples
        self.crew = crew
        if isinstance(examples, Dataset):
            self._rows = examples.with_format("numpy", columns=["row_id", "input_ids", "labels"])
            self._counts = examples.with_format("numpy", columns=["length", "trained_tokens"])
        else:
            self._trained = [example.trained_tokens for example in examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, indices: list[int]) -> Step:
        """The step of these rows: sorted by length before they are shared, so that every process has as much."""
        lengths, trained = self._counted(indices)
        order = sorted(range(len(indices)), key=lambda place: -lengths[place])  # stable: equal ones keep their order
        mine = self.crew.share([indices[place] for place in order])
        return Step(self._items(mine), sum(trained))

    def _counted(self, indices: list[int]) -> tuple[list[int], list[int]]:
        if isinstance(self.examples, Dataset):
            counts = self._counts[indices]
            return counts["length"].tolist(), counts["trained_tokens"].tolist()
        return [len(self.examples[i].input_ids) for i in indices], [self._trained[i] for i in indices]

    def _items(self, indices: list[int]) -> list[Item]:
        if not indices:
            return []
        if isinstance(self.examples, Dataset):
            found = self._rows[indices]
            columns = zip(found["row_id"], found["input_ids"], found["labels"], strict=True)
            return [Item(str(name), _tensor(ids), _tensor(labels)) for name, ids, labels in columns]
        chosen = [self.examples[index] for index in indices]
        return [Item(e.row_id, torch.tensor(e.input_ids), torch.tensor(e.labels)) for e in chosen]

    def trained_tokens(self) -> int:
        """Of all rows, once."""
        return sum(int(part.sum()) for part in self._column("trained_tokens"))

    def tokens(self) -> int:
        """Of all rows, once."""
        return sum(int(part.sum()) for part in self._column("length"))

    def longest(self) -> int:
        """The tokens of the longest row."""
        return max((int(part.max()) for part in self._column("length")), default=0)

    def lengths(self) -> Lengths:
        """What the rows add up to."""
        tokens = sum(int(part.sum()) for part in self._column("length"))
        return Lengths(len(self), tokens, self.longest(), self.trained_tokens() / tokens if tokens else 0.0)

    def untrained(self) -> tuple[int, str]:
        """How many rows train no token, and the id of the first of them."""
        count, first, seen = 0, "", 0
        for part in self._column("trained_tokens"):
            places = numpy.flatnonzero(part < 1)
            if len(places) and not count:
                first = self._name(seen + int(places[0]))
            count, seen = count + len(places), seen + len(part)
        return count, first

    def _name(self, index: int) -> str:
        if isinstance(self.examples, Dataset):
            return str(self._rows[index]["row_id"])
        return self.examples[index].row_id

    def _column(self, name: str) -> Iterator[Any]:
        """A column of counts in parts."""
        if isinstance(self.examples, Dataset):
            yield from (part[name] for part in self._counts.iter(COUNTED_AT_A_TIME))
        elif self.examples:
            lengths = [len(example.input_ids) for example in self.examples] if name == "length" else self._trained
            yield numpy.array(lengths)


def _tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(numpy.array(values, dtype=numpy.int64))


class Order:
    """The rows of every step of an epoch: shuffled by seed and epoch alone; the last step may be short."""

    def __init__(self, rows: int, per_step: int, seed: int) -> None:
        self.rows = rows
        self.per_step = per_step
        self.seed = seed
        self.epoch = 0
        self.batch_sampler = self  # where transformers looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.per_step)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(self.rows, generator=generator)
        for start in range(0, self.rows, self.per_step):
            yield order[start : start + self.per_step].tolist()


def loader(rows: Rows, per_step: int, seed: int) -> DataLoader[Any]:
    """The steps of the current epoch; transformers sets the epoch and skips the steps that a checkpoint has behind."""
    return DataLoader(rows, batch_sampler=Order(len(rows), per_step, seed), collate_fn=_as_it_is)


def _as_it_is(step: Step) -> Step:
    return step


def learned(labels: torch.Tensor) -> torch.Tensor:
    """The label that each token predicts: those of the next token, IGNORED for the last one."""
    return torch.cat([labels[1:], labels.new_full((1,), IGNORED)])
