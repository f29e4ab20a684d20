"""Folders of our own: held while their owner lives, swept when it is gone, none left where the disk refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.bundle import held as folders
from trainer.bundle.held import Held
from trainer.errors import HostUnfit

APPLYING = ".applying-"


def test_the_folders_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    for name in ("dead", "begun", ".applying-link"):
        (tmp_path / name).mkdir()
    (tmp_path / "dead" / "lock").touch()
    (tmp_path / "dead" / "tree").mkdir()
    (tmp_path / "dead" / "tree" / "x").touch()
    os.rename(tmp_path / "dead", tmp_path / f"{APPLYING}dead")
    os.rename(tmp_path / "begun", tmp_path / f"{APPLYING}begun")  # killed before its lock was there
    (tmp_path / ".applying-link").rmdir()
    (tmp_path / ".applying-link").symlink_to(tmp_path / "own")
    (tmp_path / "own").mkdir()
    with Held(tmp_path, APPLYING) as living:
        path = living.make()
        folders.sweep(tmp_path, APPLYING)
        assert {found.name for found in tmp_path.iterdir()} == {path.name, "own", ".applying-link"}
    folders.sweep(tmp_path, APPLYING)
    assert not path.exists() and (tmp_path / "own").is_dir()
    folders.sweep(tmp_path / "nowhere", APPLYING)


def test_a_disk_that_refuses_the_lock_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(folders, "_locked", full)
        Held(tmp_path / "new", APPLYING).make()
    assert list(tmp_path.iterdir()) == []
    with Held(tmp_path / "new", APPLYING) as held:
        assert held.make().is_dir()


def test_a_folder_that_a_sweeper_took_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = folders._locked, [2]

    def taken(path: Path, flags: int) -> int:
        left[0] -= 1
        if left[0] >= 0:
            path.parent.rmdir()
            raise FileNotFoundError(path)
        return real(path, flags)

    monkeypatch.setattr(folders, "_locked", taken)
    with Held(tmp_path, APPLYING) as held:
        assert held.make().is_dir() and left == [-1]
    left[0] = 100
    with pytest.raises(HostUnfit, match="no folder of our own can be made"), Held(tmp_path, APPLYING) as held:
        held.make()
