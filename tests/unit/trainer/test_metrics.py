"""What each metric counts, which rows carry it, and what a missing or empty answer costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import metrics

DATA = Path(__file__).parents[3] / "data" / "training"
STYLE = "回答必须依次包含：\n### 结论\n### 推导\n### 检查（量纲与极限）"
GOOD = "### 结论\nE=0。\n### 推导\n由高斯定律。\n### 检查（量纲与极限）\n单位是 V/m。"


def row(expected: dict[str, Any] | None = None, system: str = "", **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "导体内部的电场是多少？"})
    given_part = {"key_points": ["E=0"]} if expected is None else expected
    return {"id": "a", "type": "concept", "messages": messages, "expected": given_part, **more}


def one(benchmark: dict[str, Any], response: str, **more: Any) -> dict[str, Any]:
    [scored] = metrics.score([benchmark], [{"id": "a", "response": response, **more}])["rows"]
    return dict(scored)


def test_shape_of_the_result() -> None:
    rows = [row(), {**row(), "id": "b", "type": "calculation"}, {**row(), "id": "c"}]
    predictions = [{"id": "b", "response": "E=0"}, {"id": "a", "response": "E=1"}]
    result = metrics.score(rows, [*predictions, {"id": "z", "response": "E=0"}])
    assert set(result) == {"summary", "by_type", "rows", "missing", "unexpected"}
    assert tuple(result["summary"]) == metrics.METRICS
    assert result["summary"]["key_point_coverage"]["value"] == pytest.approx(1 / 3)
    assert result["summary"]["key_point_coverage"]["n"] == 3
    assert result["summary"]["citation_accuracy"] == {"value": None, "n": 0, "ci95": None}
    assert list(result["by_type"]) == ["concept", "calculation"]
    assert result["by_type"]["concept"]["format_compliance"]["value"] == 0.5
    assert [item["id"] for item in result["rows"]] == ["a", "b", "c"]
    assert result["missing"] == ["c"] and result["unexpected"] == ["z"]
    first = result["rows"][0]
    assert first["question"] == "导体内部的电场是多少？" and first["response"] == "E=1"
    assert first["missed"] == ["key point: E=0"] and first["derived"] is False
    assert json.loads(json.dumps(result)) == result


def test_type_and_question_have_fallbacks() -> None:
    scored = one({"id": "a", "query": "问？", "expected": {"key_points": ["x"]}}, "x")
    assert (scored["type"], scored["question"]) == ("other", "问？")
    scored = one({**row(), "type": None, "meta": {"type": "units"}}, "E=0")
    assert scored["type"] == "units"


def test_empty_key_points_carry_no_coverage() -> None:
    assert (
        "key_point_coverage"
        not in one(row({"key_points": [], "should_refuse": False}), "x")["metrics"]
    )


@pytest.mark.parametrize(
    "prediction",
    [
        None,
        {"response": ""},
        {"response": " \n\u3000"},
        {"response": None},
        {"response": "<think>只是想</think>"},
        {"response": "<think>没想完"},
        {"response": "", "refused": False, "citations": ["教材"]},
    ],
)
def test_missing_and_empty_answers_count_zero_everywhere(prediction: dict[str, Any] | None) -> None:
    expected = {
        "key_points": ["E=0"],
        "should_refuse": False,
        "citations": ["教材"],
        "tool_calls": [{"name": "f", "arguments": {}}],
    }
    answers: list[dict[str, Any]] = [] if prediction is None else [{"id": "a", **prediction}]
    result = metrics.score([row(expected)], answers)
    assert result["rows"][0]["metrics"] == dict.fromkeys(metrics.METRICS, 0.0)
    assert result["rows"][0]["missed"] == [
        "no prediction" if prediction is None else "empty answer"
    ]
    assert result["missing"] == (["a"] if prediction is None else [])
    assert metrics.answered(answers, [row()])["value"] == 0


def test_answered_counts_text_and_tool_calls() -> None:
    rows = [{**row(), "id": str(index)} for index in range(4)]
    predictions: list[dict[str, Any]] = [
        {"id": "0", "response": "E=0"},
        {"id": "1", "response": "<think>x</think>"},
        {"id": "2", "response": "", "tool_calls": [{"name": "f", "arguments": {}}]},
    ]
    assert metrics.answered(predictions, rows)["value"] == 0.5
    assert metrics.answered(predictions, rows)["n"] == 4
    assert metrics.answered([], []) == {"value": None, "n": 0, "ci95": None}


# --- ids -------------------------------------------------------------------------------------


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


# --- messages-only rows ----------------------------------------------------------------------


def reference_row(answer: str, **more: Any) -> dict[str, Any]:
    made = row(system=STYLE)
    made.pop("expected")
    return {
        **made,
        "messages": [*made["messages"], {"role": "assistant", "content": answer}],
        **more,
    }


def test_messages_only_rows_are_derived() -> None:
    reference = (
        "### 结论\n导体内部的场强处处为零，电荷只在表面。\n"
        "### 推导\n若内部有场，自由电荷会继续移动。\n"
        "### 检查（量纲与极限）\n场强的单位是 V/m，与定义一致。"
    )
    scored = one(reference_row(reference), reference)
    assert scored["derived"] is True
    assert scored["metrics"] == {"key_point_coverage": 1.0, "format_compliance": 1.0}
    assert one(reference_row(reference), GOOD)["metrics"]["key_point_coverage"] < 0.2


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


@pytest.mark.parametrize("name", ["style_sft", "writing_sft", "all_sft"])
def test_the_course_data_answers_itself(name: str) -> None:
    text = (DATA / "processed" / f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    answers = [{"id": item["id"], "response": item["messages"][-1]["content"]} for item in rows]
    result = metrics.score(rows, answers)
    for metric in ("key_point_coverage", "format_compliance", "refusal_accuracy"):
        assert result["summary"][metric]["value"] == 1, metric
    assert all(item["missed"] == [] for item in result["rows"])


# --- format ----------------------------------------------------------------------------------


def labels(system: str) -> list[str]:
    return [section.label for section in metrics.required_sections(row(system=system))]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        (STYLE, ["### 结论", "### 推导", "### 检查（量纲与极限）"]),
        ("按 ### 结论 / ### 推导 / ### 检查（…） 回答", ["### 结论", "### 推导", "### 检查（…）"]),
        ("依次写### 结论、### 推导和### 检查三个小节。", ["### 结论", "### 推导", "### 检查"]),
        ("用`### 结论`与“### 检查”两节", ["### 结论", "### 检查"]),
        ("1. ### 结论：一句话\n2. ### 量纲与极限 — 两条", ["### 结论", "### 量纲与极限"]),
        ("Use ### Final Answer, ### Steps and ### Check (units).",
         ["### Final Answer", "### Steps", "### Check (units)"]),
        ("### 结论\n### 推导\n在 ### 推导 中写明依据，不要写 ### 总结。", ["### 结论", "### 推导"]),
        ("不得省略 ### 结论 / ### 推导", ["### 结论", "### 推导"]),
        ("##结论\n## 推导", ["##结论", "## 推导"]),
        ("#1 规则：简洁，可用 C# 作答，编号 ##", []),
        ("你是助教。", []),
    ],
)  # fmt: skip
def test_required_sections_are_those_of_the_rows_own_prompt(prompt: str, wanted: list[str]) -> None:
    assert labels(prompt) == wanted


FAULTY = [
    (GOOD.replace("### 推导\n由高斯定律。\n", ""), "section missing: ### 推导"),
    (GOOD.replace("### 推导", "## 推导"), "section missing: ### 推导"),
    (GOOD.replace("### 推导", "###推导"), "section missing: ### 推导"),
    (GOOD.replace("### 推导", "### 推导过程"), "section missing: ### 推导"),
    (GOOD.replace("### 推导", "推导"), "section missing: ### 推导"),
    (GOOD.replace("### 推导", "```\n### 推导\n```"), "section missing: ### 推导"),
    (GOOD.replace("由高斯定律。", ""), "section empty: ### 推导"),
    (GOOD.replace("由高斯定律。", "……"), "section empty: ### 推导"),
    (GOOD.replace("由高斯定律。", "#### 高斯面"), "section empty: ### 推导"),
    (GOOD.replace("单位是 V/m。", ""), "section empty: ### 检查（量纲与极限）"),
    (GOOD + "\n### 结论\n再说一次", "section repeated: ### 结论"),
    (
        "### 推导\nx\n### 结论\ny\n### 检查\nz",
        "sections out of order: ### 推导 / ### 结论 / ### 检查（量纲与极限）",
    ),
    ("<think>\n\n</think>\n\n" + GOOD, "think block left in the answer"),
    ("</think>" + GOOD, "think block left in the answer"),
]


@pytest.mark.parametrize(("response", "fault"), FAULTY)
def test_each_fault_of_form_is_named(response: str, fault: str) -> None:
    scored = one(row(system=STYLE), response)
    assert scored["metrics"]["format_compliance"] == 0
    assert fault in scored["missed"]


@pytest.mark.parametrize(
    "response",
    [
        GOOD,
        GOOD.replace("（量纲与极限）", ""),
        GOOD.replace("（量纲与极限）", "(单位、极限)"),
        GOOD.replace("### 结论", "### **结论**"),
        GOOD.replace("### 结论\nE=0。", "### 结论：E=0。"),
        GOOD.replace("### 结论", "前言。\n\n### 结论 ###"),
        GOOD.replace("由高斯定律。", "```\n### 结论\n```\n见上。"),
        GOOD.replace("由高斯定律。", "#### 高斯面\n取球面。"),
        GOOD.replace("由高斯定律。", "$$\\oint E=0$$"),
        GOOD + "\n### 补充\n无。",
    ],
)
def test_variants_of_a_good_form_pass(response: str) -> None:
    assert one(row(system=STYLE), response)["metrics"]["format_compliance"] == 1


@pytest.mark.parametrize(
    ("reason", "value"), [("stop", 1), (None, 1), ("length", 0), ("tool_calls", 1), ("error", 0)]
)
def test_the_answer_must_end_by_itself(reason: str | None, value: int) -> None:
    for benchmark, response in ((row(system=STYLE), GOOD), (row(), "E=0")):
        scored = one(benchmark, response, finish_reason=reason)
        assert scored["metrics"]["format_compliance"] == value
    assert one(row(), "E=0")["metrics"]["format_compliance"] == 1


def test_a_prompt_without_sections_asks_for_an_answer_only() -> None:
    assert one(row(), "E=0")["metrics"]["format_compliance"] == 1
    assert one(row(), "E=0 <think>")["metrics"]["format_compliance"] == 0
    writing = row(system="依次写 ### 问题诊断 / ### 改进建议 / ### 规范说明")
    assert one(writing, GOOD)["metrics"]["format_compliance"] == 0


# --- refusals, citations, tool calls ---------------------------------------------------------


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


# --- intervals -------------------------------------------------------------------------------


def test_wilson_against_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for hits, n, low, high in [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)
    ]:  # fmt: skip
        assert metrics.wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_interval_holds_the_mean(values: list[float]) -> None:
    rows = [{"metrics": {"format_compliance": value}} for value in values]
    figure = metrics.summarise(rows)["format_compliance"]
    low, high = figure["ci95"]
    assert 0 <= low <= figure["value"] <= high <= 1
    assert high > low and figure["n"] == len(values)
