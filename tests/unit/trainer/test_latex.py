"""LaTeX within text becomes linear text, and no input breaks the reading."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.latex import linear


def tight(text: str) -> str:
    return linear(text).replace(" ", "")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\frac{a}{bc}", "a/(bc)"),
        (r"\frac12", "1/(2)"),
        (r"\frac{a+b}{c}", "(a+b)/(c)"),
        (r"\frac{1}{\frac{a}{b}}", "1/(a/(b))"),
        (r"x/\frac{a}{b}", "x/(a/(b))"),
        (r"\sqrt{x}", "√(x)"),
        (r"\sqrt[3]{x}", "∛(x)"),
        (r"\varepsilon_{0}", "ε_(0)"),
        (r"x^2y", "x^(2)y"),
        (r"10^-9", "10^(-9)"),
        (r"Q_in", "Q_(in)"),
        (r"\vec{E}\cdot\mathbf r", "E·r"),
        (r"\text{内}", "内"),
        (r"a\ne b", "a≠b"),
        (r"a\not=b", "a≠b"),
        (r"E=0\tag{1}", "E=0"),
        (r"\unknown x", "unknownx"),
        (r"\{a\}", "(a)"),
        ("no LaTeX", "noLaTeX"),
    ],
)
def test_latex_is_read(written: str, read: str) -> None:
    assert tight(written) == read


@pytest.mark.parametrize(
    "broken", ["{", "}", "\\frac", "\\frac{a", "^", "_", "\\", "\\sqrt[", "{" * 500 + "x" + "}" * 500]
)
def test_broken_latex_loses_nothing_of_what_follows(broken: str) -> None:
    assert re.sub(r"[^场强]", "", tight(f"{broken} 场强")) == "场强"


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab1 {}^_\\[]+场frac", max_size=40))
def test_no_text_breaks_the_reading(text: str) -> None:
    assert isinstance(linear(text), str)


@given(st.text(alphabet="ab1 .,场+=()", max_size=20))
def test_text_without_latex_stays(text: str) -> None:
    assert linear(text) == text
