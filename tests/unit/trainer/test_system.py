"""Calls that Python does not have: done, not there, or failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer import system


def test_two_folders_change_their_names_or_keep_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    done = system.exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b" if done else "a"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["a" if done else "b"]


def test_a_linux_that_does_not_tell_of_errors_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def done(name: str, *_: object) -> bool:
        calls.append(name)
        return True

    monkeypatch.setattr(system, "_is_done_by_system", done)
    for version, wanted in (
        ("5.4.0-42-generic", False),
        ("5.8.0", True),
        ("6.1", True),
        ("5.10.1", True),
        ("x", False),
    ):
        monkeypatch.setattr(os, "uname", lambda version=version: os.uname_result(("Linux", "host", version, "", "x86")))
        assert system.sync_file_system(tmp_path) is wanted
    assert calls == ["syncfs"] * 3


def test_a_call_that_the_system_does_not_have_or_allow_is_told_from_one_that_failed(tmp_path: Path) -> None:
    assert system._is_done_by_system("no_such_function") is False
    with pytest.raises(OSError, match="Bad file descriptor"):
        system._is_done_by_system("syncfs", -1)
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError):
        system.exchange(tmp_path / "a", tmp_path / "nowhere")
