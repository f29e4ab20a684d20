"""From the rows of a stage to its examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import chat, write_data, write_rows
from trainer import data, digest, encoding, examples, lines, precheck, stages, tokenised
from trainer.errors import InputError

TABLE = stages.load()
STAGE = TABLE.stage("style")


def test_rows_are_those_that_the_plan_had_looked_at(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    known = digest.of_file(root / STAGE.data)
    assert [row["id"] for row in examples.read(root, TABLE, STAGE, known).sample(10)][:1] == ["style-1"]
    with pytest.raises(InputError, match="changed after the plan had looked at it"):
        examples.read(root, TABLE, STAGE, "0" * 64)


@pytest.mark.parametrize("context", [8, 256])
def test_the_shorter_of_max_length_and_context_is_the_limit(
    tmp_path: Path, tiny_base: Path, tiny_parameters: Any, context: int
) -> None:
    root = write_data(tmp_path)
    source = examples.read(root, TABLE, STAGE, digest.of_file(root / STAGE.data))
    tokenizer = encoding.load_tokenizer(str(tiny_base), local_only=True)
    if context == 8:
        with pytest.raises(InputError, match="the limit is 8"):
            examples.of_source(source, tokenizer, tiny_parameters(), context, tmp_path)
    else:
        assert len(examples.of_source(source, tokenizer, tiny_parameters(), context, tmp_path)) == source.rows == 3


@pytest.fixture
def big(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as big."""
    monkeypatch.setattr(lines, "BIG_BYTES", 1)


def source_of(root: Path, cache: Path) -> examples.Source:
    return examples.read(root, TABLE, STAGE, digest.of_file(root / STAGE.data), cache)


def test_a_big_file_gives_the_examples_of_a_small_one(
    tmp_path: Path, tiny_tokenizer: Any, tiny_parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, parameters = write_data(tmp_path / "data"), tiny_parameters()
    small = source_of(root, tmp_path)
    held = examples.of_source(small, tiny_tokenizer, parameters, 256, tmp_path)
    monkeypatch.setattr(lines, "BIG_BYTES", 1)
    large = source_of(root, tmp_path)
    mapped = examples.of_source(large, tiny_tokenizer, parameters, 256, tmp_path)
    assert (large.rows, large.sample(100)) == (small.rows, small.sample(100)) and large.numbered is None
    assert [(e.row_id, e.turn, e.input_ids, e.labels) for e in held] == [
        (e["row_id"], e["turn"], e["input_ids"], e["labels"]) for e in mapped
    ]
    monkeypatch.undo()
    for limit in (8, 256):
        assert (
            examples.checked(small, tiny_tokenizer, parameters, limit, tmp_path)[1]
            == (examples.checked(large, tiny_tokenizer, parameters, limit, tmp_path)[1])
        )


@pytest.mark.usefixtures("big")
def test_a_big_file_is_judged_like_a_small_one(tmp_path: Path, tiny_tokenizer: Any, tiny_parameters: Any) -> None:
    root = write_data(tmp_path)
    source = source_of(root, tmp_path)
    with pytest.raises(InputError, match="the limit is 8"):
        examples.of_source(source, tiny_tokenizer, tiny_parameters(), 8, tmp_path)
    with pytest.raises(InputError, match="changed after the plan had looked at it"):
        examples.read(root, TABLE, STAGE, "0" * 64, tmp_path)
    (root / STAGE.data).write_text("{\n", encoding="utf-8")
    with pytest.raises(InputError, match="the data has 1 fault: .*style_sft.jsonl:1: broken JSON"):
        source_of(root, tmp_path)


@pytest.mark.usefixtures("big")
def test_a_big_file_tells_leaks_of_all_its_rows_and_asks_a_few(tmp_path: Path) -> None:
    root = write_data(tmp_path)
    asked = {"id": "b-1", "query": "问题 7？", "expected": {"key_points": ["答"]}}
    write_rows(root / TABLE.benchmarks["style"], [asked])
    write_rows(root / STAGE.data, [chat(f"r-{number}", f"问题 {number}？", "答") for number in range(20)])
    source = source_of(root, tmp_path)
    assert source.leaks == {"style": [("b-1", "r-7", "the same as")], "writing": []}
    assert [row["id"] for row in source.sample(4)] == ["r-0", "r-5", "r-10", "r-15"]


@pytest.mark.usefixtures("big")
def test_what_the_check_read_and_tokenised_the_worker_takes(
    line: Any, tiny_base: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = line.plan("sample", parameters={"model_name_or_path": str(tiny_base)})
    precheck.inspect(plan, line.layout).raise_errors()

    def refuse(*_: Any) -> Any:
        raise AssertionError("the rows were read again")

    monkeypatch.setattr(data, "survey", refuse)
    monkeypatch.setattr(tokenised, "encode_block", refuse)
    stage = TABLE.stage("sample")
    parameters, _ = TABLE.resolve("sample", plan.profile, plan.overrides)
    known = digest.of_file(line.data / stage.data)
    source = examples.read(line.data, TABLE, stage, known, line.layout.cache)
    found = examples.of_source(source, tiny_tokenizer, parameters, 4096, line.layout.cache)
    assert len(found) == source.rows == 1
