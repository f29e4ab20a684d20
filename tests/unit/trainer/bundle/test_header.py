"""Single tar headers and pax records, as writers make them and as nobody does."""

from __future__ import annotations

import pytest

from tests.unit.trainer.bundle import tarballs
from tests.unit.trainer.bundle.tarballs import GNU, USTAR
from trainer.bundle import header

OK = tarballs.header(b"a", 5)

# A refused block, a part of the sentence, and its nearly identical twin.
PAIRS = [
    (tarballs.header(checksum=b"000000\0 "), "checksum is 0, its bytes give", OK),
    (tarballs.header(checksum=b"zzzzzz\0 "), "checksum 'zzzzzz.x00 ' is not an octal number", OK),
    (OK[:99] + b"\1" + OK[100:], "checksum is", OK),
    (tarballs.header(magic=bytes(8)), "is neither ustar nor GNU tar", OK),
    (tarballs.header(magic=b"ustar\x0001"), "'ustar.x0001' is neither", OK),
    (tarballs.header(magic=b"ustar\0  "), "is neither", tarballs.header(magic=GNU)),
    (tarballs.header(rest=b"tar\0"), "fields in use", tarballs.header(prefix=b"tar\0")),
    (tarballs.header(magic=GNU, prefix=b"00000000001"), "fields in use", tarballs.header(prefix=b"00000000001")),
    (tarballs.header(magic=GNU, rest=b"\1"), "fields in use", tarballs.header(magic=GNU)),
    (tarballs.header(b"a\0b"), "name 'a.x00b.* has bytes behind its end", tarballs.header(b"ab\0")),
    (tarballs.header(prefix=b"a\0b"), "name prefix 'a.x00b.* has bytes", tarballs.header(prefix=b"ab")),
    (tarballs.header(link=b"\0b"), "link name '.x00b.* has bytes", tarballs.header(link=b"\0\0")),
    (tarballs.header(mode=b"0000648\0"), "mode '0000648.x00' is not an octal", tarballs.header(mode=b"0000647\0")),
    (tarballs.header(mode=b"-000644\0"), "mode '-000644.x00'", tarballs.header(mode=b"0000644 ")),
    (tarballs.header(mode=bytes(8)), "mode '.x00", tarballs.header(mode=b"0" + bytes(7))),
    (tarballs.header(mode=b" 000644\0"), "mode ' 000644", tarballs.header(mode=b"000644 \0")),
    (tarballs.header(mode=b"0x00644\0"), "mode '0x00644", tarballs.header(mode=b"00000644")),
    (tarballs.header(mode=b"0_00644\0"), "mode '0_00644", tarballs.header(mode=b"644\0\0\0\0\0")),
    (tarballs.header(mode=b"644\0 644"), "mode '644", tarballs.header(mode=b"644\0    ")),
    (tarballs.header(length=b"-0000000001\0"), "size '-0000000001", tarballs.header(length=b"00000000001\0")),
    (tarballs.header(length=b"\xff" * 12), "size '.xff", tarballs.header(length=b"777777777777")),
    (tarballs.header(length="٣".encode() * 6), "size '٣", tarballs.header(length=b"3" * 12)),
    (tarballs.header(length=b"\x80" + bytes(10) + b"\5"), "size 5 is in base 256", tarballs.header(length=b"5")),
    (tarballs.header(mtime=b"\xff" * 12), "time '.xff", tarballs.header(mtime=b"77777777777\0")),
    (tarballs.header(mtime=b"\x80" + bytes(11)), "time '.x80", tarballs.header(mtime=b"00000000000 ")),
    (tarballs.header(kind=b"L"), "'L' does not belong into this tar format", tarballs.header(kind=b"L", magic=GNU)),
    (tarballs.header(kind=b"x", magic=GNU), "'x' does not belong", tarballs.header(kind=b"x")),
    (tarballs.header(kind=b"g", magic=GNU), "'g' does not belong", tarballs.header(kind=b"g")),
]


@pytest.mark.parametrize(("refused", "words", "read"), PAIRS, ids=range(len(PAIRS)))
def test_a_header_is_refused_and_its_twin_is_read(refused: bytes, words: str, read: bytes) -> None:
    with pytest.raises(header.Refused, match=words) as refusal:
        header.parse(refused)
    assert "; " in str(refusal.value)
    assert header.parse(read).kind == read[156:157]


def test_a_signed_checksum_is_refused() -> None:
    block = tarballs.header("é".encode())
    unsigned = int(block[148:154], 8)
    signed = unsigned - 2 * 256  # historic tars summed the two bytes above 127 as negative ones
    with pytest.raises(header.Refused, match=f"checksum is {signed}, its bytes give {unsigned}"):
        header.parse(tarballs.header("é".encode(), checksum=b"%06o\0 " % signed))
    assert header.parse(block).name == "é".encode()


