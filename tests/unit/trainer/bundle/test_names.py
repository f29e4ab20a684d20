"""Names that a bundle carries, and the nearly identical ones that it does not."""

from __future__ import annotations

import pytest

from trainer.bundle import names
from trainer.errors import InputError

# Refused raw name, a part of the sentence, and its nearly identical twin that is carried.
PAIRS = [
    (b"", "is empty", b"a"),
    (b"./", "is empty", b"./a"),
    (b"/a", "is absolute", b"a"),
    (b".//a", "is absolute", b"./a"),
    (b"../a", "component '..'", b"..a"),
    (b"a/../b", "component '..'", b"a/...b/b"),
    (b"a/..", "component '..'", b"a/..b"),
    (b"./../a", "component '..'", b"./..a"),
    (b".", "component '.'", b".a"),
    (b"././a", "component '.'", b"./.a"),
    (b"a/./b", "component '.'", b"a/.b"),
    (b"a//b", "empty component", b"a/b"),
    (b"a/", "ends with a slash", b"a"),
    (b"a\\b", "backslash", b"a|b"),
    (b"a\nb", "U+000A", b"a b"),
    (b"a\rb", "U+000D", b"a b"),
    (b"a\tb", "U+0009", b"a b"),
    (b"a\0b", "U+0000", b"a0b"),
    (b"a\x1b[2Jb", "U+001B", b"a[2Jb"),
    (b"a\x7f", "U+007F", b"a~"),
    ("a\x85".encode(), "U+0085", "a\xa1".encode()),
    ("a\xadb".encode(), "U+00AD", b"a-b"),
    ("\u202egnp.exe".encode(), "U+202E", b"gnp.exe"),
    ("\u2066a".encode(), "U+2066", "\u2070a".encode()),
    ("a\u200bb".encode(), "U+200B", "a\u200ab".encode()),
    ("a\u200db".encode(), "U+200D", "a\u2010b".encode()),
    ("a\u2028b".encode(), "U+2028", "a\u2027b".encode()),
    ("\ufeffa".encode(), "U+FEFF", "\ufefca".encode()),
    ("a\ufe0f".encode(), "U+FE0F", "a\ufe10".encode()),
    ("a\U000e0041".encode(), "U+E0041", "a\U0001f600".encode()),
    ("a\ufdd0".encode(), "U+FDD0", "a\ufdcf".encode()),
    ("a\uffff".encode(), "U+FFFF", "a\uffe6".encode()),
    (b"a\xff", "not UTF-8", "aÿ".encode()),
    (b"a\xc0\xaf", "not UTF-8", "aï".encode()),
    (b"a\xed\xa0\x80", "not UTF-8", "a\ud7ff".encode()),
    (b"x" * 256, "component of 256 bytes", b"x" * 255),
    ("电".encode() * 86, "component of 258 bytes", "电".encode() * 85),
    (b"/".join([b"x" * 200] * 5), "has 1004 bytes", b"/".join([b"x" * 199] * 5)),
    (b"/".join([b"x"] * 33), "has 33 components", b"/".join([b"x"] * 32)),
    (b".source.json", "is reserved", b"source.json"),
    (b"./.Source.JSON", "is reserved", b"a/.source.json"),
    (b".source.json/a", "is reserved", b".source.jso/a"),
    (".ſource.json".encode(), "is reserved", ".șource.json".encode()),
]


@pytest.mark.parametrize(("refused", "words", "carried"), PAIRS, ids=[ascii(pair[0][:20]) for pair in PAIRS])
def test_a_name_is_refused_and_its_twin_is_carried(refused: bytes, words: str, carried: bytes) -> None:
    with pytest.raises(InputError) as refusal:
        names.checked(refused, "x line 3")
    sentence = str(refusal.value)
    assert sentence.startswith("x line 3: the name '") and words in sentence and sentence.isprintable()
    assert "; rename the file" in sentence
    assert names.checked(carried, "x line 3").encode() == (carried[2:] if carried.startswith(b"./") else carried)


