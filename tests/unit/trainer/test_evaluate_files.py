"""Scoring two files: one question set of several, and sentences that name the right file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import InputError
from trainer.evaluate import score_files, write_predictions

Rows = Sequence[dict[str, Any]]


def lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def benchmark(tmp_path: Path, *ids: str, **more: Any) -> Path:
    rows = [{"id": name, "query": "内部电场？", "expected": {"key_points": ["E=0"], **more}} for name in ids]
    return lines(tmp_path / "style_benchmark.jsonl", rows)


def answers(name: str, response: str, *ids: str) -> dict[str, Any]:
    return {"name": name, "predictions": [{"id": key, "response": response} for key in ids]}


def coverage(result: dict[str, Any]) -> tuple[float, int]:
    figure = result["summary"]["key_point_coverage"]
    return figure["value"], figure["n"]


def test_the_set_that_holds_the_benchmarks_ids_is_scored_alone(tmp_path: Path) -> None:
    file = tmp_path / "predictions_style.jsonl"
    sets = [answers("trained", "不知道", "a", "t-1"), answers("style", "E=0", "a", "b"), answers("writing", "好", "w")]
    write_predictions(file, sets)
    result = score_files(benchmark(tmp_path, "a", "b"), file)
    assert coverage(result) == (1.0, 2)
    assert (result["missing"], result["unexpected"]) == ([], [])
    assert coverage(score_files(benchmark(tmp_path, "t-1"), file)) == (0.0, 1)


def test_a_set_may_hold_more_than_the_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "predictions_style.jsonl"
    write_predictions(file, [answers("trained", "E=0", "t"), answers("style", "E=0", "a", "b")])
    assert score_files(benchmark(tmp_path, "a"), file)["unexpected"] == ["b"]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ([("style", "a"), ("writing", "w")], r"no question set \(style, writing\) holds every id of .*style_benchmark"),
        (
            [("style", "ab"), ("trained", "abt")],
            "the question sets style and trained all hold the ids of .*style_bench",
        ),
    ],
)
def test_no_set_or_two_are_refused(tmp_path: Path, sets: list[tuple[str, str]], words: str) -> None:
    file = tmp_path / "predictions_style.jsonl"
    write_predictions(file, [answers(name, "E=0", *ids) for name, ids in sets])
    with pytest.raises(InputError, match=f"^{file}: {words}"):
        score_files(benchmark(tmp_path, "a", "b"), file)
    write_predictions(file, [answers("style", "E=0", "a", "b"), answers("trained", "E=0", "a", "t")])
    assert coverage(score_files(benchmark(tmp_path, "a", "b"), file)) == (1.0, 2)


def test_sets_on_some_rows_only_are_refused(tmp_path: Path) -> None:
    rows = [{"id": "a", "response": "E=0", "set": "style"}, {"id": "b", "response": "E=0"}]
    file = lines(tmp_path / "predictions.jsonl", rows)
    with pytest.raises(InputError, match="1 of 2 rows have no set"):
        score_files(benchmark(tmp_path, "a"), file)
    lines(file, [{**row, "set": "style"} for row in rows])
    assert coverage(score_files(benchmark(tmp_path, "a"), file)) == (1.0, 1)


def test_a_file_without_sets_is_scored_whole(tmp_path: Path) -> None:
    file = lines(tmp_path / "predictions.jsonl", [{"id": "a", "response": "E=0"}, {"id": "z", "response": "E=0"}])
    result = score_files(benchmark(tmp_path, "a", "b"), file)
    assert (coverage(result), result["missing"], result["unexpected"]) == ((0.5, 2), ["b"], ["z"])


def test_a_fault_is_told_with_the_file_it_is_in(tmp_path: Path) -> None:
    answer = {"id": "a", "response": "E=0"}
    twice = lines(tmp_path / "twice.jsonl", [answer, answer])
    with pytest.raises(InputError) as refused:
        score_files(benchmark(tmp_path, "a"), twice)
    assert str(refused.value) == f"{twice}: id a stands there twice; keep one record for each id"
    asked = lines(tmp_path / "asked.jsonl", [{"id": "a", "query": "内部电场？"}])
    with pytest.raises(InputError) as refused:
        score_files(asked, lines(tmp_path / "once.jsonl", [answer]))
    assert str(refused.value).startswith(f"{asked}: row a has neither expected nor a reference answer;")
    assert coverage(score_files(benchmark(tmp_path, "a"), tmp_path / "once.jsonl")) == (1.0, 1)


def test_a_value_of_a_wrong_type_is_told_with_its_row(tmp_path: Path) -> None:
    file = lines(tmp_path / "predictions.jsonl", [{"id": "a", "response": "E=0", "refused": "no"}])
    with pytest.raises(InputError) as refused:
        score_files(benchmark(tmp_path, "a", should_refuse=False), file)
    assert str(refused.value) == f"{file}: a: refused is 'no'; give true or false"
    lines(file, [{"id": "a", "response": "E=0", "refused": False}])
    assert coverage(score_files(benchmark(tmp_path, "a", should_refuse=False), file)) == (1.0, 1)
