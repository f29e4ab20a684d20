"""The frame of our archives, as other programs read it."""

from __future__ import annotations

import io
import tarfile

import pytest

from trainer.bundle import header, tarball
from trainer.bundle.reader import Caps


def listed(*parts: bytes) -> list[tarfile.TarInfo]:
    data = b"".join(parts)
    with tarfile.open(fileobj=io.BytesIO(data + tarball.end(len(data)))) as archive:
        return archive.getmembers()


@pytest.mark.parametrize(
    "name",
    [
        "a", "a" * 100, "a" * 101, "d" * 90 + "/" + "f" * 90, "d" * 155 + "/" + "f" * 100, "d" * 156 + "/" + "f" * 100,
        "d" * 155 + "/" + "f" * 101, "d/" * 10 + "f" * 200, "数据/" * 30 + "行.jsonl", "a/" + "é" * 60, "é" * 50,
    ],
)  # fmt: skip
def test_names_of_any_length_are_read_back(name: str) -> None:
    found = listed(tarball.header(name, 3, False, 7), b"abc" + tarball.padding(3), tarball.header("z", 0, True, 7))
    assert [(one.name, one.size, one.mode, one.mtime) for one in found] == [(name, 3, 0o644, 7), ("z", 0, 0o755, 7)]
    assert {(one.uid, one.gid, one.uname, one.gname, one.type) for one in found} == {(0, 0, "", "", b"0")}


@pytest.mark.parametrize(("name", "blocks"), [("é" * 50, 1), ("d" * 155 + "/" + "f" * 100, 1), ("f" * 101, 3)])
def test_a_pax_header_stands_only_where_a_name_does_not_fit(name: str, blocks: int) -> None:
    assert len(tarball.header(name, 0, False, 0)) == blocks * tarball.BLOCK_BYTES


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 1 << 40])
def test_sizes_that_octal_digits_cannot_hold_are_read_back(size: int) -> None:
    block = tarball.header("large", size, False, 0)
    with tarfile.open(fileobj=io.BytesIO(block), mode="r|") as archive:
        assert (first := archive.firstmember) and (first.name, first.size) == ("large", size)
    assert (len(block) > tarball.BLOCK_BYTES) is (size >= 8**11)


def test_our_own_reader_takes_its_headers() -> None:
    block = tarball.header("a" * 300, 5, True, 9)
    assert header.parse(block[:512]).kind == header.LOCAL
    assert header.records(block[512 : 512 + header.parse(block[:512]).size], local=True) == {b"path": b"a" * 300}
    assert header.parse(block[1024:])[3:] == (0o755, 5, 9)
    assert len(block) < Caps().header_bytes


def test_the_commit_is_where_git_looks_for_it() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    data = tarball.commit_header(commit, 5) + tarball.header("a", 0, False, 5)
    with tarfile.open(fileobj=io.BytesIO(data + tarball.end(len(data)))) as archive:
        assert archive.getnames() == ["a"] and archive.pax_headers == {"comment": commit}


@pytest.mark.parametrize("written", [0, 512, 10240 - 1024, 10240 - 512, 10240])
def test_the_end_fills_whole_records(written: int) -> None:
    end = tarball.end(written)
    assert len(end) >= 1024 and (written + len(end)) % 10240 == 0 and not any(end)
