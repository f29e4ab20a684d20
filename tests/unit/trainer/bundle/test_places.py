"""What is put in the place of our folders is refused and not touched; where we work, and what is swept there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.bundle import small
from tests.unit.trainer.bundle.small import Host
from trainer.bundle import apply
from trainer.errors import InputError

Plant = Callable[[Path, Path], None]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_a_hostile_umask_changes_nothing(host: Host, umask: int) -> None:
    before = os.umask(umask)
    try:
        host.apply(host.old)
        host.apply(host.new)
        host.rollback()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    for path in host.root.rglob("*"):
        mode = path.lstat().st_mode & 0o777
        wanted = 0o777 if path.is_symlink() else 0o755 if path.is_dir() or path.suffix == ".sh" else 0o644
        assert mode == wanted, path


def link_releases(root: Path, outside: Path) -> None:
    if (root / "releases").exists():
        (root / "releases").rename(outside / "releases")
    (root / "releases").symlink_to(outside / "releases")


def file_as_releases(root: Path, outside: Path) -> None:
    if (root / "releases").exists():
        (root / "releases").rename(outside / "releases")
    (root / "releases").touch()


def _as_lock(root: Path, make: Callable[[Path], Any]) -> None:
    (root / "releases").mkdir(exist_ok=True)
    (root / "releases" / ".lock").unlink(missing_ok=True)
    make(root / "releases" / ".lock")


def link_lock(root: Path, outside: Path) -> None:
    (outside / "file").write_text("theirs")
    _as_lock(root, lambda path: path.symlink_to(outside / "file"))


def fifo_lock(root: Path, outside: Path) -> None:
    _as_lock(root, os.mkfifo)


def folder_lock(root: Path, outside: Path) -> None:
    _as_lock(root, Path.mkdir)


def link_code_outside(root: Path, outside: Path) -> None:
    (root / "code").unlink(missing_ok=True)
    (root / "code").symlink_to(outside)


def link_code_above(root: Path, outside: Path) -> None:
    (root / "code").unlink(missing_ok=True)
    (root / "code").symlink_to("releases/..")


def folder_code(root: Path, outside: Path) -> None:
    (root / "code").unlink(missing_ok=True)
    (root / "code").mkdir()


def link_backups(root: Path, outside: Path) -> None:
    (root / "backups").symlink_to(outside)


PLANTS: list[Plant] = [
    link_releases, file_as_releases, link_lock, fifo_lock, folder_lock, link_code_outside, link_code_above, folder_code,
    link_backups,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("installed", [False, True])
def test_what_is_planted_in_our_place_is_refused_and_nothing_done(host: Host, plant: Plant, installed: bool) -> None:
    outside = host.folder / "outside"
    for folder in (host.root, outside, outside / "releases"):
        folder.mkdir()
    if installed:
        (outside / "releases").rmdir()
        host.apply(host.old)
    plant(host.root, outside)
    before = small.snapshot(outside)
    for act in (lambda: host.apply(host.new), lambda: apply.preview(apply.Request(host.layout, host.new))):
        with pytest.raises(InputError, match="; move it away"):
            host.unchanged(act)
    assert small.snapshot(outside) == before
    if installed and plant is not link_backups:
        with pytest.raises(InputError, match="; move it away"):
            host.unchanged(host.rollback)


def test_a_staging_folder_that_cannot_be_is_refused(host: Host) -> None:
    host.apply(host.old)
    (host.folder / "staging").mkdir()
    (host.folder / "link").symlink_to("staging")
    for path, words in (
        (host.folder / "link", "is no folder of its own"),
        (host.folder / "nowhere", "is no folder of its own"),
        (host.root / "code" / "data", "lies in a release"),
    ):
        with pytest.raises(InputError, match=f"the staging folder {path} {words}"):
            host.unchanged(lambda path=path: host.apply(host.new, staging_dir=path))
    host.apply(host.new, staging_dir=host.folder / "staging")


def test_a_staging_folder_on_another_file_system_is_refused(host: Host, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev or not os.access(other, os.W_OK):
        pytest.skip("there is no other file system to write on")
    with pytest.raises(InputError, match="/dev/shm lies on another file system than .*; name one on the same"):
        host.apply(host.old, staging_dir=other)
    assert not host.root.exists()


def test_what_a_killed_one_left_is_swept_by_the_next_also_if_that_has_nothing_to_do(host: Host) -> None:
    host.apply(host.old)
    for folder in (host.root / "releases" / ".applying-dead" / "tree", host.root / "releases" / ".removed-x"):
        folder.mkdir(parents=True)
    (host.root / ".code.1").symlink_to("releases/x")
    assert host.apply(host.old)["changed"] is False
    assert small.left_over(host.root) == []
