"""The training examples of a stage: its rows read, checked and encoded for the base's tokenizer. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import digest, encoding
from trainer.config import Parameters
from trainer.data import Row, raise_errors, read_rows
from trainer.encoding import Example
from trainer.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Numbered = list[tuple[int, Row]]  # line number and row


def read(data_root: Path, file: str, expected: str) -> Numbered:
    """The rows of a data file; InputError for what is wrong with them, or another sha256 than `expected`."""
    numbered, findings = read_rows(data_root / file, file)
    raise_errors(findings)
    if digest.of_file(data_root / file) != expected:
        raise InputError(f"{file} changed after the plan had looked at it; submit the plan again")
    return numbered


def of_rows(
    numbered: Numbered, file: str, tokenizer: PreTrainedTokenizerBase, parameters: Parameters, context: int
) -> Sequence[Example]:
    """One example for each assistant turn; `context` is what the base model takes, in tokens."""
    limit = min(parameters.max_length, context)
    examples, findings = encoding.encode(
        numbered, tokenizer, file, enable_thinking=parameters.enable_thinking, max_length=limit
    )
    raise_errors(findings)
    return examples
