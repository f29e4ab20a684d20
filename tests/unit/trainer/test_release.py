"""Releases on a host: whole or not there, edited ones kept, the one in use never pruned."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from trainer import content, release
from trainer.errors import HostUnfit, InputError, Interrupted
from trainer.state import Layout


class Host:
    """A project root and the way to publish a small tree in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.layout = root, Layout(root)
        self.releases = root / "releases"
        self.lines: list[str] = []

    def publish(self, text: str, expected: str = "", commit: str = "") -> str:
        incoming = self.releases / ".incoming-test"
        (incoming / "trainer").mkdir(parents=True)
        (incoming / "trainer" / "a.py").write_text(text)
        answer = release.publish(self.layout, incoming, expected, commit)
        assert not incoming.exists()
        self.lines = answer["lines"]
        return str(answer["source_id"])

    def names(self) -> set[str]:
        return {path.name for path in self.releases.iterdir()} - {".lock"}

    def text(self) -> str:
        return (self.root / "code" / "trainer" / "a.py").read_text()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


def test_a_tree_becomes_a_release_and_code_a_link_to_it(host: Host) -> None:
    first = host.publish("1", commit="a" * 40)
    assert os.readlink(host.root / "code") == f"releases/{first}" and host.text() == "1"
    assert content.check_release(host.root / "code", first)["commit"] == "a" * 40
    second = host.publish("2")
    assert host.text() == "2" and host.names() == {first, second}
    assert host.publish("1") == first and host.text() == "1"
    assert sorted(path.name for path in host.root.iterdir()) == ["code", "releases"], "nothing half is left"


def test_a_tree_that_is_not_the_expected_one_changes_nothing(host: Host) -> None:
    first = host.publish("1")
    with pytest.raises(InputError, match=f"expected {first}"):
        host.publish("2", expected=first)
    assert host.text() == "1"
    shutil.rmtree(host.releases / ".incoming-test")
    assert host.publish("1", expected=first) == first


def test_a_release_that_is_there_stays_the_same_folder_with_its_data(host: Host) -> None:
    first = host.publish("1", commit="a" * 40)
    inode = (host.releases / first).stat().st_ino  # a process may stand in it
    (host.releases / first / "own.jsonl").write_text("{}")
    host.publish("1")
    assert (host.releases / first).stat().st_ino == inode and host.lines == []
    assert (host.root / "code" / "own.jsonl").exists()
    assert content.check_release(host.root / "code", first)["commit"] == "a" * 40
    host.publish("1", commit="b" * 40)  # another commit of the same tree
    assert content.check_release(host.root / "code", first)["commit"] == "b" * 40


@pytest.mark.parametrize("name", ["trainer/a.py", "trainer/new.py"])
def test_a_release_that_was_edited_is_replaced_and_the_edit_kept(host: Host, name: str) -> None:
    first = host.publish("1")
    (host.releases / first / name).write_text("edited")
    assert host.publish("1") == first
    assert host.text() == "1" and content.check_release(host.root / "code", first)
    (kept,) = host.names() - {first}
    assert (host.releases / kept / name).read_text() == "edited"
    assert len(host.lines) == 1 and kept in host.lines[0] and "not trained with" in host.lines[0]


def test_a_release_whose_record_was_lost_is_the_same_release(host: Host) -> None:
    first = host.publish("1")
    (host.releases / first / content.RECORD).unlink()
    host.publish("1")
    assert host.names() == {first} and content.check_release(host.root / "code", first)


def test_only_the_newest_releases_stay(host: Host) -> None:
    found = [host.publish(str(number)) for number in range(6)]
    assert host.names() == set(found[-release.KEPT :])
    host.publish("3")  # switched back: used now
    host.publish("6")
    assert found[3] in host.names() and found[4] not in host.names()


def test_the_release_of_the_last_plan_and_those_with_files_of_somebody_are_not_pruned(host: Host) -> None:
    planned, owned, *_ = [host.publish(str(number)) for number in range(3)]
    host.layout.state.mkdir(parents=True)
    host.layout.plan.write_text(json.dumps({"schema": 1, "source_id": planned}))
    (host.releases / owned / "own.jsonl").write_text("{}")
    for number in range(3, 7):
        host.publish(str(number))
    assert {planned, owned} <= host.names() and len(host.names()) == release.KEPT + 2
    assert len(host.lines) == 1 and owned in host.lines[0]
    host.layout.plan.write_text("damaged")  # whose release it is cannot be known
    host.publish("7")
    assert {planned, owned} <= host.names() and len(host.names()) == release.KEPT + 3
    host.layout.plan.unlink()
    (host.releases / owned / "own.jsonl").unlink()
    host.publish("8")
    assert len(host.names()) == release.KEPT and host.lines == []


def test_what_broken_uploads_left_goes_when_it_is_old(host: Host) -> None:
    host.publish("1")
    for name in ("old", "new"):
        (host.releases / f".incoming-{name}").mkdir()
    (host.releases / ".removed-x").mkdir()
    os.utime(host.releases / ".incoming-old", (1, 1))
    second = host.publish("2")
    assert host.names() >= {".incoming-new", second}
    assert not host.names() & {".incoming-old", ".removed-x"}


