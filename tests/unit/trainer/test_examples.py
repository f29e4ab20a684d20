"""From the rows of a stage to its examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_data
from trainer import digest, encoding, examples, stages
from trainer.errors import InputError

FILE = stages.load().stage("style").data


def test_rows_are_those_that_the_plan_had_looked_at(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    known = digest.of_file(root / FILE)
    assert [row["id"] for _, row in examples.read(root, FILE, known)][:1] == ["style-1"]
    with pytest.raises(InputError, match="changed after the plan had looked at it"):
        examples.read(root, FILE, "0" * 64)


@pytest.mark.parametrize("context", [8, 256])
def test_the_shorter_of_max_length_and_context_is_the_limit(
    tmp_path: Path, tiny_base: Path, tiny_parameters: Any, context: int
) -> None:
    root = write_data(tmp_path)
    numbered = examples.read(root, FILE, digest.of_file(root / FILE))
    tokenizer = encoding.load_tokenizer(str(tiny_base), local_only=True)
    if context == 8:
        with pytest.raises(InputError, match="the limit is 8"):
            examples.of_rows(numbered, FILE, tokenizer, tiny_parameters(), context)
    else:
        assert len(examples.of_rows(numbered, FILE, tokenizer, tiny_parameters(), context)) == len(numbered)
