"""What a whitelist selects, and what speaks against packing it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.trainer.bundle.sources import TEXTS, make
from trainer.bundle import tree, whitelist
from trainer.bundle.reader import Caps


def look(source: Path, caps: Caps = Caps(), own: Callable[[str], bool] = lambda name: False) -> tree.Tree:  # noqa: B008 - only read
    return tree.look(source, whitelist.load(source / whitelist.NAME), own, caps)


def names(source: Path) -> list[str]:
    found = look(source)
    assert found.findings == []
    return list(found.files)


def test_the_files_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    texts = dict.fromkeys(("a/b", "a.c", "a/é", "a/z", "B", "a-b", "\U0001f600", "\uff5e"), "x")
    found = names(make(tmp_path, texts, "**\n!.bundleinclude\n"))
    assert found == sorted(texts, key=str.encode) and len(found) == len(texts)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("trainer\n", ["trainer/a.py", "trainer/sub/b.py"]),
        ("trainer/\n!trainer/sub/\n", ["trainer/a.py"]),
        ("!**/b.py\n**/*.py\n", ["trainer/a.py"]),
        ("**/*.py\n!*.tmp\n", ["trainer/a.py", "trainer/sub/b.py"]),
        ("*.md\ndata/rows.jsonl\ndata/\n", ["README.md", "data/rows.jsonl"]),
    ],
)
def test_entries_select(entries: str, expected: list[str], tmp_path: Path) -> None:
    assert names(make(tmp_path, entries=entries)) == expected


def test_all_entries_that_match_nothing_are_told_with_what_is_near(tmp_path: Path) -> None:
    make(tmp_path, entries="trainr/\ndata/\ndata/row.jsonl\nREADME.md/\n**/*.yml\n!data/gone\nempty/\n!**/*.tmp\n")
    (tmp_path / "empty").mkdir()
    found = look(tmp_path).findings
    assert [re.sub(r"^\.bundleinclude, line ", "", text) for text in found] == [
        "1: 'trainr/' matches nothing; did you mean trainer?",
        "3: 'data/row.jsonl' matches nothing; did you mean data/rows.jsonl?",
        "4: 'README.md/' matches nothing; correct the line or take it out",
        "5: '**/*.yml' matches nothing; correct the line or take it out",
        "6: '!data/gone' matches nothing; correct the line or take it out",
        "7: 'empty/' matches nothing; correct the line or take it out",
    ]


def test_what_is_never_packed_is_left_out_and_named(tmp_path: Path) -> None:
    more = {
        "trainer/__pycache__/a.pyc": "x", "data/.env": "x", "data/host.key": "x", "data/outputs/x": "x",
        "data/releases/kept": "x", "trainer/.git": "gitdir: x",
    }  # fmt: skip
    found = look(make(tmp_path, {**TEXTS, **more}))
    assert found.findings == [] and "data/releases/kept" in found.files and len(found.files) == len(TEXTS) + 1
    assert found.left_out == {
        "data/.env": "a file of passwords or tokens", "data/host.key": "a key",
        "data/outputs/": "outputs of a training", "trainer/.git": "a repository",
        "trainer/__pycache__/": "a cache",
    }  # fmt: skip


def test_what_no_entry_speaks_of_is_not_told(tmp_path: Path) -> None:
    found = look(make(tmp_path, {**TEXTS, ".git/x.py": "x", "outputs/x.py": "x"}, "**/*.py\n"))
    assert found.left_out == {} and list(found.files) == ["trainer/a.py", "trainer/sub/b.py"]


def test_a_glob_that_only_names_what_is_never_packed_is_no_wrong_entry(tmp_path: Path) -> None:
    found = look(make(tmp_path, {**TEXTS, ".env": "x", "outputs/x": "x"}, "trainer/\n.e*\noutputs/*\n"))
    assert found.findings == [] and set(found.left_out) == {".env", "outputs/"}


@pytest.mark.parametrize("entry", ["data/.env", "outputs/", "outputs/adapter/x", ".git", "data/__pycache__"])
def test_what_is_never_packed_cannot_be_named(entry: str, tmp_path: Path) -> None:
    found = look(make(tmp_path, {**TEXTS, "data/.env": "x"}, f"trainer/\n{entry}\n"))
    assert len(found.findings) == 1
    assert found.findings[0].startswith(f".bundleinclude, line 2: {entry!r} is ")
    assert found.findings[0].endswith("which is never in a bundle; take the line out")


def odd_link(path: Path) -> None:
    path.symlink_to("a.py")


def odd_fifo(path: Path) -> None:
    os.mkfifo(path)


def odd_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("put", "words"), [(odd_link, "a symbolic link"), (odd_fifo, "a FIFO"), (odd_socket, "a socket")]
)
def test_only_regular_files_are_packed(put: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    source = make(tmp_path)
    put(source / "trainer" / "odd")
    assert look(source).findings == [
        f"'trainer/odd' is {words}, and a bundle holds regular files only; put the file itself there or leave it out"
    ]
    (source / whitelist.NAME).write_text("trainer/\n!trainer/odd\n")
    assert names(source) == ["trainer/a.py", "trainer/sub/b.py"]


def test_a_linked_folder_is_told_where_an_entry_leads_into_it(tmp_path: Path) -> None:
    source = make(tmp_path / "source", entries="trainer/\ndata/rows.jsonl\n**/*.txt\nlinked/x\n")
    (source / "notes.txt").write_text("x")
    (source / "linked").symlink_to("data")
    (source / "other").symlink_to(tmp_path)
    assert [text.partition(" and ")[0] for text in look(source).findings] == ["'linked' is a symbolic link,"]


def test_names_that_a_bundle_cannot_carry_are_all_told(tmp_path: Path) -> None:
    source = make(tmp_path, {**TEXTS, "data/a\nb": "x", "data/A": "x", "data/a": "x", "data/sound name": "x"})
    Path(os.fsdecode(os.fsencode(source) + b"/data/\xff")).write_text("x")
    found = " | ".join(look(source).findings)
    assert "U+000A" in found and "is not UTF-8" in found and "in case or Unicode form only" in found
    assert len(look(source).findings) == 3


@pytest.mark.parametrize("name", ["SYNC_MANIFEST.sha256", "SYNC_MANIFEST.txt", "sync_manifest.SHA256", ".source.json"])
def test_names_that_a_build_or_an_apply_makes_are_refused_at_the_top(name: str, tmp_path: Path) -> None:
    assert f"data/{name}" in names(make(tmp_path / "sound", {**TEXTS, f"data/{name}": "x"}))
    source = make(tmp_path / "wrong", {**TEXTS, name: "x"}, f"trainer/\n{name}\n")
    assert len(look(source).findings) == 1 and repr(name) in look(source).findings[0]
    (source / whitelist.NAME).write_text("trainer/\n")
    assert look(source).findings == []


def test_more_than_an_apply_takes_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path)
    assert look(source, Caps(files=5)).findings == []
    assert look(source, Caps(files=4)).findings == ["4 files are selected, a bundle holds at most 3; leave some out"]
    (source / "data" / "rows.jsonl").write_bytes(bytes(100_000))
    assert look(source, Caps(bytes=200_000)).findings == []
    assert "the largest is 'data/rows.jsonl'" in look(source, Caps(bytes=100_000)).findings[0]
    assert "the manifest would have" in look(source, Caps(manifest_bytes=100)).findings[0]


def test_a_whitelist_that_leaves_everything_out_selects_nothing(tmp_path: Path) -> None:
    source = make(tmp_path, entries="trainer/\n!**\n")
    assert any("matches nothing" in text or "selects no file" in text for text in look(source).findings)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = make(tmp_path), os.scandir

    def scandir(path: bytes) -> object:
        if path.endswith(b"/sub/"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert look(source).findings == ["'trainer/sub/' cannot be read (Permission denied); correct that or leave it out"]


def test_the_outputs_of_the_build_itself_are_passed_over(tmp_path: Path) -> None:
    source = make(tmp_path, {**TEXTS, "data/x.tar.gz": "x"})
    found = look(source, own=lambda name: name == "data/x.tar.gz")
    assert list(found.files) == list(TEXTS) and found.findings == []


def test_the_order_of_a_folder_makes_no_difference(tmp_path: Path) -> None:
    one = make(tmp_path / "one")
    other = make(tmp_path / "other", dict(reversed(TEXTS.items())))
    assert list(look(one).files) == list(look(other).files)
