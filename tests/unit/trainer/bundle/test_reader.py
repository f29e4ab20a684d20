"""Archives that are read to the last byte, and the nearly identical ones that are refused."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.trainer.bundle.tarballs import (
    END,
    GNU,
    USTAR,
    header,
    long_name,
    member,
    mutated,
    names,
    padded,
    pax,
    read,
    read_tar,
)
from trainer.bundle.reader import Archive, Caps
from trainer.errors import InputError

LONG = b"d/" + b"n" * 150
A = member(b"a", b"one")
G = member(magic=GNU)

# A refused archive (without its end blocks), a part of the sentence, and its nearly identical twin with its names.
PAIRS = [
    (member(b"a", link=b"b"), "has the link name 'b'", member(b"a"), ["a"]),
    (member(b"a", kind=b"1", link=b"b"), "is a hard link", member(b"a", kind=b"0"), ["a"]),
    (member(b"a", kind=b"2", link=b"b"), "is a symbolic link", member(b"a", kind=b"\0"), ["a"]),
    (member(b"a", kind=b"3"), "is a character device", member(b"a", dev=b"0000001\x000000003\0"), ["a"]),
    (member(b"a", kind=b"4"), "is a block device", member(b"a"), ["a"]),
    (member(b"a", kind=b"6"), "is a FIFO", member(b"a", kind=b"5"), ["a"]),
    (member(b"a", kind=b"7"), "is a contiguous file", member(b"a"), ["a"]),
    *[
        (member(b"a", kind=bytes([kind]), magic=GNU), words, member(b"a", magic=GNU), ["a"])
        for kind, words in ((75, "long link name"), (68, "listing"), (77, "volume"), (78, "old long"), (83, "sparse"),
                            (86, "volume label"), (88, "Solaris"), (65, "access list"), (90, "unknown type 'Z'"))
    ],
    (member(b"a/"), "ends with a slash", member(b"a/", kind=b"5"), ["a"]),
    (member(b"a/", kind=b"\0"), "ends with a slash", member(b"a", kind=b"\0"), ["a"]),
    (member(b"a/", b"x", kind=b"5"), "a folder of 1 bytes", member(b"a/", kind=b"5"), ["a"]),
    (member(b"a", mode=b"0004755\0"), "mode 4755 is setuid", member(b"a", mode=b"0000755\0"), ["a"]),
    (member(b"a", mode=b"0002755\0"), "mode 2755 is setuid, setgid", member(b"a", kind=b"5", mode=b"0002755\0"), ["a"]),
    (member(b"a", mode=b"0001644\0"), "mode 1644", member(b"a", kind=b"5", mode=b"0001777\0"), ["a"]),
    (member(b"a", mode=b"0100644\0"), "mode 100644 is more", member(b"a", mode=b"0000644\0"), ["a"]),
    (member(b"../a"), "the name '../a'", member(b"./a"), ["a"]),
    (member(b"x", prefix=b"../d"), "component '..'", member(b"x", prefix=b"./..d"), ["..d/x"]),
    (member(b"x", prefix=b"/d"), "is absolute", member(b"x", prefix=b"d"), ["d/x"]),
    (A + A, "member 2 at byte 1024, 'a': the name 'a' comes twice", A + member(b"b", b"one"), ["a", "b"]),
    (A + member(b"a/b"), "a file and a folder", A + member(b"b/b"), ["a", "b/b"]),
    (member(b"a/b") + A, "a file and a folder", member(b"a/b") + member(b"a", kind=b"5"), ["a/b", "a"]),
    (A + member(b"A"), "in case or Unicode form", A + member(b"B"), ["a", "B"]),
    (member(b"./", kind=b"5") * 2, "comes twice", member(b"./", kind=b"5") + A, ["", "a"]),
    (padded(header(b"a", 3) + b"one")[:-1] + b"x", "padding behind its content is not zero", A, ["a"]),
    # metadata headers
    (long_name(LONG + b"\0"), "behind a header without its member", long_name(LONG + b"\0") + G, [LONG.decode()]),
    (long_name(LONG) + G, "is not ended by one NUL", long_name(LONG + b"\0") + G, [LONG.decode()]),
    (long_name(b"a\0b\0") + G, "is not ended by one NUL", long_name(b"a/b\0") + G, ["a/b"]),
    (long_name(b"a\0") * 2 + G, "behind one of 'L'", (long_name(b"a\0") + G), ["a"]),
    (long_name(b"../a\0") + G, "component '..'", long_name(b"./a\0") + G, ["a"]),
    (long_name(b"") + G, "a header of 0 bytes", long_name(b"b\0") + G, ["b"]),
    (long_name(b"b\0") + pax({"path": "c"}) + member(), "'x' behind one of 'L'", pax({"path": "c"}) + member(), ["c"]),
    (pax({"path": "b"}) * 2 + member(), "'x' behind one of 'x'", pax({"path": "b"}) + member(), ["b"]),
    (pax({"path": "b"}) + pax({"comment": "c"}, b"g") + member(), "'g' behind one of 'x'",
     pax({"comment": "c"}, b"g") + pax({"path": "b"}) + member(), ["b"]),
    (pax({"comment": "c"}, b"g") * 2 + member(), "'g' behind one of 'g'",
     (pax({"comment": "c"}, b"g") + member(b"a")) + (pax({"comment": "c"}, b"g") + member(b"b")), ["a", "b"]),
    (A + pax({"path": "b"}), "behind a header without its member", A + pax({"path": "b"}) + member(), ["a", "b"]),
    (A + pax({"comment": "b"}, b"g"), "behind a header without its member", pax({"comment": "b"}, b"g") + A, ["a"]),
    (pax({"path": "/b"}) + member(), "is absolute", pax({"path": "b"}) + member(b"/a"), ["b"]),
    (pax({"path": ""}) + member(), "is empty", pax({"comment": ""}) + member(), ["a"]),
    (pax({"size": "1"}) + A, "size is 3, that of its pax record 1", pax({"size": "3"}) + A, ["a"]),
    (pax({"size": "3"}) + member(), "size is 0, that of its pax record 3", pax({"size": "0"}) + member(), ["a"]),
    (pax({"path": "b"}, b"g") + A, "'path' does not belong into a global header", pax({"mtime": "1"}, b"g") + A, ["a"]),
    (pax({"size": "3"}, b"g") + A, "'size' does not belong into a global", pax({"uid": "3"}, b"g") + A, ["a"]),
    (pax({"linkpath": "b"}) + A, "'linkpath' does not belong", pax({"linkpat": "b"}) + A, ["a"]),
    (pax({"path": "b"}) + member(magic=GNU, kind=b"L"), "'L' behind one of 'x'", pax({"path": "b"}) + member(), ["b"]),
]  # fmt: skip


@pytest.mark.parametrize(("refused", "words", "read_instead", "expected"), PAIRS, ids=[pair[1] for pair in PAIRS])
def test_an_archive_is_refused_and_its_twin_is_read(
    refused: bytes, words: str, read_instead: bytes, expected: list[str]
) -> None:
    with pytest.raises(InputError) as refusal:
        read_tar(refused + END)
    sentence = str(refusal.value)
    assert words in sentence and sentence.startswith("the archive, member ") and "; " in sentence
    assert names(read_instead + END) == expected


# How an archive may not end, and nearly the same.
ENDS = [
    (A, "without its end blocks", A + END),
    (A + bytes(512), "one end block where two are expected", A + END),
    (A + bytes(512) + member(b"b") + END, "one end block where two", A + member(b"b") + END),
    (A + END + member(b"b") + END, "data behind the end blocks", A + END + bytes(1536)),
    (A + END + bytes(511) + b"x", "data behind the end blocks", A + END + bytes(512)),
    (A + END + bytes(100), "are not whole blocks", A + END + bytes(10240 - 2048)),
    (A + END + bytes(17 << 20), "of padding", A + END + bytes(1 << 20)),
    (A[:-512], "ends 3 bytes before this file does", A + END),
    (A[:-10], "ends within the padding", A + END),
    (A + header(b"b")[:300], "without its end blocks", A + header(b"b") + END),
    (b"", "without its end blocks", END),
    (pax({"path": "b"})[:600], "ends within", pax({"path": "b"}) + member() + END),
    (header(b"a", 1 << 33, length=b"77777777777\0"), "ends 8589934591 bytes before", header(b"a") + END),
]


@pytest.mark.parametrize(("refused", "words", "read_instead"), ENDS, ids=[pair[1] for pair in ENDS])
def test_an_archive_has_one_end(refused: bytes, words: str, read_instead: bytes) -> None:
    with pytest.raises(InputError, match=words):
        read_tar(refused)
    read_tar(read_instead)


def test_a_member_says_what_it_is_and_where_it_stands() -> None:
    tar = member(b"./b/", kind=b"5", mode=b"0002775\0") + member(b"./b/a", b"x" * 600, mode=b"0000744\0") + A + END
    (folder, _), (first, content), (second, _) = read_tar(tar)
    assert folder == ("b", True, True, 0, 5, "the archive, member 1 at byte 0, './b/'")
    assert first == ("b/a", False, True, 600, 5, "the archive, member 2 at byte 512, './b/a'")
    assert content == b"x" * 600 and not second.executable


def test_a_large_file_comes_in_pieces_and_the_rest_may_be_left() -> None:
    data = bytes(range(256)) * 20_000
    archive = Archive(io.BytesIO(gzip.compress(member(b"a", data) + member(b"b", data) + END, 1)), Caps())
    found, first = [], b""
    for entry, pieces in archive:
        if entry.name == "a":
            first = next(pieces)
            kept = pieces
        else:
            assert list(kept) == []
            found = list(pieces)
    assert first == data[: len(first)] and len(first) < len(data)
    assert b"".join(found) == data and max(map(len, found)) <= 1 << 20
    assert archive.unpacked_bytes == 2 * len(data)


def test_the_commit_is_that_of_a_leading_global_header() -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    for tar, expected in (
        (pax({"comment": commit}, b"g") + A, commit),
        (pax({"comment": commit.upper()}, b"g") + A, ""),
        (pax({"comment": "made by hand"}, b"g") + A, ""),
        (A + pax({"comment": commit}, b"g") + member(b"b"), ""),
        (pax({"comment": commit}) + A, ""),
        (A, ""),
    ):
        archive = Archive(io.BytesIO(gzip.compress(tar + END)), Caps())
        assert [entry.name for entry, _ in archive][0] == "a" and archive.commit == expected


def test_sizes_beyond_octal_are_those_of_gnu_and_pax() -> None:
    huge, caps = (1 << 33) + 5, Caps(bytes=1 << 40)
    base256 = b"\x80" + huge.to_bytes(11, "big")
    for tar in (
        header(b"a", length=base256, magic=GNU),
        pax({"size": str(huge)}) + header(b"a"),
        pax({"size": str(huge)}) + header(b"a", length=base256),
    ):
        with pytest.raises(InputError, match=f"the archive ends {huge} bytes before this file does"):
            read_tar(tar, caps)
    for tar, words in (
        (header(b"a", length=base256), "which ustar does not have"),
        (pax({"size": str(huge)}) + header(b"a", 5), f"size is 5, that of its pax record {huge}"),
        (header(b"a", length=b"\x80" + bytes(10) + b"\3", magic=GNU), "in base 256 although it fits in octal"),
        (header(b"a", length=b"\xff" * 12, magic=GNU), "is not an octal number"),
    ):
        with pytest.raises(InputError, match=words):
            read_tar(tar, caps)


def test_caps_are_met_before_a_byte_is_read() -> None:
    two = member(b"a", b"12345") + member(b"b", b"12345") + END
    assert len(names(two, Caps(files=2, bytes=10))) == 2
    with pytest.raises(InputError, match="member 2 .*more than 1 files"):
        names(two, Caps(files=1))
    folders = member(b"a/b/c") + member(b"a/b", kind=b"5") + END  # a, a/b and a/b/c
    assert len(names(folders, Caps(files=3))) == 2
    with pytest.raises(InputError, match="member 1 .*more than 2 files and folders"):
        names(folders, Caps(files=2))
    with pytest.raises(InputError, match="member 2 .*with its 5 bytes it is more than 9 in all"):
        names(two, Caps(bytes=9))
    with pytest.raises(InputError, match="member 1 .*with its 8589934591 bytes"):
        read_tar(header(b"a", length=b"77777777777\0"), Caps(bytes=1 << 30))
    named = long_name(b"n" * 99 + b"\0") + member(magic=GNU) + END
    assert names(named, Caps(header_bytes=100)) == ["n" * 99]
    with pytest.raises(InputError, match="a header of 100 bytes, allowed are 1 to 99"):
        names(named, Caps(header_bytes=99))
    with pytest.raises(InputError, match="with its 100 bytes it is more than 99"):
        names(named, Caps(bytes=99))


FILES = {
    "README": b"",
    "trainer/a.py": b"x" * 511,
    "data/数据/" + "长" * 40 + ".json": b"y" * 512,
    "data/" + "k" * 90 + "/" + "m" * 120: b"z" * 70_000,
    "data/" + "p" * 120 + "/" + "q" * 30: b"z" * 513,
    "two words": b"1",
}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tarfile_writes_is_read(form: int) -> None:
    files = {name: data for name, data in FILES.items() if form != tarfile.USTAR_FORMAT or len(name.encode()) < 100}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=form, pax_headers={"comment": "made by a test"}) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.uname = len(data), 5, 2_000_000, "né"
            info.mode = 0o755 if name.endswith("py") else 0o644
            tar.addfile(info, io.BytesIO(data))
    found = read(buffer.getvalue())
    assert {entry.name: content for entry, content in found} == files
    assert [entry.name for entry, _ in found if entry.executable] == ["trainer/a.py"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar"])
def test_what_gnu_tar_writes_is_read(tmp_path: Path, form: str) -> None:
    files = {name: data for name, data in FILES.items() if form != "ustar" or len(name.encode()) < 100}
    tree = tmp_path / "tree"
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    (tree / "empty").mkdir()
    (tree / "shared").mkdir()
    (tree / "shared").chmod(0o2775)
    (tree / "shared" / "run.sh").write_bytes(b"#!")
    (tree / "shared" / "run.sh").chmod(0o775)
    command = ["tar", f"--format={form}", "-czf", str(tmp_path / "x.tar.gz"), "."]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    found = read((tmp_path / "x.tar.gz").read_bytes())
    assert {entry.name: content for entry, content in found if not entry.is_folder} == {**files, "shared/run.sh": b"#!"}
    assert {"", "empty", "shared"} <= {entry.name for entry, _ in found if entry.is_folder}
    assert [entry.name for entry, _ in found if entry.executable and not entry.is_folder] == ["shared/run.sh"]


def _original() -> bytes:
    """A small archive with every kind of header, over several blocks."""
    return (
        pax({"comment": "0" * 40}, b"g") + member(b"a", b"one" * 300) + member(b"d/", kind=b"5")
        + pax({"path": "d/é", "mtime": "5.5"}) + member(b"d/e", b"2" * 512)
        + long_name(LONG + b"\0") + member(b"d/n", b"3", magic=GNU) + END
    )  # fmt: skip


TAR = _original()
TREE = {(entry.name, entry.is_folder, entry.executable, content) for entry, content in read_tar(TAR)}
SMALL = Caps(files=50, bytes=1 << 20, header_bytes=2048)


def _judged(packed: bytes) -> set[tuple[str, bool, bool, bytes]] | None:
    """The tree in an archive, None when it is refused; every other exception goes through."""
    try:
        return {(entry.name, entry.is_folder, entry.executable, content) for entry, content in read(packed, SMALL)}
    except InputError as refusal:
        assert str(refusal).startswith("the archive") and "\n" not in str(refusal)
        return None


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_file_is_refused_or_holds_the_tree(data: st.DataObject) -> None:
    """Nothing that happens to the compressed bytes can bring another tree: gzip's CRC covers all of it."""
    packed = gzip.compress(TAR, 6, mtime=0)
    changed = mutated(packed, data.draw, data.draw(st.sampled_from([1, 7, 64])))
    assert _judged(changed) in (None, TREE)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_a_changed_archive_is_read_or_refused(data: st.DataObject) -> None:
    """Behind a right CRC contents are for the manifest to judge (test_verify), and no file can be made anew."""
    changed = mutated(TAR, data.draw, data.draw(st.sampled_from([512, 512, 1])))
    found = _judged(gzip.compress(changed, 1))
    assert found is None or len(found) <= len(TREE)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=520),
            st.sampled_from([A, END[:512], header(), member(b"b/", kind=b"5"), long_name(b"c\0"), member(magic=GNU)]),
            st.dictionaries(st.sampled_from(["path", "size", "comment", "é"]), st.text(max_size=5)).map(pax),
            st.binary(max_size=40).map(pax),
            st.builds(
                lambda name, kind, magic, mode, length: header(name, 0, magic, kind=kind, mode=mode, length=length),
                st.binary(max_size=100), st.sampled_from([b"0", b"5", b"x", b"g", b"L", b"2", b"\xff"]),
                st.sampled_from([USTAR, GNU, b"ustar\0\0\0"]), st.one_of(st.just(b"0000644\0"), st.binary(max_size=8)),
                st.one_of(st.just(b"00000000000\0"), st.binary(max_size=12)),
            ),
        ),
        max_size=6,
    ),
    st.booleans(),
)  # fmt: skip
def test_any_blocks_are_an_archive_or_refused(blocks: list[bytes], ended: bool) -> None:
    _judged(gzip.compress(b"".join(blocks) + (END if ended else b""), 1))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=600), st.booleans())
def test_any_bytes_are_refused(data: bytes, begins_well: bool) -> None:
    assert _judged((gzip.compress(TAR)[:10] if begins_well else b"") + data) is None


def test_a_bomb_is_stopped_at_the_caps() -> None:
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    begin = header(b"a", 1 << 20)
    data = packed.compress(begin + bytes(1 << 20)) + b"".join(packed.compress(bytes(1 << 20)) for _ in range(64))
    assert len(data) < 100_000 and _judged(data) is None
    assert _judged(gzip.compress(begin + b"x" * (1 << 20) + END)) is not None
