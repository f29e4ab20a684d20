"""The files of a bundle under their names."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from trainer.bundle import placing
from trainer.errors import HostUnfit, InputError

NAMES = ["x.tar.gz", "x.SYNC_MANIFEST.sha256", "x.apply.pyz", "x.tar.gz.sha256"]


def fill(made: Path, text: str) -> None:
    for name in NAMES:
        (made / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_names_are_made_of_that_of_the_bundle() -> None:
    assert list(placing.names_of(Path("d/x.tar.gz")).values()) == NAMES
    assert placing.names_of(Path("v1.2.tgz")) == {
        "bundle": "v1.2.tgz", "manifest": "v1.2.SYNC_MANIFEST.sha256", "application": "v1.2.apply.pyz",
        "sha256": "v1.2.tgz.sha256",
    }  # fmt: skip
    for wrong in ("x.zip", ".tar.gz", "x.tar", "x.TAR.GZ"):
        with pytest.raises(InputError, match=r"does not end in \.tar\.gz"):
            placing.names_of(Path(wrong))


def test_the_files_replace_those_of_before(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    with placing.making(tmp_path) as made:
        fill(made, "new")
        placing.place(made, tmp_path / "x.tar.gz")
    assert texts(tmp_path) == dict.fromkeys(NAMES, "new")


@pytest.mark.parametrize("number", range(1, 5))
def test_a_disk_that_refuses_midway_leaves_no_checksum(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "old")
    real, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == number:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="Input/output"), placing.making(tmp_path) as made:
        fill(made, "new")
        placing.place(made, tmp_path / "x.tar.gz")
    found = texts(tmp_path)
    assert "x.tar.gz.sha256" not in found and sorted(found) == sorted(NAMES[:3])


def test_nothing_is_touched_before_all_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fill(tmp_path, "old")
    monkeypatch.setattr(placing, "sync_file", sync)
    refusal = pytest.raises(HostUnfit, match=r"cannot be written to .* \(No space left on device\); make room")
    with refusal, placing.refused_by_disk(tmp_path), placing.making(tmp_path) as made:
        fill(made, "new")
        placing.place(made, tmp_path / "x.tar.gz")
    assert texts(tmp_path) == dict.fromkeys(NAMES, "old")


def test_what_a_killed_build_left_goes_and_what_a_running_one_makes_stays(tmp_path: Path) -> None:
    dead, alive = tmp_path / f"{placing.MAKING}dead", tmp_path / f"{placing.MAKING}alive"
    for path in (dead, alive):
        path.mkdir()
        (path / "archive").write_text("x")
    descriptor = os.open(alive, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with placing.making(tmp_path) as made:
            assert {path.name for path in tmp_path.iterdir()} == {alive.name, made.name}
    finally:
        os.close(descriptor)
    assert [path.name for path in tmp_path.iterdir()] == [alive.name]


def test_two_builds_make_in_folders_of_their_own(tmp_path: Path) -> None:
    with placing.making(tmp_path) as one, placing.making(tmp_path) as other:
        assert one != other and one.is_dir() and other.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_take_files_are_refused(tmp_path: Path) -> None:
    placing.check_places(tmp_path / "x.tar.gz")
    with pytest.raises(InputError, match=r"the folder '.*/none' of the output is not there; make it"):
        placing.check_places(tmp_path / "none" / "x.tar.gz")
    (tmp_path / "x.tar.gz.sha256").mkdir()
    with pytest.raises(InputError, match="is a folder; move it away"):
        placing.check_places(tmp_path / "x.tar.gz")