def test_a_folder_may_end_with_one_slash_and_the_root_is_empty() -> None:
    for raw, name in ((b"a/", "a"), (b"./a/b/", "a/b"), (b"a", "a"), (b"./", ""), (b".", "")):
        assert names.checked(raw, "here", folder=True) == name
    for raw in (b"a//", b".//", b"/", b"", b"../", b"./."):
        with pytest.raises(InputError):
            names.checked(raw, "here", folder=True)


@pytest.mark.parametrize(
    ("apart", "words"),
    [
        (["a", "a"], "comes twice"),
        (["a", "a/b"], "a file and a folder"),
        (["a/b", "a/b/c"], "a file and a folder"),
        (["a/b/c/d", "a/b"], "a file and a folder"),
        (["README", "readme"], "in case or Unicode form only"),
        (["data/x", "Data/y"], "in case or Unicode form only"),
        (["straße", "STRASSE"], "in case or Unicode form only"),
        (["é", "e\u0301"], r"the name 'e\\u0301' differs from 'é' in case or Unicode form only"),
        (["Σ", "ς"], "in case or Unicode form only"),
        (["\u212b", "å"], "in case or Unicode form only"),
        (["a\u0323\u0307", "a\u0307\u0323"], "in case or Unicode form only"),
    ],
)
def test_names_that_cannot_lie_together(apart: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        names.check_together(apart, "the archive")
    assert str(refusal.value).startswith("the archive: the name '")
    names.check_together([apart[0], "_" + apart[1]], "the archive")


def test_a_folder_may_come_before_and_behind_its_files() -> None:
    together = names.Together()
    together.add("", "1", folder=True)
    together.add("a/b", "2")
    together.add("a", "3", folder=True)
    together.add("c", "4", folder=True)
    together.add("c/d", "5")
    with pytest.raises(InputError, match="6: the name 'c' comes twice"):
        together.add("c", "6", folder=True)
    with pytest.raises(InputError, match="7: the name 'a/b/c' makes 'a/b' a file and a folder at once"):
        together.add("a/b/c", "7")


def test_folders_count_too() -> None:
    together = names.Together(4)
    together.add("a/b", "1")
    together.add("c/d", "2")
    with pytest.raises(InputError, match="3: more than 4 files and folders"):
        together.add("c/e", "3")


def test_characters_that_unicode_3_2_does_not_know_differ_by_themselves() -> None:
    # Glagolitic capital and small A, of Unicode 4.1: newer tables know that they are a pair, older ones do not.
    names.check_together(["\u2c00", "\u2c30"], "the archive")
    with pytest.raises(InputError, match="case or Unicode form"):
        names.check_together(["\u2c00é", "\u2c00e\u0301"], "the archive")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"trainer/a.py", "'trainer/a.py'"),
        ("数据/é.json", "'数据/é.json'"),
        (b"a'b\\c", "'a\\'b\\\\c'"),
        (b"\x1b]0;x\x07", "'\\x1b]0;x\\x07'"),
        (b"a\xffb", "'a\\xffb'"),
        ("a\udcffb", "'a\\xffb'"),
        ("\ud800\u202e\U000e0001\ue000", "'\\ud800\\u202e\\U000e0001\\ue000'"),
        ("\xa0\u3000", "'\\xa0\\u3000'"),
        ("\U0001f600", "'\\U0001f600'"),
    ],
)
def test_a_name_is_shown_without_moving_the_cursor(raw: bytes | str, words: str) -> None:
    assert names.shown(raw) == words


def test_a_long_name_is_shown_with_its_begin_and_end() -> None:
    for raw in (b"begin" + b"x" * 5000 + b"end", b"begin" + b"\n" * 5000 + b"end", "电" * 200):
        text = names.shown(raw)
        assert len(text) <= 120 and "…" in text and text.isprintable()
    assert names.shown(b"x" * 118) == "'" + "x" * 118 + "'"
