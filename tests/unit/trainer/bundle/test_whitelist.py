"""The whitelist: its lines, and what globs match."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.bundle import whitelist
from trainer.bundle.whitelist import Entry
from trainer.errors import InputError

ROOT = Path(__file__).resolve().parents[4]


def entry(text: str) -> Entry:
    found = whitelist.parse(f"always\n{text}\n".encode(), "list")
    return (*found.included, *found.left_out)[1]


def matches(text: str, path: str) -> bool:
    """Whether the entry matches the file `path`, as a walk finds it out."""
    one = entry(text)
    states, inside = one.start(), False
    for component in path.split("/"):
        inside = one.matches(states)
        states = one.step(states, component)
    return one.matches(states) and (inside or not one.folder_only)


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("a/b.py", "a/b.py", True),
        ("a/b.py", "a/b.pyc", False),
        ("a/b.py", "x/a/b.py", False),
        ("./a/b.py", "a/b.py", True),
        ("a", "a/deep/below.txt", True),
        ("a/", "a/deep/below.txt", True),
        ("a/", "a", False),
        ("a/**", "a/deep/below.txt", True),
        ("a/**", "a", False),
        ("**", "any/thing", True),
        ("*.md", "README.md", True),
        ("*.md", "docs/README.md", False),
        ("*.md", ".hidden.md", True),
        ("**/*.md", "README.md", True),
        ("**/*.md", "docs/deep/README.md", True),
        ("docs/**/x", "docs/x", True),
        ("docs/**/x", "docs/a/b/x", True),
        ("docs/**/x", "docs/a/b/y", False),
        ("docs/**/x", "docs/x/below", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a*c", "a/c", False),
        ("[ab].txt", "a.txt", True),
        ("[!ab].txt", "a.txt", False),
        ("[!ab].txt", "c.txt", True),
        ("[a-c].txt", "b.txt", True),
        ("[]x].txt", "].txt", True),
        ("[*].txt", "*.txt", True),
        ("[*].txt", "a.txt", False),
        ("a.b", "axb", False),
        ("a+(b)", "a+(b)", True),
        ("数据/", "数据/行.jsonl", True),
        ("a b/c", "a b/c", True),
    ],
)
def test_entries_match_paths(text: str, path: str, expected: bool) -> None:
    assert matches(text, path) is expected
    assert matches(f"!{text}", path) is expected


COMPONENTS = st.sampled_from(["a", "b", "ab", "ba", "aab", "x"])
PARTS = st.sampled_from(["a", "b", "*", "?", "a*", "*b", "**", "[ab]", "?b"])


@given(st.lists(PARTS, min_size=1, max_size=4), st.lists(COMPONENTS, min_size=1, max_size=5))
def test_a_walk_finds_what_one_expression_for_the_whole_path_finds(parts: list[str], components: list[str]) -> None:
    expression, last = "", len(parts) - 1
    for place, part in enumerate(parts):
        if part == "**":
            expression += "(?:[^/]+/)*" if place < last else "[^/]+(?:/[^/]+)*"
        else:
            expression += part.replace("*", "[^/]*").replace("?", "[^/]") + ("/" if place < last else "(?:/.*)?")
    path = "/".join(components)
    assert matches("/".join(parts), path) is bool(re.fullmatch(expression, path))


def test_comments_blank_lines_and_what_other_editors_write_are_no_entries() -> None:
    text = "\ufeff# what goes in\r\n\r\n  trainer/  # the trainer\r\n\n#data/\n!trainer/x#y\n"
    found = whitelist.parse(text.encode(), "list")
    assert [(one.line, one.text) for one in found.included] == [(3, "trainer/")]
    assert [(one.line, one.literal) for one in found.left_out] == [(6, "trainer/x#y")]


@pytest.mark.parametrize(
    ("wrong", "sound", "words"),
    [
        ("/etc/passwd", "etc/passwd", "is absolute"),
        ("~/x", "x~", "is absolute"),
        ("../x", "..x", "holds '.' or '..'"),
        ("a/../x", "a/..x", "holds '.' or '..'"),
        ("!a/..", "!a/...", "holds '.' or '..'"),
        (".", ".x", "holds '.' or '..'"),
        ("a//b", "a/b", "holds an empty name"),
        ("!", "!x", "holds an empty name"),
        ("a\\b", "a/b", "holds a backslash"),
        ("a**", "a*", "holds ** beside other letters"),
        ("a/**.py", "a/**/*.py", "holds ** beside other letters"),
        ("[ab", "[ab]", "holds a [ without its ]"),
        ("[a/b]", "[ab]", "holds a [ without its ]"),
        ("[z-a]", "[a-z]", "holds the wrong range [z-a]"),
    ],
)
def test_a_wrong_entry_is_named_with_its_line(wrong: str, sound: str, words: str) -> None:
    whitelist.parse(f"trainer/\n{sound}\n".encode(), "list")
    with pytest.raises(InputError) as caught:
        whitelist.parse(f"trainer/\n{wrong}\n".encode(), "list")
    assert str(caught.value).startswith(f"list, line 2: {wrong!r} {words}")


def test_all_wrong_lines_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        whitelist.parse(b"/a\ntrainer/\n../b\n", "list")
    assert [line.partition(":")[0] for line in (*caught.value.lines, str(caught.value))] == [
        "list, line 1", "list, line 3",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "# nothing\n", "!data/\n"])
def test_a_whitelist_that_names_nothing_is_refused(text: str) -> None:
    whitelist.parse(f"{text}\ntrainer/\n".encode(), "list")
    with pytest.raises(InputError, match="names nothing that goes in"):
        whitelist.parse(text.encode(), "list")


def test_a_whitelist_is_utf_8() -> None:
    assert whitelist.parse("é\n".encode(), "list").included[0].literal == "é"
    with pytest.raises(InputError, match="list, line 2: byte 0xe9 is not UTF-8"):
        whitelist.parse(b"trainer/\n\xe9\n", "list")


def test_a_missing_whitelist_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no whitelist .*\.bundleinclude; write one"):
        whitelist.load(tmp_path / whitelist.NAME)
    with pytest.raises(InputError, match="cannot be read"):
        whitelist.load(tmp_path)


def test_our_own_whitelist_is_sound_and_holds_what_the_trainer_needs() -> None:
    texts = [one.text for one in whitelist.load(ROOT / whitelist.NAME).included]
    assert {"trainer/", "data/", "requirements/trainer.lock"} <= set(texts)