def test_a_folder_called_code_is_not_overwritten(host: Host) -> None:
    (host.root / "code").mkdir(parents=True)
    with pytest.raises(InputError, match="code is no link"):
        host.publish("1")
    (host.root / "code").rmdir()
    host.publish("1")
    assert host.text() == "1"


def test_a_dangling_code_link_is_replaced(host: Host) -> None:
    host.root.mkdir()
    (host.root / "code").symlink_to("releases/gone")
    host.publish("1")
    assert host.text() == "1"


def test_another_run_that_publishes_is_waited_for(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.publish("1")
    monkeypatch.setattr(release, "LOCK_SECONDS", 0.0)
    with (host.releases / ".lock").open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(Interrupted, match="another run has been publishing"):
            host.publish("2")
    assert host.text() == "1"
    shutil.rmtree(host.releases / ".incoming-test")
    host.publish("2")
    assert host.text() == "2"


def test_a_disk_that_refuses_leaves_the_old_code(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.publish("1")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(HostUnfit, match="cannot be published .*No space left on device.*make room"):
            host.publish("2")
    assert host.text() == "1"
    shutil.rmtree(host.releases / ".incoming-test")
    host.publish("2")
    assert host.text() == "2"


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("edited", [False, True])
def test_a_run_that_is_killed_at_any_call_is_completed_by_the_next(
    host: Host, monkeypatch: pytest.MonkeyPatch, edited: bool
) -> None:
    first, second = host.publish("1"), host.publish("2")
    for limit in range(60):
        if edited:
            (host.root / "releases" / second / "trainer" / "a.py").write_text("edited")
        host.publish("1")
        left = [limit]

        def counted(real: Any, left: list[int] = left) -> Any:
            def call(*words: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                return real(*words, **named)

            return call

        with monkeypatch.context() as patched:
            for name in ("rename", "replace", "utime", "fsync", "open", "symlink", "mkdir"):
                patched.setattr(os, name, counted(getattr(os, name)))
            try:
                host.publish("2")
                ended = True
            except Killed:
                ended = False
        assert ended or host.text() in ("1", "2"), "there is always code"
        shutil.rmtree(host.releases / ".incoming-test", ignore_errors=True)
        assert host.publish("2") == second and content.check_release(host.root / "code", second)
        assert first in host.names()
        if ended:
            return
    raise AssertionError("no run came to its end")


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_lock_that_is_no_plain_file_is_refused(host: Host, tmp_path: Path, kind: str) -> None:
    host.publish("1")
    lock, outside = host.releases / ".lock", tmp_path / "outside"
    outside.write_text("theirs")
    lock.unlink()
    {"link": lambda: lock.symlink_to(outside), "fifo": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    with pytest.raises(InputError, match="lock is no plain file, .*; move it away"):
        host.publish("2")
    assert host.text() == "1" and outside.read_text() == "theirs"
    lock.rename(tmp_path / "away")
    shutil.rmtree(host.releases / ".incoming-test")
    host.publish("2")


def test_a_release_that_is_a_link_is_not_looked_into(host: Host, tmp_path: Path) -> None:
    first = host.publish("1")
    (host.releases / first).rename(tmp_path / first)
    (host.releases / first).symlink_to(tmp_path / first)
    assert host.publish("1") == first
    assert not (host.releases / first).is_symlink() and len(host.lines) == 1, "what was there is kept beside"


@pytest.mark.parametrize("system", [True, False])
def test_an_edited_release_that_is_in_use_is_exchanged(
    host: Host, monkeypatch: pytest.MonkeyPatch, system: bool
) -> None:
    """On a system without the calls that Python does not have it is done all the same."""
    if not system:
        monkeypatch.setattr(release.system, "_is_done_by_system", lambda *_: False)
    first = host.publish("1")
    (host.releases / first / "trainer" / "a.py").write_text("edited")
    host.publish("1")
    (kept,) = host.names() - {first}
    assert host.text() == "1" and (host.releases / kept / "trainer" / "a.py").read_text() == "edited"


def test_a_switch_that_fails_leaves_no_release_that_nobody_uses(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    first = host.publish("1")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(HostUnfit):
        patched.setattr(os, "symlink", full)
        host.publish("2")
    assert host.text() == "1" and host.names() == {first}
    host.publish("2")
    with monkeypatch.context() as patched, pytest.raises(HostUnfit):
        patched.setattr(os, "symlink", full)
        host.publish("1")
    assert host.text() == "2" and first in host.names(), "one that was there before stays"


def test_a_release_that_cannot_be_removed_is_no_failure(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    first = host.publish("0")
    for number in range(1, release.KEPT):
        host.publish(str(number))

    def refused(path: Path) -> None:
        raise OSError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(release, "remove", refused)
        last = host.publish("9")
    assert host.text() == "9" and host.lines == [
        f"{host.releases / first} is kept: it cannot be removed (Operation not permitted)"
    ]
    assert host.publish("9") == last and first not in host.names() and host.lines == []


def test_what_a_killed_one_left_in_a_release_goes(host: Host) -> None:
    first = host.publish("1")
    (host.releases / first / f".{content.RECORD}.123.tmp").write_text("half")
    host.publish("1")
    assert content.verify(host.releases / first, first)
