"""Staging: what is made is ours, looked at again, gone at the end; what killed ones left is swept."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trainer.bundle import staging
from trainer.bundle.reader import Member
from trainer.bundle.staging import APPLYING, Staging
from trainer.errors import HostUnfit, InputError


def put(staged: Staging, name: str, data: bytes = b"data", executable: bool = False) -> None:
    member = Member(name=name, is_folder=False, executable=executable, size=len(data), mtime=0, place="")
    staged.file(member, iter([data[:2], data[2:]]))


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Staging]:
    """A staging with two files and an empty folder."""
    with Staging(tmp_path / "releases") as made:
        put(made, "a/b.txt", b"b")
        put(made, "run.sh", b"#!/bin/sh\n", executable=True)
        made.folder("empty")
        yield made


def modes(tree: Path) -> dict[str, int]:
    return {str(path.relative_to(tree)): stat.S_IMODE(path.lstat().st_mode) for path in tree.rglob("*")}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_modes_are_ours_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    (tmp_path / "releases").mkdir()
    before = os.umask(umask)
    try:
        with Staging(tmp_path / "releases") as made:
            put(made, "a/b.txt")
            put(made, "run.sh", executable=True)
            assert modes(made.tree) == {"a": 0o755, "a/b.txt": 0o644, "run.sh": 0o755}
            assert stat.S_IMODE(made.tree.stat().st_mode) == 0o755
            assert stat.S_IMODE(made.tree.parent.stat().st_mode) & 0o077 == 0, "nobody else looks in before"
            assert set(made.digests("sha256")) == {"a/b.txt", "run.sh"}
    finally:
        os.umask(before)


def test_a_folder_that_gives_its_group_on_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases").chmod(0o2775)
    with Staging(tmp_path / "releases") as made:
        put(made, "a/b.txt")
        assert set(made.digests("sha256")) == {"a/b.txt"} and modes(made.tree)["a"] & 0o777 == 0o755


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_digests_are_of_the_bytes_that_lie_there(staged: Staging, algorithm: str) -> None:
    assert staged.digests(algorithm) == {
        name: (hashlib.sha256(data).hexdigest(), hashlib.new(algorithm, data).hexdigest())
        for name, data in (("a/b.txt", b"b"), ("run.sh", b"#!/bin/sh\n"))
    }
    (staged.tree / "a" / "b.txt").write_bytes(b"c")  # as long as it was: the manifest will tell
    assert staged.digests(algorithm)["a/b.txt"][0] == hashlib.sha256(b"c").hexdigest()


def add_file(tree: Path) -> None:
    (tree / "more.txt").touch()


def add_folder(tree: Path) -> None:
    (tree / "more").mkdir()


def remove_file(tree: Path) -> None:
    (tree / "a" / "b.txt").unlink()


def remove_folder(tree: Path) -> None:
    (tree / "empty").rmdir()


def change_mode(tree: Path) -> None:
    (tree / "run.sh").chmod(0o644)


def lengthen(tree: Path) -> None:
    (tree / "run.sh").write_bytes(b"#!/bin/sh\n\n")


def link_to_it(tree: Path) -> None:
    os.link(tree / "run.sh", tree.parent / "other")


def replace_by_link(tree: Path) -> None:
    (tree / "run.sh").unlink()
    (tree / "run.sh").symlink_to("a/b.txt")


def replace_by_fifo(tree: Path) -> None:
    (tree / "run.sh").unlink()
    os.mkfifo(tree / "run.sh")


def replace_folder_by_link(tree: Path) -> None:
    (tree / "a").rename(tree.parent / "a")
    (tree / "a").symlink_to(tree.parent / "a")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (add_file, "more.txt"), (add_folder, "more"), (remove_file, "a/b.txt"), (remove_folder, "empty"),
        (change_mode, "run.sh"), (lengthen, "run.sh"), (link_to_it, "run.sh"), (replace_by_link, "run.sh"),
        (replace_by_fifo, "run.sh"), (replace_folder_by_link, "a"),
    ],
)  # fmt: skip
def test_a_tree_that_somebody_else_changed_is_refused(
    staged: Staging, damage: Callable[[Path], None], named: str
) -> None:
    assert len(staged.digests("sha256")) == 2
    damage(staged.tree)
    with pytest.raises(HostUnfit, match=f"the file '{named}' in staging .*somebody else wrote there; run it again"):
        staged.digests("sha256")


def test_a_link_that_is_put_in_the_place_of_a_folder_is_not_followed(staged: Staging, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (staged.tree / "a").rename(staged.tree.parent / "moved")
    (staged.tree / "a").symlink_to(outside)
    put(staged, "a/c.txt")
    for number in range(2 * staging.OPEN_FOLDERS):  # so many that the first is opened anew
        staged.folder(f"f{number}")
    with pytest.raises(OSError):
        put(staged, "a/d.txt")
    assert list(outside.iterdir()) == []


def test_many_folders_are_made_with_few_open(tmp_path: Path) -> None:
    with Staging(tmp_path / "releases") as made:
        for name in range(3 * staging.OPEN_FOLDERS):
            put(made, f"{name % 7}/{name}/x.txt")
        put(made, "/".join(str(number) for number in range(31)) + "/x.txt")
        assert len(os.listdir("/proc/self/fd")) < 3 * staging.OPEN_FOLDERS
        assert len(made.digests("sha256")) == 3 * staging.OPEN_FOLDERS + 1


@pytest.mark.parametrize("name", ["run.sh", "a/b.txt", "run.sh/x", "a"])
def test_a_name_that_is_taken_is_refused(staged: Staging, name: str) -> None:
    put(staged, f"not-{name}")
    with pytest.raises((InputError, NotADirectoryError), match="is there already under this name|Not a directory"):
        put(staged, name)


def test_nothing_is_made_before_the_first_member_and_nothing_stays(tmp_path: Path) -> None:
    parent = tmp_path / "host" / "releases"
    with Staging(parent):
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError), Staging(parent) as made:
        put(made, "a/b.txt")
        assert len(list(parent.glob(f"{APPLYING}*"))) == 1
        raise InputError("refused")
    assert list(tmp_path.iterdir()) == [], "the folders above it were made by it"
    parent.mkdir(parents=True)
    with pytest.raises(InputError), Staging(parent) as made:
        put(made, "a/b.txt")
        raise InputError("refused")
    assert parent.is_dir() and list(parent.iterdir()) == [], "these were not"


def test_a_tree_that_was_moved_away_stays_there(tmp_path: Path) -> None:
    with Staging(tmp_path / "releases") as made:
        put(made, "a/b.txt")
        made.tree.rename(tmp_path / "releases" / "kept")
    assert [path.name for path in (tmp_path / "releases").iterdir()] == ["kept"]


def test_what_is_kept_has_another_name(staged: Staging) -> None:
    kept = staged.keep("x")
    assert kept is not None and kept.name == ".kept-x" and (kept / "a" / "b.txt").read_text() == "b"
    assert Staging(kept.parent).keep("y") is None, "nothing was made"
