"""A source tree on a host: its id, its record, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer import content
from trainer.errors import InputError

Damage = Callable[[Path], None]
TREE = {"trainer/a.py": "print(1)\n", "trainer/run.sh": "#!/bin/sh\n", "data/电场.txt": "ε₀\n", ".gitignore": "*.log\n"}


@pytest.fixture
def sent(tmp_path: Path) -> tuple[Path, str]:
    """An unpacked tree, and its id."""
    root = tmp_path / "host"
    for name, text in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "trainer" / "run.sh").chmod(0o755)
    return root, content.source_id(content.entries(root, sorted(TREE)))


def test_an_unpacked_archive_is_the_tree_that_was_packed(sent: tuple[Path, str]) -> None:
    tree, expected = sent
    (tree / "trainer" / "__pycache__").mkdir()
    (tree / "trainer" / "__pycache__" / "a.pyc").write_bytes(b"made by looking at it")
    assert content.verify(tree, expected) == content.verify(tree, "") == expected


def change_byte(tree: Path) -> None:
    (tree / "trainer" / "a.py").write_text("print(3)\n")


def add_file(tree: Path) -> None:
    (tree / "extra.py").write_text("")


def remove_file(tree: Path) -> None:
    (tree / "data" / "电场.txt").unlink()


def change_mode(tree: Path) -> None:
    (tree / "trainer" / "a.py").chmod(0o755)


@pytest.mark.parametrize("damage", [change_byte, add_file, remove_file, change_mode])
def test_a_tree_that_differs_is_refused(sent: tuple[Path, str], damage: Damage) -> None:
    tree, expected = sent
    content.verify(tree, expected)
    damage(tree)
    with pytest.raises(InputError, match=f"expected {expected}; pack and send it again"):
        content.verify(tree, expected)


@pytest.mark.parametrize("target", ["a.py", "../data", "nowhere"])
def test_a_symlink_is_refused(sent: tuple[Path, str], target: str) -> None:
    content.verify(*sent)
    (sent[0] / "trainer" / "link").symlink_to(target)
    with pytest.raises(InputError, match="'trainer/link' in the source tree is not a regular file"):
        content.verify(*sent)


@pytest.fixture
def release(sent: tuple[Path, str]) -> tuple[Path, str]:
    """A tree that says of itself what it is."""
    tree, expected = sent
    content.write_record(tree, content.entries(tree, content.walked_files(tree)), content.Origin("c" * 40, 1700000000))
    return tree, expected


def test_a_release_is_what_its_record_says(release: tuple[Path, str]) -> None:
    found = content.check_release(*release)
    assert (found["source_id"], found["commit"]) == (release[1], "c" * 40)
    assert content.verify(*release) == release[1], "the record is not part of the tree"


@pytest.mark.parametrize("damage", [change_byte, add_file, remove_file, change_mode])
def test_a_release_that_was_edited_is_refused_and_the_file_named(release: tuple[Path, str], damage: Damage) -> None:
    content.check_release(*release)
    damage(release[0])
    with pytest.raises(
        InputError, match=r"not the source \w+ any more \((trainer/a.py|extra.py|data/电场.txt)\); run "
    ):
        content.check_release(*release)


def test_own_data_and_byte_code_in_a_release_are_no_edit_but_a_module_is(release: tuple[Path, str]) -> None:
    tree, expected = release
    (tree / "data" / "own.jsonl").write_text("{}\n")
    (tree / "trainer" / "__pycache__").mkdir()
    (tree / "trainer" / "__pycache__" / "a.pyc").write_bytes(b"")
    content.check_release(tree, expected)
    (tree / "json.py").write_text("")  # would be imported in the place of Python's own
    with pytest.raises(InputError, match=r"any more \(json.py\)"):
        content.check_release(tree, expected)


def test_a_release_of_another_id_or_without_a_record_is_refused(release: tuple[Path, str]) -> None:
    tree, expected = release
    with pytest.raises(InputError, match=f"is the source {expected}, asked for is {'0' * 16}"):
        content.check_release(tree, "0" * 16)
    text = (tree / content.RECORD).read_text()
    (tree / content.RECORD).write_text(text.replace("print", "PRINT").replace("a.py", "b.py"))
    with pytest.raises(InputError, match="has no readable record"):
        content.check_release(tree, expected)
    (tree / content.RECORD).write_text(text[:-9])
    with pytest.raises(InputError, match="has no readable record"):
        content.check_release(tree, expected)
    (tree / content.RECORD).write_text(text)
    content.check_release(tree, expected)


def test_what_lies_behind_a_link_is_neither_listed_nor_looked_at(release: tuple[Path, str], tmp_path: Path) -> None:
    tree, source_id = release
    content.check_release(tree, source_id)
    (tree / "trainer").rename(tmp_path / "elsewhere")
    (tree / "trainer").symlink_to(tmp_path / "elsewhere")
    assert "trainer" in content.walked_files(tree) and "trainer/a.py" not in content.walked_files(tree)
    with pytest.raises(InputError, match=f"is not the source {source_id} any more"):
        content.check_release(tree, source_id)


def test_a_record_that_is_a_link_is_none(release: tuple[Path, str], tmp_path: Path) -> None:
    tree, source_id = release
    (tree / content.RECORD).rename(tmp_path / "record")
    (tree / content.RECORD).symlink_to(tmp_path / "record")
    assert content.read_record(tree) is None
    (tmp_path / "record").replace(tree / content.RECORD)
    assert content.read_record(tree) is not None
