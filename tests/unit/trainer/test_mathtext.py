"""Equal statements get equal normal forms; different ones do not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.mathtext import contains, normal, without_thinking

EQUAL = [
    (r"\varepsilon_0", "ε₀"),
    (r"\varepsilon_{0}", "ϵ₀"),
    (r"\epsilon_0", "ε_0"),
    (r"$\frac{q}{4\pi\varepsilon_0 r^2}$", "q/(4πε₀r²)"),
    (r"E=\frac{1}{4\pi\varepsilon_0}\frac{q}{r^{2}}", "E = 1/(4πε₀) q/r²"),
    (r"\frac12 mv^2", "½mv²"),
    (r"\frac{1}{2}CU^2", "(1/2)CU²"),
    (r"\dfrac{\mu_0 I}{2\pi r}", "(μ₀I)/(2πr)"),
    (r"k\frac{q_1q_2}{r^2}", "kq₁q₂/r²"),
    (r"\frac{\sigma}{\varepsilon_0}", "σ/ε₀"),
    (r"\frac{\mathrm{d}\Phi}{\mathrm{d}t}", "dΦ/dt"),
    (r"e^{-\frac{t}{RC}}", "e^(-t/RC)"),
    (r"\nabla\times\mathbf{E}=-\frac{\partial \mathbf{B}}{\partial t}", "∇×E = −∂B/∂t"),
    (r"\oint \vec E\cdot\mathrm{d}\vec S=\frac{Q_{\text{in}}}{\varepsilon_0}", "∮E·dS = Q_in/ε₀"),
    (r"\sqrt{LC}", "√(LC)"),
    (r"\frac{1}{\sqrt{\mu_0\varepsilon_0}}", "1/√(μ₀ε₀)"),
    (r"\left(a+b\right)", "（a + b）"),
    (r"\vec{F}=q\vec{E}", "F=qE"),
    (r"\hat{\mathbf r}", "r̂"),
    ("E⃗", "E"),
    (r"Q_\text{enc}", "Q_enc"),
    ("Q_{内}", r"Q_{\text{内}}"),
    (r"E^{\prime}", "E′"),
    (r"30^\circ", "30°"),
    (r"\leq", "≤"),
    (r"E\ne 0", "E≠0"),
    (r"x\to\infty", "x -> ∞"),
    (r"\lvert\vec E\rvert", "|E|"),
    ("µC", "μC"),
    ("Ω", "Ω"),
    ("1.6×10⁻¹⁹ C", r"1.6\times10^{-19}\,\mathrm{C}"),
    ("1.60 x 10^-19".replace("x", "×"), "1.6e-19"),
    ("1.6·10^{-19}", "1.6E-19"),
    ("10^{-9}", "1e-9"),
    ("9×10^9", "9.0e9"),
    ("4π×10^{-7}", r"4\pi\times 10^{-7}"),
    ("9.0", "9"),
    ("0.50", ".5"),
    ("1,000", "1000"),
    (r"1\,000", "10^3"),
    ("１２３ Ｖ", "123V"),
    ("5~\\mathrm{V}", "5 V"),
    ("㎡", "m²"),
    ("H<sub>2</sub>O", "H₂O"),
    ("**电场强度**", "`电场强度`"),
    ("“匀强”电场", "匀强电场"),
    ("高斯定律：通量", "高斯定律: 通量"),
    ("The Field\n is ZERO.", "the field is zero"),
    ("T=2*π*x", "T=2×π×x"),
]

DIFFERENT = [
    ("ε₀", "ε"),
    ("r²", "r2"),
    ("r²", "r_2"),
    ("∇·E", "∇×E"),
    ("Ω", "ω"),
    ("Φ", "φ"),
    ("1/4πε₀", "1/(4πε₀)"),
    ("(a+b)/c", "a+b/c"),
    ("1.6e-19", "1.6e19"),
    ("x-5", "x5"),
    ("9", "9.01"),
    ("E'", "E"),
    ("12", "1, 2"),
    ("x_2×10^3", "x_2000"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_statements_contain_each_other(one: str, other: str) -> None:
    assert contains(normal(one), normal(other))
    assert contains(normal(other), normal(one))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_statements_stay_different(one: str, other: str) -> None:
    both_ways = contains(normal(one), normal(other)) and contains(normal(other), normal(one))
    assert not both_ways


@pytest.mark.parametrize(
    ("part", "whole", "inside"),
    [
        ("3", "共 3 个", True),
        ("3", "13", False),
        ("3", "30", False),
        ("3", "3.14", False),
        ("3", "3×10^8", False),
        ("3", "x=3，y=4", True),
        ("3", "x=-3", False),
        ("3", "x-3", True),
        ("9", "10^{-9}", False),
        ("19", "1.6e-19", False),
        ("2", "r²", False),
        ("3 V", "U=3V", True),
        ("E", "电场 E 为零", True),
        ("E", "Energy", False),
        ("E", "E_x", False),
        ("E", "E′", False),
        ("ε", "ε₀", False),
        ("r", "1/r²", False),
        ("qE", "力为 q E。", True),
        ("Gauss", "Gauss's law", True),
        ("保守场。", "静电场是保守场，因此", True),
        ("真空中电场", "真空中，电场", True),
        ("1 2", "1、2", True),
        ("12", "1、2", False),
        ("E=0", "内部 E=0。", True),
        ("E=0", "∇·E=0", False),
        ("W=QU", "W=QU。", True),
        ("W=QU", "W=QU/2", False),
        ("U=3", "U=3×10^4", False),
        ("E=σ/ε₀", "E=D/ε₀=σ/ε₀", True),
        ("E=σ/ε₀", "E=D/ε₀，φ=σ/ε₀", False),
        ("V=0", "E = 3 and V = 0", True),
        ("E=0", "E = 3 and V = 0", False),
        ("", "anything", False),
        ("x", "", False),
    ],
)
def test_containment_respects_tokens(part: str, whole: str, inside: bool) -> None:
    assert contains(normal(part), normal(whole)) is inside


def test_thinking_is_removed() -> None:
    assert without_thinking("<think>E=1</think>E=0") == "E=0"
    assert without_thinking("<think>\n\n</think>\n\n答案") == "答案"
    assert without_thinking("想了想</think>答案") == "答案"
    assert without_thinking("答案<think>没有想完") == "答案"
    assert without_thinking("a<b，b>c") == "a<b，b>c"


@pytest.mark.parametrize("unit", ["{", "^", "x^", "\\frac", "(", "''", "10^", "1,", "E=", "<sub>x", "_{"])
def test_a_model_in_a_loop_does_not_stall(unit: str) -> None:
    started = time.monotonic()
    form = normal(unit * 1500)
    contains(normal("E=0x"), form)
    assert time.monotonic() - started < 2


PIECES = st.sampled_from(
    [
        *"ab3 09.,;:*^_{}()/\\$-+=~'½²₀ε中，。\n<>#·×“̂②㎡",
        "\\frac",
        "\\sqrt",
        "\\text",
        "10^",
        "  ",
        "**",
    ]
    + [
        "1,000",
        "E",
        "e5",
        "\\cdot",
        "<sub>",
        "</sub>",
        "\\,",
        "\\begin{a}",
        "√",
        "\\vec",
        "^\\circ",
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=25))


@settings(max_examples=250, deadline=None)
@given(TEXTS)
def test_normal_form_is_idempotent_and_contains_itself(text: str) -> None:
    form = normal(text)
    assert normal(form) == form
    assert not form or contains(form, form)


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_saying_more_never_loses_a_match(part: str, said: str, more: str) -> None:
    if contains(normal(part), normal(said)):
        assert contains(normal(part), normal(said + "\n\n" + more))
