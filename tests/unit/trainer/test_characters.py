"""One character for each meaning."""

from __future__ import annotations

import pytest

from trainer.characters import scripts, unified


@pytest.mark.parametrize(
    ("written", "linear"),
    [
        ("x²", "x^{2}"),
        ("ε₀r", "ε_{0}r"),
        ("10⁻¹⁹C", "10^{-19}C"),
        ("㎡", "m^{2}"),
        ("②", " 2 "),
        ("½m", " 1⁄2 m"),
        ("x2", "x2"),
    ],
)
def test_scripts_stay_scripts(written: str, linear: str) -> None:
    assert scripts(written).replace("−", "-") == linear


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("（a）", "(a)"),
        ("，", "；"),
        ("−", "－"),
        ("“场”", "场"),
        ("∙", "·"),
        ("≦", "≤"),
        ("Ω", "Ω"),
        ("E⃗", "E"),
        ("r̂", "r"),
    ],
)
def test_variants_of_one_character_become_one(one: str, other: str) -> None:
    assert unified(one) == unified(other)


@pytest.mark.parametrize(("one", "other"), [("·", "×"), ("Φ", "φ"), ("é", "e"), ("<", "≤"), ("~", "-")])
def test_characters_with_a_meaning_of_their_own_stay(one: str, other: str) -> None:
    assert unified(one) != unified(other)


def test_invisible_characters_go_and_lines_stay() -> None:
    assert unified("a\u200bb\u0007\nc\td") == "ab\nc\td"
