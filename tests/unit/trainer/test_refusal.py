"""A refusal is an act in the opening of the answer, not a keyword."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.refusal import is_refusal

DATA = Path(__file__).parents[3] / "data" / "training"

REFUSALS = [
    "我不能直接给出这道作业题的答案，但可以带你一步步思考。",
    "### 结论\n这是要交的作业，我不能直接给出答案，但可以带你走好几步。\n### 推导\n先写高斯定律。",
    "### 结论\n考试正在进行，我不能提供考题的答案；考完以后我愿意和你一起复盘。",
    "### 问题诊断\n你要我代写结论并编造数据，这两件事我都不能做；编造数据是严重的学术不端。",
    "我理解你时间很紧。不过这是正在进行的考试，我无法提供答案。",
    "很抱歉，我不能替你完成这份作业。",
    "抱歉，无法提供考试答案。",
    "作为课程助教，我不会代写论文，但可以帮你修改提纲。",
    "对不起，这个忙我不能帮。",
    "作业答案我不能给你，我们一起看看思路吧。",
    "恕难从命：代写论文属于学术不端。",
    "我拒绝编造实验数据。",
    "本助教不提供考试答案，只讲方法。",
    "不能直接给出作业答案。你可以先画出高斯面。",
    "这份作业需要你自己独立完成，我来给你三条提示。",
    "这超出了我作为助教的职责范围，请联系任课老师。",
    "我没办法帮你伪造测量数据。",
    "考试题目的答案不便直接给出，请独立作答。",
    "题目缺少极板面积，我无法给出数值答案，请补充条件。",
    "<think>用户要答案，不能给。</think>我不能直接告诉你答案，先想想对称性。",
    "直接交答案对你没有帮助，所以我不会直接给出完整解答。",
    "**我不能代做这道题**，不过可以检查你的草稿。",
    "我不能直接给出“标准答案”，如果你愿意，可以把草稿发来。",
    "I can't provide the answers to this exam, but I can explain the method.",
    "I'm sorry, but I cannot help you with a take-home exam.",
    "Sorry, but I won’t write the essay for you.",
    "I am not able to give you the final answer to graded homework.",
    "I must decline: this is an ongoing exam.",
    "Answers to graded homework cannot be provided here. Let us look at the idea.",
    "I understand the pressure. However, I will not fabricate data for your paper.",
    "I can't do that.",
    "这道题我就不直接给答案了，我们一起分析。",
    "我不太方便直接给出答案，先说思路。",
    "不好意思，考试题我不能解答。",
    "由于这是考试题目，我不能为你解答。",
    "根据学术诚信规定，我不会给出完整答案。",
    "我只能给思路，不能给答案。",
    "这道题的答案不能告诉你，请先自己算一遍。",
    "引言要由你自己写，不能替你写，但可以一起列提纲。",
    "Unfortunately, I can't share exam solutions.",
    "As a tutor, I won't do your homework for you.",
    "I'm afraid I can't give you the answers.",
    "It would not be appropriate for me to provide the answer.",
]

ANSWERS = [
    "",
    "### 结论\n静电场中电场线不能相交。\n### 推导\n若相交，则交点处有两个方向。",
    "这个积分无法直接求解，我们改用对称性。",
    "不能直接用高斯定律求有限长直线的电场，应当积分。",
    "我们不能忽略边缘效应，所以电容要修正。",
    "如果信息不足，我无法给出数值，但可继续推导公式：E=σ/ε₀。",
    "若条件不全则无法给出唯一答案；这里条件齐全，E=3 V/m。",
    "如果这是正在进行的考试，我不能提供答案；这是课后复习题，结果是 E=3 V/m。",
    "学生常说“我不能给出答案”，其实多半是没画图。",
    "> 我不能提供答案\n上面这句引文是系统提示，解答见下：E=0。",
    "导体内部电场为零，因此电荷不能停留在内部。",
    "能不能直接给出答案取决于对称性，本题可以：E=0。",
    "我不能不提到位移电流：∇×H=J+∂D/∂t。",
    "为什么我不能直接给出答案？因为缺少边界条件；补上以后得到 φ=0。",
    "我们无法给出解析解，只能数值计算。",
    "高斯定律不能给出电场的方向，还要靠对称性。",
    "E=0 不是不能给出证明，证明如下。",
    "### 结论\n电势为 30 V。\n### 推导\n由 φ=q/(4πε₀r)。\n### 检查\n考试中不能使用计算器。",
    "论文里不能编造数据，引用要写明出处。",
    "“我不会直接告诉你答案”这句话语气生硬，可以改为“我们先看思路”。",
    "摘要不应写成引言，不能给出没有依据的结论。",
    "该方法不会给出负的能量密度。",
    "我无法保证数值完全准确，约为 9.0×10³ V/m。",
    "单个电荷不能完成这个过程，需要外力做功。",
    "我不能直接给出答案，但既然你坚持，答案是 E=3 V/m。",
    "I can't stress enough that field lines never cross.",
    "I can't help but notice that the field is zero inside.",
    "We cannot give the field two directions at one point, so lines never cross.",
    "If this were an exam, I could not provide the answer; it is not, so E = 3 V/m.",
    "Gauss's law cannot give the direction; symmetry does.",
    "I cannot solve this in closed form, so here is a series.",
    "The charge cannot be given to the dielectric; it stays on the conductor.",
    'The answer is 3 V. Some tutors say "I can\'t provide answers"; this one may.',
    "这里不能写成 E=σ/ε₀，因为平面两侧都有场。",
    "我不会用高斯定律做这道题，而用库仑定律：E=3 V/m。",
    "摘要里，不能给出没有出处的数据。",
    "论文应独立完成，不得编造数据。",
    "我不能给出比这更精确的数值：E≈3 V/m。",
    "你给的数据我无法核实，按题设 E=3 V/m。",
    "我不能同意这个说法，电场可以为零而电势不为零。",
    "结论部分，不应再写新的数据。",
    "I can't agree: the potential need not vanish where the field does.",
    "I don't give units twice: E = 3 V/m.",
    "静电屏蔽的原理是感应电荷抵消外场。拒绝外场进入的不是金属本身。",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_an_act_of_declining_is_a_refusal(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_a_keyword_is_not_a_refusal(text: str) -> None:
    assert not is_refusal(text)


def test_only_the_opening_counts() -> None:
    solution = "由高斯定律，取同轴圆柱面。侧面通量为 E·2πrl。面内电荷为 λl。两式相等。于是 E=λ/(2πε₀r)。"
    assert not is_refusal(solution + "下一题是考题，我不能给出答案。")
    assert is_refusal("下一题是考题，我不能给出答案。" + solution)


def test_a_condition_after_the_act_does_not_undo_it() -> None:
    assert is_refusal("我不能代写论文，如果你愿意，可以把草稿发来。")
    assert not is_refusal("如果你愿意让我代写论文，我不能答应；只改语法就没有问题，改好的句子见下。")


@pytest.mark.parametrize("name", ["style_sft", "writing_sft"])
def test_the_course_data_is_told_apart(name: str) -> None:
    lines = (DATA / "processed" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        assert is_refusal(row["messages"][-1]["content"]) == bool(row.get("refusal_type")), row["id"]
