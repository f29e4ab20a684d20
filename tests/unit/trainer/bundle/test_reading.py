"""Reading files that must not change meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.bundle import reading
from trainer.bundle.reading import Changed, Stamp
from trainer.errors import InputError

SIZE = 3 * reading.PIECE_BYTES + 5


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a"
    path.write_bytes(bytes(SIZE))
    return path


def stamp(path: Path) -> Stamp:
    return Stamp.of(path.lstat())


def appended(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"x")


def edited_and_touched_back(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.write_bytes(bytes(SIZE))


def linked(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.symlink_to("old")


CHANGES: list[Callable[[Path], None]] = [
    appended, edited_and_touched_back, lambda path: os.truncate(path, SIZE - 1), lambda path: os.truncate(path, 0),
    lambda path: path.chmod(0o600),
]  # fmt: skip


def wait_for_the_clock_of_files(path: Path) -> None:
    """Until a write gets another ctime than that of `path`."""
    other = path.with_name("clock")
    while stamp(path).changed_ns >= (other.write_bytes(b"") or stamp(other).changed_ns):
        pass


@pytest.mark.parametrize("size", [0, 1, reading.PIECE_BYTES, SIZE])
def test_a_file_that_stays_is_read(size: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(size))
    assert b"".join(reading.pieces(tmp_path, "a", stamp(tmp_path / "a"))) == bytes(size)
    assert reading.sha256(tmp_path, "a", stamp(tmp_path / "a")) == hashlib.sha256(bytes(size)).hexdigest()


@pytest.mark.parametrize("change", [*CHANGES, replaced])
def test_a_change_before_reading_is_seen(change: Callable[[Path], None], file: Path) -> None:
    before = stamp(file)
    wait_for_the_clock_of_files(file)
    change(file)
    with pytest.raises(Changed, match=r"changed while it was read.*\('a'\)"):
        list(reading.pieces(file.parent, "a", before))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_while_reading_is_seen(change: Callable[[Path], None], file: Path) -> None:
    wait_for_the_clock_of_files(file)
    found = reading.pieces(file.parent, "a", stamp(file))
    next(found)
    change(file)
    with pytest.raises(Changed):
        list(found)


def test_a_link_is_not_followed_and_a_fifo_is_not_waited_for(file: Path) -> None:
    before = stamp(file)
    linked(file)
    with pytest.raises(InputError, match="'a' cannot be read"):
        list(reading.pieces(file.parent, "a", before))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(Changed):
        list(reading.pieces(file.parent, "a", before))
    file.unlink()
    with pytest.raises(InputError, match=r"'a' cannot be read \(No such file"):
        list(reading.pieces(file.parent, "a", before))


def test_what_was_written_just_before_the_first_look_is_read_again(file: Path) -> None:
    one = stamp(file)
    digests = {"a": hashlib.sha256(b"what was read").hexdigest()}
    seconds = one.changed_ns / 1e9
    reading.check_fresh(file.parent, {"a": one}, digests, seconds + 2 * reading.FRESH_SECONDS)
    with pytest.raises(Changed):
        reading.check_fresh(file.parent, {"a": one}, digests, seconds)
    reading.check_fresh(file.parent, {"a": one}, {"a": hashlib.sha256(bytes(SIZE)).hexdigest()}, seconds)


@pytest.mark.parametrize(("mode", "expected"), [(0o644, False), (0o744, True), (0o645, False), (0o755, True)])
def test_the_owners_bit_says_whether_it_can_be_run(mode: int, expected: bool, file: Path) -> None:
    file.chmod(mode)
    assert stamp(file).executable is expected
