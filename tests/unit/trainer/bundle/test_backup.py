"""Backups: the whole tree in use with what users put into it, found again, brought back, and never too many."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.bundle import small
from trainer import content, release
from trainer.bundle import apply, backup
from trainer.bundle.backup import Backups
from trainer.errors import HostUnfit, InputError
from trainer.state import Layout

NEXT = "f" * content.ID_LENGTH


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A project root with the old bundle in use."""
    found = Layout(tmp_path / "host")
    apply.apply(apply.Request(found, small.pack(tmp_path / "bundles", small.OLD)))
    return found


def used(layout: Layout) -> Path:
    found = release.current(layout)
    assert found is not None
    return found


def put_own_files(tree: Path) -> None:
    (tree / "own").mkdir()
    (tree / "own" / "rows.jsonl").write_text("{}\n")
    (tree / "own" / "empty").mkdir()
    (tree / "own" / "link").symlink_to("../../..")
    (tree / "own" / "broken").symlink_to("nowhere")
    os.mkfifo(tree / "own" / "fifo")
    (tree / "trainer" / "__pycache__").mkdir()
    (tree / "trainer" / "__pycache__" / "a.pyc").touch()


@pytest.mark.parametrize("links", [True, False])
def test_a_backup_holds_the_whole_tree_and_gives_it_back(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    put_own_files(used(layout))
    if not links:

        def elsewhere(*_: object, **__: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", elsewhere)
    saved = Backups(layout).save(used(layout), NEXT)
    assert saved.parent == layout.root / "backups" and saved.name.endswith(f"-{small.source_id(small.OLD)}")
    here, there = used(layout) / "run.sh", saved / "tree" / "run.sh"
    assert (here.stat().st_ino == there.stat().st_ino) is links
    assert here.stat().st_mode == there.stat().st_mode and here.stat().st_mtime_ns == there.stat().st_mtime_ns
    found = Backups(layout).last_of(NEXT)
    assert found.path == saved and backup.origin(found).made_at == small.MADE_AT
    shipped = backup.restore(layout, found, tmp_path / "again")
    assert content.source_id(shipped) == small.source_id(small.OLD), "it is the release, whatever was put into it"
    names = {path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again" / "own").rglob("*")}
    assert names == {"own/rows.jsonl", "own/empty", "own/link", "own/broken"}
    assert os.readlink(tmp_path / "again" / "own" / "link") == "../../.."
    assert not (tmp_path / "again" / "trainer" / "__pycache__").exists()
    assert not (tmp_path / "again" / content.RECORD).exists()


def test_an_edited_tree_is_kept_as_what_it_is(layout: Layout, tmp_path: Path) -> None:
    (used(layout) / "trainer" / "a.py").write_text("print('edited')\n")
    saved = Backups(layout).save(used(layout), NEXT)
    found = Backups(layout).last_of(NEXT)
    assert found.record["source_id"] != small.source_id(small.OLD) and saved.name.endswith(found.record["source_id"])
    assert backup.origin(found) == content.Origin(), "of no commit and no bundle any more"
    shipped = backup.restore(layout, found, tmp_path / "again")
    assert content.verify(tmp_path / "again", content.source_id(shipped)) == found.record["source_id"]


def change(tree: Path) -> None:
    path = tree / "trainer" / "a.py"
    path.unlink()
    path.write_text("print(3)\n")


def add(tree: Path) -> None:
    (tree / "more.py").touch()


def remove(tree: Path) -> None:
    (tree / "run.sh").unlink()


def point_elsewhere(tree: Path) -> None:
    (tree / "own" / "link").unlink()
    (tree / "own" / "link").symlink_to("/etc")


@pytest.mark.parametrize("damage", [change, add, remove, point_elsewhere])
def test_a_backup_that_was_changed_is_not_brought_back(
    layout: Layout, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    put_own_files(used(layout))
    Backups(layout).save(used(layout), NEXT)
    found = Backups(layout).last_of(NEXT)
    backup.restore(layout, found, tmp_path / "again")
    damage(found.path / "tree")
    with pytest.raises(InputError, match="the backup .* is not what was saved .*so it is not brought back; restore"):
        backup.restore(layout, found, tmp_path / "anew")


def test_the_newest_few_are_kept(layout: Layout) -> None:
    backups = Backups(layout)
    for number in range(backup.KEPT + 2):
        newest = backups.save(used(layout), f"{number:016x}")
        backups.prune(newest)
    found = [saved.record["applied"] for saved in backups.all()]
    assert found == [f"{number:016x}" for number in (4, 3, 2)]
    assert sorted(path.name for path in backups.root.iterdir()) == sorted(saved.path.name for saved in backups.all())


def test_the_backup_of_an_apply_that_was_killed_makes_room_for_the_next(layout: Layout) -> None:
    backups = Backups(layout)
    backups.save(used(layout), "0" * 16)
    backups.save(used(layout), NEXT)  # and killed before the switch
    newest = backups.save(used(layout), NEXT)
    backups.prune(newest)
    assert [saved.record["applied"] for saved in backups.all()] == [NEXT, "0" * 16]


def test_a_clock_that_was_set_back_does_not_change_their_order(layout: Layout) -> None:
    backups = Backups(layout)
    first = backups.save(used(layout), NEXT)
    future = first.with_name("29991231T235959999999Z-" + first.name.rpartition("-")[2])
    first.rename(future)
    second = backups.save(used(layout), NEXT)
    assert second.name.startswith("30000101T000000000000Z-")
    assert [saved.path for saved in backups.all()] == [second, future]


def test_a_folder_for_several_projects_keeps_them_apart(layout: Layout, tmp_path: Path) -> None:
    other, shared = Layout(tmp_path / "other"), tmp_path / "shared"
    apply.apply(apply.Request(other, tmp_path / "bundles" / "x.tar.gz"))
    saved = Backups(layout, shared).save(used(layout), NEXT)
    with pytest.raises(InputError, match="there is no backup in .*shared"):
        Backups(other, shared).last_of(NEXT)
    assert Backups(layout, shared).last_of(NEXT).path == saved


def test_a_project_that_was_moved_finds_its_own(layout: Layout, tmp_path: Path) -> None:
    saved = Backups(layout).save(used(layout), NEXT)
    moved = Layout(layout.root.rename(tmp_path / "moved"))
    assert Backups(moved).last_of(NEXT).path == moved.root / "backups" / saved.name


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": 2}', "\x00"])
def test_a_record_that_is_none_is_passed_over(layout: Layout, text: str) -> None:
    good = Backups(layout).save(used(layout), NEXT)
    bad = Backups(layout).save(used(layout), NEXT)
    (bad / "BACKUP.json").write_text(text)
    assert Backups(layout).last_of(NEXT).path == good


@pytest.mark.parametrize("field", ["entries", "files", "source_id", "applied", "links", "made_at"])
@pytest.mark.parametrize("value", [None, 7.5, [["x"]]])
def test_a_record_with_a_damaged_field_is_passed_over(layout: Layout, field: str, value: Any) -> None:
    saved = Backups(layout).save(used(layout), NEXT)
    assert Backups(layout).last_of(NEXT).path == saved
    record = json.loads((saved / "BACKUP.json").read_text())
    (saved / "BACKUP.json").write_text(json.dumps({**record, field: value}))
    with pytest.raises(InputError, match=r"there is no backup in .*\(there: none\); apply the bundle"):
        Backups(layout).last_of(NEXT)


@pytest.mark.parametrize("part", ["", "BACKUP.json", "tree"])
def test_a_backup_that_is_a_link_is_passed_over(layout: Layout, tmp_path: Path, part: str) -> None:
    saved = Backups(layout).save(used(layout), NEXT)
    (saved / part).rename(tmp_path / "moved")
    (saved / part).symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match="there is no backup in"):
        Backups(layout).last_of(NEXT)
    (saved / part).unlink()
    (tmp_path / "moved").rename(saved / part)
    assert Backups(layout).last_of(NEXT).path == saved


def test_what_there_is_is_named_where_the_wanted_one_is_not(layout: Layout) -> None:
    saved = Backups(layout).save(used(layout), NEXT)
    with pytest.raises(InputError, match=rf"{saved.name} \(of before {NEXT}\)"):
        Backups(layout).last_of("0" * 16)


def test_a_folder_that_is_a_link_is_refused(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    Backups(layout, tmp_path / "outside").save(used(layout), NEXT)
    for path, named in ((layout.root / "backups", None), (tmp_path / "link", tmp_path / "link")):
        path.symlink_to(tmp_path / "outside")
        with pytest.raises(InputError, match=f"{path} is no folder of its own; move it away"):
            Backups(layout, named)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no folder of its own"):
        Backups(layout, tmp_path / "file")


@pytest.mark.parametrize("inside", ["releases", "releases/x", "code/backups"])
def test_a_folder_among_the_releases_is_refused(layout: Layout, inside: str) -> None:
    with pytest.raises(InputError, match="the backups cannot lie in .*, among the releases"):
        Backups(layout, layout.root / inside)
    Backups(layout, layout.root / "releases-saved")


def test_a_disk_that_refuses_leaves_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as patched,
        pytest.raises(HostUnfit, match="cannot be kept in .*No space.*--backup-root"),
    ):
        patched.setattr(os, "fsync", full)
        Backups(layout).save(used(layout), NEXT)
    assert not (layout.root / "backups").exists()
    assert Backups(layout).save(used(layout), NEXT).is_dir()


def test_what_was_half_made_or_half_removed_is_swept(layout: Layout) -> None:
    backups = Backups(layout)
    saved = backups.save(used(layout), NEXT)
    for name in (".making-dead", ".removed-x"):
        shutil.copytree(saved, backups.root / name)
    backups.sweep()
    assert [path.name for path in backups.root.iterdir()] == [saved.name]
    backups.discard(saved)
    assert list(backups.root.iterdir()) == []
