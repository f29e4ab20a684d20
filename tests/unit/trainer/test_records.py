"""Benchmark rows and predictions: what they say, and how one that cannot be judged is named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.trainer.benchmark_rows import one, reference_row, row
from trainer import metrics, records


def test_ids_given_twice_are_refused_by_name() -> None:
    answer = {"id": "a", "response": "E=0"}
    with pytest.raises(ValueError, match="predictions: id a stands there twice"):
        metrics.score([row()], [answer, answer])
    with pytest.raises(ValueError, match="benchmark: id a stands there twice"):
        metrics.score([row(), row()], [answer])
    with pytest.raises(ValueError, match="record 2 has no id"):
        metrics.score([row()], [answer, {"response": "E=0"}])
    assert metrics.score([row()], [answer, {**answer, "id": "b"}])["unexpected"] == ["b"]


def test_a_row_without_anything_to_judge_by_is_refused() -> None:
    bare = {"id": "a", "messages": [{"role": "user", "content": "问"}]}
    with pytest.raises(ValueError, match="row a has neither expected nor a reference"):
        metrics.score([bare], [])
    with pytest.raises(ValueError, match="row a: key point 5"):
        metrics.score([row({"key_points": [5]})], [])


def test_refusal_type_of_a_messages_only_row() -> None:
    reference = "这是要交的作业，我不能直接给出答案，但可以带你走好关键的几步。"
    benchmark = reference_row(reference, refusal_type="homework")
    assert one(benchmark, reference)["metrics"]["refusal_accuracy"] == 1
    assert one(benchmark, "答案是 E=0。")["metrics"]["refusal_accuracy"] == 0
    assert "refusal_accuracy" not in one(reference_row(reference), reference)["metrics"]


def test_tool_calls_of_a_reference_are_expected() -> None:
    benchmark = reference_row("")
    benchmark["messages"][-1]["tool_calls"] = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    calls = [{"name": "f", "arguments": '{"x": 1.0}'}]
    assert one(benchmark, "", tool_calls=calls)["metrics"]["tool_call_accuracy"] == 1


@pytest.mark.parametrize(
    ("messages", "response", "origin", "words"),
    [
        ([{"role": "system", "content": 5}], "x", "benchmark", "a: text expected, found 5"),
        ([], 7, "predictions", "a: text expected, found 7"),
        ([], ["x"], None, ""),
        ([{"role": "system", "content": [{"text": "依次写 ### 结论"}]}], [{"text": "### 结论\n好"}], None, ""),
    ],
)
def test_a_value_that_is_no_text_is_named_with_its_file(
    messages: list[Any], response: object, origin: str | None, words: str
) -> None:
    benchmark = {"id": "a", "messages": messages, "expected": {"key_points": ["E=0"]}}
    if origin is None:
        assert metrics.score([benchmark], [{"id": "a", "response": response}])["missing"] == []
        return
    with pytest.raises(records.RecordError, match=words) as refused:
        metrics.score([benchmark], [{"id": "a", "response": response}])
    assert refused.value.origin == origin
