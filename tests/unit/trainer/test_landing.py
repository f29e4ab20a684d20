"""The landing folder: who holds it, what counts in it, what a cut leaves, and the room that it needs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import landing
from trainer.errors import InputError, Interrupted
from trainer.landing import Landing, opened
from trainer.listing import Entry

MIB = 1 << 20


def entry(path: str, content: bytes) -> Entry:
    return Entry(path, len(content), hashlib.sha256(content).hexdigest())


A, B = entry("logs/a.log", b"aaa"), entry("logs/b.log", b"bbbb")


@pytest.fixture
def held(tmp_path: Path) -> Landing:
    with opened(tmp_path) as found:
        yield found


def test_the_folder_is_private_and_what_is_in_it_stays(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "outputs") as held:
        (held.objects / "x").write_text("kept")
        held.folder.chmod(0o755)
    with opened(tmp_path / "new" / "outputs") as held:
        assert held.folder.stat().st_mode & 0o777 == 0o700 and (held.objects / "x").read_text() == "kept"


def test_one_at_a_time_and_the_other_is_told_who(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(Interrupted, match=rf"another collect \(process {os.getpid()}\) is bringing files to"):
            opened(tmp_path).__enter__()
        with opened(tmp_path / "another"):
            pass
    with opened(tmp_path):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from trainer.landing import opened\n"
        "with opened(Path(sys.argv[1])): print(1, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-9, "1\n"), done.stderr
    with opened(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["link", "file"])
def test_something_else_in_its_place_is_not_used(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / ".incoming"
    place.symlink_to(tmp_path / "elsewhere") if kind == "link" else place.touch()
    with pytest.raises(InputError, match=r"\.incoming is not a folder of collect's; move it away"):
        opened(tmp_path).__enter__()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    place.unlink()
    with opened(tmp_path):
        pass


def test_objects_count_by_content_and_not_by_name(held: Landing) -> None:
    held.object(A).write_bytes(b"aaa")
    held.object(B).write_bytes(b"xxxx")
    held.reuse([A, B])
    assert held.missing([A, B]) == [B] and not held.object(B).exists()


@pytest.mark.parametrize(("kind", "counts"), [("file", True), ("link", False), ("other", False), ("shorter", False)])
def test_what_is_home_already_is_not_fetched(held: Landing, tmp_path: Path, kind: str, counts: bool) -> None:
    place = tmp_path / A.path
    place.parent.mkdir()
    if kind == "link":
        (tmp_path / "real").write_bytes(b"aaa")
        place.symlink_to(tmp_path / "real")
    else:
        place.write_bytes({"file": b"aaa", "other": b"aab", "shorter": b"aa"}[kind])
    held.reuse([A])
    assert (held.missing([A]) == []) is counts


def test_a_cut_batch_is_used_as_far_as_it_is_whole(held: Landing) -> None:
    got = held.expect_batch([A, B])
    got.write_bytes(b"aaabbb")
    assert held.split_batch() == [] and held.missing([A, B]) == [B]
    held.expect_batch([A, B]).write_bytes(b"aaabbbb")
    assert held.split_batch() == [] and held.missing([A, B]) == []
    assert held.object(B).read_bytes() == b"bbbb" and not list(held.parts.iterdir())


def test_a_wrong_file_in_a_batch_does_not_spoil_the_others(held: Landing) -> None:
    held.expect_batch([A, B]).write_bytes(b"aaxbbbb")
    ((wrong, found),) = held.split_batch()
    assert (wrong, found) == (A, hashlib.sha256(b"aax").hexdigest())
    assert held.missing([A, B]) == [A]


def test_a_batch_of_a_killed_collect_is_used_by_the_next(tmp_path: Path) -> None:
    with opened(tmp_path) as held:
        held.expect_batch([A, B]).write_bytes(b"aaab")
    with opened(tmp_path) as held:
        held.reuse([A, B])
        assert held.missing([A, B]) == [B]


def test_a_cut_file_keeps_all_but_its_unsure_end(held: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "UNSURE_BYTES", 2)
    held.got(A).write_bytes(b"abc")
    held.salvage(A, held.got(A))
    held.got(A).write_bytes(b"BCDE")
    held.salvage(A, held.got(A))
    assert held.part(A).read_bytes() == b"aBC" and not held.got(A).exists()
    held.got(A).write_bytes(b"xy")
    held.salvage(A, held.got(A))
    assert held.part(A).read_bytes() == b"aBC"


def test_what_was_arriving_is_taken_up_only_where_nothing_is_before_it(
    held: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landing, "UNSURE_BYTES", 1)
    held.part(A).write_bytes(b"a")
    for one in (A, B):
        held.got(one).write_bytes(b"bb")
    held.take_up([A, B])
    assert (held.part(A).read_bytes(), held.part(B).read_bytes()) == (b"a", b"b")


def test_an_accepted_file_has_the_mode_of_a_plain_one(held: Landing) -> None:
    held.got(A).write_bytes(b"aaa")
    held.got(A).chmod(0o4777)
    before = os.umask(0o027)
    try:
        held.accept(held.got(A), A)
    finally:
        os.umask(before)
    assert held.object(A).stat().st_mode & 0o7777 == 0o640 and held.missing([A]) == []


def test_room_is_counted_with_parts_and_with_copies(held: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    big, twin = Entry("logs/1", 100 * MIB, "1" * 64), Entry("logs/2", 100 * MIB, "1" * 64)
    held.part(big).write_bytes(b"")
    os.truncate(held.part(big), 30 * MIB)
    free = [0]
    monkeypatch.setattr("trainer.landing.shutil.disk_usage", lambda folder: type("Usage", (), {"free": free[0]}))
    for entries, need in (([big], 134), ([big, twin], 234)):
        free[0] = need * MIB - 1
        with pytest.raises(InputError, match=rf"collect needs {need} MiB; make room, or name another"):
            held.check_space(entries)
        free[0] += 1
        held.check_space(entries)
