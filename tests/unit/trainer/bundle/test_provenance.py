"""Commit and age of a source tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.trainer.bundle.sources import TEXTS, commit, make
from trainer.bundle import provenance, tree, whitelist
from trainer.bundle.provenance import Provenance
from trainer.bundle.reader import Caps
from trainer.errors import InputError

WHEN = 1772600767  # 2026-03-04T05:06:07Z


@pytest.fixture(autouse=True)
def no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


def of(source: Path) -> Provenance:
    found = tree.look(source, whitelist.load(source / whitelist.NAME), lambda name: False, Caps())
    return provenance.of(source, found.files)


def test_a_clone_gives_its_commit_and_that_ones_time(tmp_path: Path) -> None:
    source = make(tmp_path)
    (source / "trainer" / "a.py").chmod(0o755)
    assert of(source) == Provenance("", 0, [provenance.UNKNOWN_AGE])
    head = commit(source)
    assert of(source) == Provenance(head, WHEN, [])


def test_edits_outside_the_bundle_are_no_edits_of_it(tmp_path: Path) -> None:
    source = make(tmp_path, {**TEXTS, "docs/x": "x"})
    head = commit(source)
    (source / "docs" / "x").write_text("edited")
    (source / "docs" / "new").write_text("new")
    assert of(source).commit == head


def edit(source: Path) -> None:
    (source / "data" / "rows.jsonl").write_text('{"id": 2}\n')


def add(source: Path) -> None:
    (source / "data" / "rows.jsonl").rename(source / "data" / "new.jsonl")


def make_executable(source: Path) -> None:
    (source / "data" / "rows.jsonl").chmod(0o755)


@pytest.mark.parametrize("change", [edit, add, make_executable])
def test_an_edited_tree_is_of_no_commit_and_as_old_as_its_commit(change, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = make(tmp_path)
    head = commit(source)
    change(source)
    found = of(source)
    assert (found.commit, found.made_at) == ("", WHEN)
    assert found.lines[0].startswith("the bundle names no commit: 'data/") and head[:12] in found.lines[0]


def test_an_edit_is_seen_even_where_git_would_trust_its_index(tmp_path: Path) -> None:
    source = make(tmp_path)
    commit(source)
    path = source / "data" / "rows.jsonl"
    before = path.stat()
    path.write_text('{"id": 2}\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert of(source).commit == ""


def test_a_folder_within_another_clone_is_of_no_commit(tmp_path: Path) -> None:
    make(tmp_path)
    commit(tmp_path)
    assert of(make(tmp_path / "inside")).commit == ""
    assert of(tmp_path / "inside").made_at == 0


def test_a_clone_of_somebody_else_and_the_callers_git_variables_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "source")
    head = commit(source)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "none"))
    assert of(source).commit == head
    if os.geteuid() == 0:
        for path in (source, *source.rglob("*")):
            os.chown(path, 65534, 65534)
        assert of(source).commit == head


def test_without_git_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path)
    commit(source)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert of(source) == Provenance("", 0, [provenance.UNKNOWN_AGE])


def test_the_age_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path)
    head = commit(source)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert of(source) == Provenance(head, 1700000000, [])
    for wrong in ("-1", "1.5", "tomorrow", "99999999999"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(InputError, match=f"SOURCE_DATE_EPOCH is '{wrong}'"):
            of(source)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", " ")
    assert of(source).made_at == WHEN