def test_a_header_is_read_as_it_is_written() -> None:
    found = header.parse(tarballs.header(b"n" * 100, 5, prefix=b"p" * 155, mode=b"0000755\0"))
    assert found == (b"0", USTAR, b"p" * 155 + b"/" + b"n" * 100, 0o755, 5, 5)
    huge = header.LARGEST_OCTAL + 1
    assert header.parse(tarballs.header(length=b"\x80" + huge.to_bytes(11, "big"), magic=GNU)).size == huge
    assert header.parse(tarballs.header(length=b"77777777777\0")).size == huge - 1


def test_pax_records_are_read() -> None:
    value = "é" * 50 + "\n=x"
    data = tarballs.written({"path": value, "mtime": "-1.5", "SCHILY.xattr.user.数": "=", "uid": ""})
    expected = {b"path": value.encode(), b"mtime": b"-1.5", "SCHILY.xattr.user.数".encode(): b"=", b"uid": b""}
    assert header.records(data, local=True) == expected
    assert header.records(tarballs.written({"hdrcharset": "ISO-IR 10646 2000 UTF-8"}), local=True)
    assert header.records(tarballs.written({"comment": "x"}), local=False) == {b"comment": b"x"}


RECORDS = [
    (b"11 path=a\n", "has a wrong length", b"9 path=a\n"),
    (b"8 path=a\n", "is not '<length> <key>=<value>'", b"9 path=a\n"),
    (b"09 path=a\n", "has a wrong length", b"9 path=a\n"),
    (b"+9 path=a\n", "has a wrong length", b"9 path=a\n"),
    (b"9  path=a\n", "is not", b"9 path=a\n"),
    (b"9\tpath=a\n", "has a wrong length", b"9 path=a\n"),
    (b" 9 path=a\n", "has a wrong length", b"9 path=a\n"),
    (b"9 path=a\n\0", "has a wrong length", b"9 path=a\n"),
    (b"9 path=a\n9", "has a wrong length", b"9 path=a\n8 uid=a\n"),
    (b"9 path=a ", "is not", b"9 path=a\n"),
    (b"9 path a\n", "is not", b"9 path=a\n"),
    (b"5 =a\n", "is not", b"6 b=a\n"),
    (b"3 \n", "has a wrong length", b"5 b=\n"),
    (b"0 b=\n", "has a wrong length", b"5 b=\n"),
    (b"99999999999999999999 b=\n", "has a wrong length", b"5 b=\n"),
    (b"9" * 50, "has a wrong length", b"5 b=\n"),
    (b"9 path=a\n9 path=b\n", "has the key 'path' twice", b"9 path=a\n9 pith=b\n"),
    (b"9 path=\0\n", "has a NUL in it", b"9 path=0\n"),
    (b"9 pa\0h=a\n", "has a NUL in it", b"9 pa0h=a\n"),
    (b"11 size=-1\n", "'size' '-1' is not a decimal", b"11 size=11\n"),
    (b"11 size=01\n", "'size' '01' is not a decimal", b"11 size=10\n"),
    (b"8 size=\n", "'size' '' is not a decimal", b"9 size=0\n"),
    (b"12 size=1e1\n", "'size' '1e1' is not a decimal", b"11 size=11\n"),
    (
        tarballs.written({"GNU.sparse.major": "1"}),
        "'GNU.sparse.major' makes it a sparse",
        tarballs.written({"GNU": "1"}),
    ),
    (tarballs.written({"GNU.dumpdir": "1"}), "sparse or special", tarballs.written({"LIBARCHIVE.creationtime": "1"})),
    (tarballs.written({"SCHILY.realsize": "1"}), "sparse", tarballs.written({"SCHILY.dev": "1"})),
    (tarballs.written({"hdrcharset": "BINARY"}), "asks for 'BINARY'", tarballs.written({"charset": "BINARY"})),
]


@pytest.mark.parametrize(("refused", "words", "read"), RECORDS, ids=range(len(RECORDS)))
def test_a_pax_record_is_refused_and_its_twin_is_read(refused: bytes, words: str, read: bytes) -> None:
    with pytest.raises(header.Refused, match=words):
        header.records(refused, local=True)
    assert header.records(read, local=True)


@pytest.mark.parametrize("key", ["path", "size", "linkpath", "hdrcharset", "GNU.sparse.name"])
def test_what_is_of_one_member_is_not_of_all(key: str) -> None:
    record = tarballs.written({key: "1"})
    with pytest.raises(header.Refused, match=f"'{key}'"):
        header.records(record, local=False)
    assert header.records(record.replace(key.encode(), b"x" * len(key)), local=False)
