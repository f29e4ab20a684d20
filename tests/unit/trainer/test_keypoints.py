"""Key points, explicit and derived."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.keypoints import MAX_DERIVED, KeyPoint, covered, derive, explicit
from trainer.mathtext import normal

DATA = Path(__file__).parents[3] / "data" / "training" / "processed"


def share(points: list[KeyPoint], answer: str) -> float:
    form = normal(answer)
    return sum(covered(point, form) for point in points) / len(points)


def test_explicit_forms() -> None:
    points = explicit(["E=0", ["匀强", "均匀"], {"any": ["a", "b"]}, {"text": "c", "alternatives": ["d"]}])
    wanted = [("E=0",), ("匀强", "均匀"), ("a", "b"), ("c", "d")]
    assert [point.alternatives for point in points] == wanted
    assert explicit(None) == []


@pytest.mark.parametrize("value", ["E=0", 5, [3], [[]], [""], [{"name": "E"}], ["$$"], [["a", 1]]])
def test_explicit_points_that_cannot_be_matched_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="key"):
        explicit(value)


def test_any_alternative_suffices() -> None:
    [point] = explicit([["与距离无关", "匀强"]])
    assert covered(point, normal("两侧是匀强电场"))
    assert not covered(point, normal("两侧电场随距离减小"))


def test_explicit_points_are_exact() -> None:
    [point] = explicit([r"\frac{\sigma}{2\varepsilon_0}"])
    assert covered(point, normal("大小 E=σ/(2ε₀)，与距离无关"))
    assert not covered(point, normal("大小 E=σ/ε₀，与距离无关"))


def test_derivation_drops_headings_marks_and_connectives() -> None:
    reference = (
        "<think>先想想</think>### 结论\n**要点**\n- 因此，导体内部的电场处处为零。是的。\n"
        "2. 导体表面是一个等势面！\n```\nprint('不算数的代码行')\n```"
    )
    labels = [point.label for point in derive(reference)]
    assert labels == ["导体内部的电场处处为零", "导体表面是一个等势面"]


def test_formulas_are_not_cut_and_long_sentences_are() -> None:
    reference = r"由对称性可得 $f(x, y；z) = \frac{a， b}{c}$ 成立。" + "，".join(
        f"第{name}个分句说的是另外一件完全不同的事情" for name in "甲乙丙丁"
    )
    labels = [point.label for point in derive(reference)]
    assert len(labels) == 5
    assert "；z" in labels[0]


def test_what_the_question_says_already_is_no_key_point() -> None:
    reference = "平行板电容器极板间充满空气。电容与极板面积成正比。"
    assert len(derive(reference)) == 2
    labels = [point.label for point in derive(reference, "平行板电容器极板间充满空气，求电容")]
    assert labels == ["电容与极板面积成正比"]


def test_at_most_twelve_spread_over_the_answer() -> None:
    names = "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉"
    points = derive("\n".join(f"{a}{a}{a}{a}的性质是{b}{b}{b}{b}" for a, b in zip(names, names[::-1], strict=True)))
    assert len(points) == MAX_DERIVED
    assert points[0].label.startswith("甲") and points[-1].label.startswith("酉")


@pytest.mark.parametrize("reference", ["不能。", "9.0 V/m", "E=0", "### 结论", "是", "∮"])
def test_short_references_have_one_point(reference: str) -> None:
    points = derive(reference)
    assert len(points) == 1 and points[0].derived
    assert share(points, reference) == 1
    assert share(points, "静电场是保守场，它的旋度处处为零，所以可以引入电势。这一点不能忘记。") == 0


def test_a_paraphrase_counts_and_a_wrong_number_does_not() -> None:
    points = derive("两极板之间的电场强度约为 5000 V/m，方向由正极板指向负极板。")
    assert share(points, "两极板之间电场强度大约为 5.0×10³ V/m，方向由正极板指向负极板。") == 1
    assert share(points, "两极板之间的电场强度约为 2500 V/m，方向由正极板指向负极板。") == 0


def references() -> list[tuple[str, str]]:
    rows = []
    for name in ("style_sft", "writing_sft"):
        text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
        for row in map(json.loads, text.splitlines()):
            asked = [item["content"] for item in row["messages"] if item["role"] == "user"]
            rows.append((asked[-1], row["messages"][-1]["content"]))
    return rows


def test_course_answers_score_on_their_own_question_only() -> None:
    rows = references()
    forms = [normal(answer) for _, answer in rows]
    for index, (asked, answer) in enumerate(rows):
        points = derive(answer, asked)
        for other, form in enumerate(forms):
            value = sum(covered(point, form) for point in points) / len(points)
            assert value == 1 if other == index else value < 0.2, (asked, rows[other][0])
        assert share(points, "") == 0


STATEMENTS = st.lists(
    st.text(alphabet="电场磁通量为零正比于面积ab12=+/^_$（）()，、ε₀² ", min_size=1, max_size=30),
    min_size=1,
    max_size=8,
)


@settings(max_examples=120, deadline=None)
@given(STATEMENTS, st.sampled_from(["。", "\n", "；", "\n### 推导\n"]), st.text(max_size=15))
def test_the_reference_covers_itself(parts: list[str], joint: str, question: str) -> None:
    reference = joint.join(parts)
    points = derive(reference, question)
    assert bool(points) == bool(normal(reference))
    if points:
        assert share(points, reference) == 1
        assert share(points, "") == 0
        assert share(points, reference + "\n\n补充一句。") == 1
        assert share(points, "诗歌朗诵活动在礼堂举行，欢迎同学踊跃报名参加。") < 0.2
