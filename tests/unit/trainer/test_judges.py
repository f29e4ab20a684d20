"""Refusals, citations and tool calls: what counts, in part or in full, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.trainer.benchmark_rows import one, row


@pytest.mark.parametrize(
    ("should", "response", "refused", "value"),
    [
        (True, "我不能直接给出答案。", None, 1),
        (True, "E=0", None, 0),
        (False, "E=0，电场线不能相交。", None, 1),
        (False, "我不能直接给出答案。", None, 0),
        (True, "E=0", True, 1),
        (False, "我不能直接给出答案。", False, 1),
    ],
)
def test_refusals(should: bool, response: str, refused: bool | None, value: int) -> None:
    scored = one(row({"should_refuse": should}), response, refused=refused)
    assert scored["metrics"]["refusal_accuracy"] == value
    assert bool(scored["missed"]) is not bool(value)


def test_rows_without_should_refuse_carry_no_refusal_metric() -> None:
    assert "refusal_accuracy" not in one(row(), "我不能直接给出答案。")["metrics"]
    with pytest.raises(ValueError, match="refused is 'yes'"):
        one(row({"should_refuse": True}), "x", refused="yes")


@pytest.mark.parametrize(
    ("response", "given_citations", "value"),
    [
        ("见《电动力学》第 2 章与 GB/T 7714。", None, 1),
        ("见《电动力学》第2章。", None, 0.5),
        ("没有引用", None, 0),
        ("x", ["gb/t 7714", "电动力学 第 2 章，第 3 节"], 1),
        ("x", ["GB/T 7714"], 2 / 3),
        ("x", ["GB/T 7714", "电动力学 第2章", "编造的书", "另一本"], 2 / 3),
        ("见《电动力学》第 2 章与 GB/T 7714。", [], 0),
        ("x", [{"title": "电动力学 第2章"}, {"id": "GB/T 7714"}], 1),
    ],
)
def test_citations(response: str, given_citations: list[Any] | None, value: float) -> None:
    benchmark = row({"citations": ["电动力学第2章", "GB/T 7714"]})
    scored = one(benchmark, response, citations=given_citations)
    assert scored["metrics"]["citation_accuracy"] == pytest.approx(value)
    assert bool(scored["missed"]) is (value < 1)


CALLS = [
    {"name": "计算", "arguments": {"x": 2, "unit": "m"}},
    {"function": {"name": "查表", "arguments": '{"key": "mu0", "digits": [1, 2.50]}'}},
]


@pytest.mark.parametrize(
    ("calls", "value"),
    [
        (CALLS, 1),
        (CALLS[::-1], 1),
        ([{"name": "计算", "arguments": '{"unit": "m", "x": 2.0}'}, CALLS[1]], 1),
        (CALLS[:1], 0),
        ([*CALLS, CALLS[0]], 0),
        ([{"name": "计算", "arguments": {"x": 2}}, CALLS[1]], 0),
        ([{"name": "计算", "arguments": {"x": "2", "unit": "m"}}, CALLS[1]], 0),
        ([{"name": "计算", "arguments": {"x": 3, "unit": "m"}}, CALLS[1]], 0),
        ([{"name": "别的", "arguments": {"x": 2, "unit": "m"}}, CALLS[1]], 0),
        ([{"name": "计算", "arguments": "{broken"}, CALLS[1]], 0),
        (["计算", CALLS[1]], 0),
        ([], 0),
    ],
)
def test_tool_calls(calls: list[Any], value: int) -> None:
    scored = one(row({"tool_calls": CALLS}), "好的", tool_calls=calls)
    assert scored["metrics"]["tool_call_accuracy"] == value
    assert any("tool call" in text for text in scored["missed"]) is not bool(value)


def test_true_is_not_one_and_unparsed_calls_are_read() -> None:
    benchmark = row({"tool_calls": [{"name": "f", "arguments": {"flag": True}}]})
    assert one(benchmark, "x", tool_calls=[{"name": "f", "arguments": {"flag": 1}}])["missed"]
    text = '<tool_call>\n{"name": "f", "arguments": {"flag": true}}\n</tool_call>'
    assert one(benchmark, text)["metrics"]["tool_call_accuracy"] == 1
    assert one(benchmark, text.replace("true}}", "true"))["metrics"]["tool_call_accuracy"] == 0
