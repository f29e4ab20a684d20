"""The training examples of a stage: its rows read, checked and encoded for the base's tokenizer. No torch.

A small file is held as rows and examples. A big one (`lines.is_big`) is never held: it is surveyed, its examples lie
in an Arrow file that is mapped, and of its rows only those that the stage is asked are read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import digest, encoding, surveys, tokenised
from trainer.config import Parameters
from trainer.data import Survey, raise_errors, read_rows
from trainer.encoding import Example
from trainer.errors import InputError
from trainer.leakage import Leak
from trainer.lines import Finding, Lines, Row, is_big
from trainer.stages import Stage, StageTable

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Numbered = list[tuple[int, Row]]  # line number and row


@dataclass(frozen=True)
class Source:
    """The sound rows of a stage's training file: how many, the rows themselves when it is small, else what a survey
    knows of them."""

    path: Path
    stage: Stage
    sha256: str
    rows: int
    numbered: Numbered | None = None
    leaks: Mapping[str, list[Leak]] | None = None

    def sample(self, most: int) -> list[Row]:
        """All rows, or so many evenly spaced ones of a big file: always the same ones."""
        if self.numbered is not None:
            return [row for _, row in self.numbered]
        return Lines(self.path, self.stage.data).sample(most, self.rows)


def read(data_root: Path, table: StageTable, stage: Stage, expected: str, cache: Path | None = None) -> Source:
    """The rows of a stage; InputError for what is wrong with them, or another sha256 than `expected`."""
    path = data_root / stage.data
    if is_big(path):
        found = surveys.of_stage(data_root, table, stage, cache)
        raise_errors(found.findings)
        source = of_survey(data_root, stage, found)
    else:
        numbered, findings = read_rows(path, stage.data)
        raise_errors(findings)
        source = Source(path, stage, digest.of_file(path), len(numbered), numbered)
    if source.sha256 != expected:
        raise InputError(f"{stage.data} changed after the plan had looked at it; submit the plan again")
    return source


def of_survey(data_root: Path, stage: Stage, survey: Survey) -> Source:
    """The rows of a stage that was surveyed and found sound."""
    path = data_root / stage.data
    numbered = None if is_big(path) else read_rows(path, stage.data)[0]
    return Source(path, stage, survey.sha256, survey.rows, numbered, survey.leaks)


def checked(
    source: Source, tokenizer: PreTrainedTokenizerBase, parameters: Parameters, limit: int, cache: Path
) -> tuple[Sequence[Example] | Dataset, list[Finding]]:
    """One example for each assistant turn (a dataset for a big file), and a finding for each that cannot be trained.

    `limit` is the longest example, in tokens.
    """
    file, thinking = source.stage.data, parameters.enable_thinking
    if source.numbered is not None:
        return encoding.encode(source.numbered, tokenizer, file, enable_thinking=thinking, max_length=limit)
    found = tokenised.of_file(
        source.path, file, source.sha256, source.stage.name, tokenizer, cache, enable_thinking=thinking
    )
    return found.dataset, found.faults(file, limit)


def of_source(
    source: Source, tokenizer: PreTrainedTokenizerBase, parameters: Parameters, context: int, cache: Path
) -> Sequence[Example] | Dataset:
    """The examples to train on, all sound; `context` is what the base model takes, in tokens."""
    found, findings = checked(source, tokenizer, parameters, min(parameters.max_length, context), cache)
    raise_errors(findings)
    return found
