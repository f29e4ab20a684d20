"""Manifests: what sha256sum and shasum write is read, everything else is refused with its line."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.bundle import manifest
from trainer.errors import InputError

A, B = "a" * 64, "b" * 64
ONE = f"{A}  one\n".encode()
SHA1 = "c" * 40

# A refused manifest, a part of the sentence, and its nearly identical twin that is read.
PAIRS = [
    (b"", "the file is empty", ONE),
    (b"\xef\xbb\xbf" + ONE, "line 1: it begins with a byte order mark", ONE),
    (ONE.replace(b"\n", b"\r\n"), "line 1: 'aaa.*carriage return", ONE),
    (ONE + b"\n", "line 2: the line is empty", ONE),
    (b"\n" + ONE, "line 1: the line is empty", ONE),
    (ONE[:-1], "line 1: 'aaa.* is not ended", ONE),
    (ONE + b"#two\n", "line 2: '#two' is a comment", ONE + f"{B}  #two\n".encode()),
    (ONE + b"garbage\n", "line 2: 'garbage' is not '<hex digits>  <name>'", ONE + f"{B}  garbage\n".encode()),
    (b"\\" + ONE, "line 1: .* is escaped", ONE),
    (f"SHA256 (one) = {A}\n".encode(), "in the form of --tag", f"{A}  SHA256 (one) =\n".encode()),
    (f"{A} one\n".encode(), "is not '<hex digits>  <name>'", f"{A} *one\n".encode()),
    (f"{A}\tone\n".encode(), "is not '<hex digits>  <name>'", f"{A}  one\n".encode()),
    (f"{A} ?one\n".encode(), "is not '<hex digits>  <name>'", f"{A}  ?one\n".encode()),
    (f" {A}  one\n".encode(), "is not '<hex digits>  <name>'", ONE),
    (f"{A[1:]}g  one\n".encode(), "is not '<hex digits>  <name>'", f"{A[1:]}f  one\n".encode()),
    (f"{A[1:]}  one\n".encode(), "line 1: 63 hex digits", ONE),
    (f"{A}a  one\n".encode(), "line 1: 65 hex digits", ONE),
    (f"{A}{A}  one\n".encode(), "line 1: 128 hex digits", ONE),
    (f"{'a' * 32}  one\n".encode(), "line 1: 32 hex digits", f"{SHA1}  one\n".encode()),
    (ONE + f"{SHA1}  two\n".encode(), "line 2: 40 hex digits behind lines with 64", ONE + f"{B}  two\n".encode()),
    (f"{SHA1}  two\n".encode() + ONE, "line 2: 64 hex digits behind lines with 40", f"{SHA1}  two\n".encode()),
    (ONE + ONE, "line 2: the name 'one' comes twice", ONE + f"{A}  One_\n".encode()),
    (ONE + f"{A} *./one\n".encode(), "line 2: the name 'one' comes twice", ONE + f"{A} *./one_\n".encode()),
    (ONE + f"{A}  One\n".encode(), "line 2: .*in case", ONE + f"{A}  Ones\n".encode()),
    (ONE + f"{A}  one/b\n".encode(), "line 2: .*a file and a folder", ONE + f"{A}  ones/b\n".encode()),
    (f"{A}  ../one\n".encode(), "line 1: the name '../one'", f"{A}  ..one\n".encode()),
    (f"{A}  /dev/null\n".encode(), "line 1: .* is absolute", f"{A}  dev/null\n".encode()),
    (f"{A}  one/\n".encode(), "line 1: .* ends with a slash", ONE),
    (f"{A}  \n".encode(), "line 1: the name '' is empty", f"{A}   \n".encode()),
    (f"{A}  a\0b\n".encode(), "line 1: .*U[+]0000", f"{A}  a0b\n".encode()),
    (f"{A}  a\rb\n".encode(), "line 1: .*U[+]000D", f"{A}  a b\n".encode()),
    (f"{A}  a\x0bb\n{A}  c\n".encode(), "line 1: .*U[+]000B", f"{A}  a b\n{A}  c\n".encode()),
    (
        f"{A}  SYNC_MANIFEST.sha256\n".encode(),
        "line 1: the manifest lists itself",
        f"{A}  SYNC_MANIFEST.txt\n".encode(),
    ),
]


@pytest.mark.parametrize(("refused", "words", "read"), PAIRS)
def test_a_manifest_is_refused_and_its_twin_is_read(refused: bytes, words: str, read: bytes) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        manifest.parse(refused, "M")
    assert str(refusal.value).startswith("M") and ";" in str(refusal.value) and str(refusal.value).isprintable()
    assert manifest.parse(read, "M").digests


def test_what_the_old_scripts_wrote_is_read() -> None:
    listed = f"{A.upper()}  ./one\n{B} *./data/数据.json\n{A}  two words\n".encode()
    expected = {"one": A, "data/数据.json": B, "two words": A}
    assert manifest.parse(listed, "M") == manifest.Manifest("sha256", expected)
    assert manifest.parse(f"{SHA1}  ./one\n".encode(), "M") == manifest.Manifest("sha1", {"one": SHA1})
    with pytest.raises(InputError, match="the manifest lists itself, 'SYNC_MANIFEST.txt'"):
        manifest.parse(f"{A}  ./SYNC_MANIFEST.txt\n".encode(), "M", manifest.OLD_NAME)


@pytest.mark.parametrize("tool", ["sha256sum", "sha1sum", "shasum", "shasum -a 256", "sha256sum -b"])
def test_the_listings_of_the_tools_are_read(tmp_path: Path, tool: str) -> None:
    command = tool.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    (tmp_path / "数据 1").mkdir()
    files = {"a": b"1", "数据 1/b.json": b"2", " c": b"3"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    listed = subprocess.run([*command, *(f"./{name}" for name in files)], cwd=tmp_path, capture_output=True, check=True)
    found = manifest.parse(listed.stdout, "M")
    assert found.digests == {name: hashlib.new(found.algorithm, data).hexdigest() for name, data in files.items()}


def test_what_is_rendered_is_read_and_checked_by_sha256sum(tmp_path: Path) -> None:
    files = {"b": b"1", "Z/é": b"2", "a b": b"3"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    rendered = manifest.render(digests)
    assert manifest.parse(rendered, "M") == manifest.Manifest("sha256", digests)
    assert [line[66:] for line in rendered.splitlines()] == ["Z/é".encode(), b"a b", b"b"]
    command = ["sha256sum", "-c", "--strict", "-"]
    assert subprocess.run(command, input=rendered, cwd=tmp_path, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (b"", "the file is empty"),
        (f"{A}  x.tar.gz".encode(), "is not ended"),
        (f"{A}  x.tar.gz\n{A}  x.tar.gz\n".encode(), "2 lines, where one is expected"),
        (f"{A}  y.tar.gz\n".encode(), "it names 'y.tar.gz', not 'x.tar.gz'"),
        (f"{A}  /dev/null\n".encode(), "it names '/dev/null'"),
        (f"{A}  ../x.tar.gz\n".encode(), "it names '../x.tar.gz'"),
        (f"{A}  releases/x.tar.gz\n".encode(), "it names 'releases/x.tar.gz'"),
        (f"{A}  X.tar.gz\n".encode(), "it names 'X.tar.gz'"),
        (f"{SHA1}  x.tar.gz\n".encode(), "40 hex digits, where sha256 has 64"),
        (f"{A}  x.tar.gz\r\n".encode(), "carriage return"),
        (f"\\{A}  x.tar.gz\n".encode(), "is escaped"),
        (f"SHA256 (x.tar.gz) = {A}\n".encode(), "in the form of --tag"),
        (f"{A}\n".encode(), "is not '<hex digits>  <name>'"),
        (b"\xef\xbb\xbf" + f"{A}  x.tar.gz\n".encode(), "byte order mark"),
        (f"# x\n{A}  x.tar.gz\n".encode(), "2 lines"),
    ],
)
def test_an_outer_listing_is_one_line_of_this_bundle(refused: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as refusal:
        manifest.parse_outer(refused, "x.tar.gz.sha256", "x.tar.gz")
    assert str(refusal.value).startswith("x.tar.gz.sha256") and str(refusal.value).isprintable()


def test_outer_listings_that_the_tools_write_are_read() -> None:
    for listed in (f"{A}  x.tar.gz\n", f"{A} *x.tar.gz\n", f"{A}  ./x.tar.gz\n", f"{A.upper()}  x.tar.gz\n"):
        assert manifest.parse_outer(listed.encode(), "S", "x.tar.gz") == A
    assert (
        manifest.parse_outer(f"{A}  包\udcff.tar.gz\n".encode("utf-8", "surrogateescape"), "S", "包\udcff.tar.gz") == A
    )


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
LINES = st.builds(
    lambda digest, between, name, end: digest + between + name.encode() + end,
    st.sampled_from([A.encode(), B.upper().encode(), SHA1.encode(), A[1:].encode(), b""]),
    st.sampled_from([b"  ", b" *", b" ", b"\t"]),
    st.one_of(NAMES, st.sampled_from(["a", "./a", "A", "a/b", "../a", "é", "e\u0301"])),
    st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b""]),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=300), st.lists(LINES, max_size=5).map(b"".join)))
@example(b"\n" * 50_000)
@example(b"a" * 200_000 + b"\n")
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    try:
        found = manifest.parse(data, "M")
    except InputError as refusal:
        assert str(refusal).startswith("M") and str(refusal).isprintable() and len(str(refusal)) < 600
        return
    assert found.digests and len({len(digest) for digest in found.digests.values()}) == 1
    # What was read says everything that was there: rendered again, it differs in the spelling of lines only.
    again = manifest.parse(manifest.render(found.digests), "M")
    assert again == found and data.count(b"\n") == len(found.digests)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=200), st.lists(LINES, max_size=2).map(b"".join)))
def test_any_bytes_are_an_outer_listing_or_refused(data: bytes) -> None:
    try:
        found = manifest.parse_outer(data, "S", "a")
    except InputError as refusal:
        assert str(refusal).startswith("S")
        return
    assert data.lower() in {f"{found}{between}{name}\n".encode() for between in ("  ", " *") for name in ("a", "./a")}
