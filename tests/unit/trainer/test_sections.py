"""Which sections a prompt requires, and each fault of form beside a form that passes."""

from __future__ import annotations

import pytest

from tests.unit.trainer.benchmark_rows import GOOD, STYLE, one, row
from trainer.sections import required_sections


def labels(system: str) -> list[str]:
    return [section.label for section in required_sections(row(system=system))]


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


@pytest.mark.parametrize(("reason", "value"), [("stop", 1), (None, 1), ("length", 0), ("tool_calls", 1), ("error", 0)])
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
