"""What is around the members: gzip, end blocks, and what comes behind them; and bombs against small caps."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable

from tests.unit.trainer.bundle.hostile_case import END, Bundle, Case, Make, start
from tests.unit.trainer.bundle.hostile_tar import BLOCK, GNU, Tar, base256, deflated, gzipped, record

BLOCKED = b"\0" * (20 * BLOCK)  # as GNU tar fills its last record


def case(
    name: str, what: str, origin: str, fragments: tuple[str, ...], make: Callable[[Make], Bundle], **caps: int
) -> Case:
    kind = name.partition("-")[0]
    return Case(name, kind, what, origin, fragments, make, caps)


def packed(make: Make, hostile: Callable[[bytes], bytes]) -> Bundle:
    """The archive in another wrapping than one whole gzip member."""
    return make.bundle(start().file("b", b"12345678" * 99), pack=make.pick(hostile, gzipped))


def cut(make: Make, keep: Callable[[int], int]) -> Bundle:
    return packed(make, lambda data: gzipped(data)[: keep(len(gzipped(data)))])


def ended(make: Make, hostile: bytes, harmless: bytes = END) -> Bundle:
    """What comes behind the last member."""
    return make.bundle(start(), end=make.pick(hostile, harmless))


def evil() -> bytes:
    """An archive of its own."""
    return Tar().file("evil").data + END


def parted(make: Make) -> Bundle:
    """A zero block between two members: who stops there does not see the second."""
    tar = start().raw(b"\0" * (BLOCK if make.hostile else 0)).file("b")
    return make.bundle(tar)


def shortened(make: Make, blocks: int, more: int = 0, before: bytes = b"", size: int = 5 * BLOCK) -> Bundle:
    """An archive that is cut in its middle, packed right."""
    tar = start().raw(before).file("b", b"x" * size)
    return make.bundle(tar, pack=lambda data: gzipped(data[: blocks * BLOCK + more] if make.hostile else data))


FRAMING = [
    case("framing-crc", "a wrong CRC", "CWE-354", ("damaged",), lambda m: packed(m, lambda d: gzipped(d, crc=1))),
    case("framing-length", "a wrong length", "CWE-354", ("damaged",),
         lambda m: packed(m, lambda d: gzipped(d, length=1))),
    case("framing-flags", "reserved flags", "RFC 1952 2.3.1.2", ("gzip",),
         lambda m: packed(m, lambda d: gzipped(d, flags=0x20))),
    case("framing-method", "another method than deflate", "RFC 1952 2.3.1", ("gzip",),
         lambda m: packed(m, lambda d: gzipped(d, method=7))),
    case("framing-header-crc", "a wrong CRC of gzip's header", "RFC 1952 2.3.1.2", ("gzip",),
         lambda m: packed(m, lambda d: gzipped(d, flags=2, more=b"??"))),
    case("framing-open-name", "a file name in gzip's header that does not end", "RFC 1952 2.3.1.2", ("gzip",),
         lambda m: m.bundle(start(), archive=m.pick(b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"n" * 99, None))),
    case("framing-empty", "an empty file", "CWE-20", ("ends before",), lambda m: packed(m, lambda d: b"")),
    case("framing-cut-header", "cut in gzip's header", "CWE-354", ("ends before",), lambda m: cut(m, lambda n: 7)),
    case("framing-cut-data", "cut in the middle", "CWE-354", ("ends before",), lambda m: cut(m, lambda n: n // 2)),
    case("framing-cut-crc", "cut before the CRC", "CWE-354", ("ends before",), lambda m: cut(m, lambda n: n - 8)),
    case("framing-cut-last", "the last byte is missing", "CWE-354", ("ends before",),
         lambda m: cut(m, lambda n: n - 1)),
    case("framing-second-member", "a second gzip member with an archive", "CWE-436", ("second gzip member",),
         lambda m: packed(m, lambda d: gzipped(d) + gzipped(evil()))),
    case("framing-split", "one archive in two gzip members", "CWE-436", ("second gzip member",),
         lambda m: packed(m, lambda d: gzipped(d[:BLOCK]) + gzipped(d[BLOCK:]))),
    case("framing-garbage", "bytes behind gzip's end", "CWE-506", ("behind the end of its gzip",),
         lambda m: packed(m, lambda d: gzipped(d) + b"garbage")),
    case("framing-zeros", "zeros behind gzip's end", "CWE-436", ("behind the end of its gzip",),
         lambda m: packed(m, lambda d: gzipped(d) + b"\0" * 512)),
    case("framing-zlib", "zlib instead of gzip", "CWE-436", ("gzip",), lambda m: packed(m, zlib.compress)),
    case("framing-deflate", "raw deflate", "CWE-436", ("gzip",), lambda m: packed(m, deflated)),
    case("framing-bzip2", "bzip2", "CWE-436", ("gzip",), lambda m: packed(m, bz2.compress)),
    case("framing-xz", "xz", "CWE-436", ("gzip",), lambda m: packed(m, lzma.compress)),
    case("framing-plain", "not compressed", "CWE-436", ("gzip",), lambda m: packed(m, bytes)),
    case("framing-twice", "compressed twice", "CWE-436", ("end blocks",),
         lambda m: packed(m, lambda d: gzipped(gzipped(d)))),
    case("framing-no-archive", "gzip around nothing", "CWE-20", ("end blocks",),
         lambda m: packed(m, lambda d: gzipped(b""))),
    case("framing-no-end", "no end blocks", "CWE-354", ("end blocks",), lambda m: ended(m, b"")),
    case("framing-one-end", "one end block", "POSIX.1-2001", ("end block",), lambda m: ended(m, END[BLOCK:])),
    case("framing-half-block", "zeros that are no whole block behind the end", "POSIX.1-2001", ("whole blocks",),
         lambda m: ended(m, END + b"\0" * 100)),
    case("framing-zero-block", "a zero block between members", "CVE-2026-5704", ("end block",), parted),
    case("framing-after-end", "data behind the end blocks", "CWE-506", ("behind the end blocks",),
         lambda m: ended(m, END + b"evil".ljust(BLOCK, b"\0"))),
    case("framing-second-archive", "an archive behind the end blocks", "CVE-2026-5704", ("behind the end blocks",),
         lambda m: ended(m, END + evil())),
    case("framing-archive-in-padding", "an archive in what fills the last record", "CVE-2026-5704",
         ("behind the end blocks",), lambda m: ended(m, END + b"\0" * BLOCK * 8 + evil(), BLOCKED)),
    case("framing-last-bit", "one bit in the last block", "CWE-506", ("behind the end blocks",),
         lambda m: ended(m, BLOCKED[:-1] + b"\1", BLOCKED)),
    case("framing-cut-in-header", "an archive cut in a header, packed right", "CWE-354", ("end blocks",),
         lambda m: shortened(m, 2, 200)),
    case("framing-cut-behind-header", "an archive cut behind a header", "CWE-354", ("'b'", "ends"),
         lambda m: shortened(m, 3)),
    case("framing-cut-in-content", "an archive cut in a file's content", "CWE-354", ("'b'", "ends"),
         lambda m: shortened(m, 5, 17)),
    case("framing-cut-in-padding", "an archive cut in what fills a file's last block", "CWE-354",
         ("'b'", "ends within the padding"), lambda m: shortened(m, 3, 99, size=17)),
    case("framing-cut-in-metadata", "an archive cut in a pax header", "CWE-354", ("ends within a header",),
         lambda m: shortened(m, 3, 7, before=Tar().pax(record(b"comment", b"by hand")).data)),
    case("framing-cut-between", "an archive cut between two members", "CWE-354", ("end blocks",),
         lambda m: shortened(m, 8)),
]  # fmt: skip


def many(make: Make, hostile: int, harmless: int, folders: bool = False, before: bytes = b"") -> Bundle:
    tar = start()
    for number in range(make.pick(hostile, harmless)):
        tar.raw(before)
        tar = tar.folder(f"d{number}/") if folders else tar.file(f"f{number}", b"")
    return make.bundle(tar)


def implied(make: Make) -> Bundle:
    """Files in folders of their own, which are no members."""
    tar = start()
    for number in range(60):
        tar.file(make.pick(f"d{number}/f", f"d/f{number}"), b"")
    return make.bundle(tar)


def filled(make: Make, hostile: int, harmless: int) -> Bundle:
    return make.bundle(start().file("odd", b"\0" * make.pick(hostile, harmless)))


def commented(make: Make, hostile: int, harmless: int) -> Bundle:
    return make.bundle(start().pax(record(b"comment", b"c" * make.pick(hostile, harmless))).file("odd"))


def claimed(make: Make, size: bytes | int) -> Bundle:
    """A file that says it is larger than the archive."""
    return make.bundle(start(GNU).file("odd", b"12345678", size=make.pick(size, 8)))


MEGABYTE = 1 << 20
SIZES = [
    case("sizes-bytes", "one file that unpacks to more than allowed", "CVE-2026-59873", ("'odd'", "in all"),
         lambda m: filled(m, 3 * MEGABYTE, MEGABYTE), bytes=2 * MEGABYTE),
    case("sizes-bytes-together", "files that do so together", "CVE-2026-59873", ("'c'", "in all"),
         lambda m: m.bundle(start().file("b", b"\0" * MEGABYTE).file("c", b"\0" * m.pick(MEGABYTE, 9))),
         bytes=2 * MEGABYTE),
    case("sizes-zeros-behind", "endless zeros behind the end blocks", "CVE-2026-59873", ("padding",),
         lambda m: ended(m, b"\0" * 18 * MEGABYTE, b"\0" * MEGABYTE)),
    case("sizes-headers", "metadata headers without end", "CVE-2026-59873", ("in all",),
         lambda m: many(m, 300, 9, before=Tar().pax(record(b"comment", b"c" * 9000)).data), bytes=2 * MEGABYTE),
    case("sizes-files", "more files than allowed", "CWE-400", ("more than 50",), lambda m: many(m, 60, 40), files=50),
    case("sizes-folders", "more folders than allowed", "CWE-400", ("more than 50",),
         lambda m: many(m, 60, 40, folders=True), files=50),
    case("sizes-implied-folders", "more folders than allowed, none of which is a member", "CWE-400", ("more than 90",),
         implied, files=90),
    case("sizes-pax-header", "a pax header larger than allowed", "CPython gh-151497", ("header", "2000"),
         lambda m: commented(m, 2500, 1500), header_bytes=2000),
    case("sizes-long-name", "a long name larger than allowed", "CPython gh-151497", ("header", "600"),
         lambda m: m.bundle(start(GNU).longname(b"/".join([b"d" * 99] * m.pick(7, 5))).file(
             "short", listed="/".join(["d" * 99] * m.pick(7, 5)))), header_bytes=600),
    case("sizes-long-name-claimed", "a long name that claims a gigabyte", "CPython gh-151497", ("header", "65536"),
         lambda m: m.bundle(start(GNU).longname(b"odd", **({"size": 1 << 30} if m.hostile else {})).file(
             "short", listed="odd"))),
    case("sizes-pax-claimed", "a pax header that claims 8 EiB in base 256", "CPython gh-151497",
         ("header of 9223372036854775808 bytes",),
         lambda m: m.bundle(start().pax(record(b"comment", b"c"), **(
             {"size": base256(1 << 63, 12)} if m.hostile else {})).file("odd"))),
    case("sizes-manifest", "a manifest larger than allowed", "CWE-400", ("'SYNC_MANIFEST.sha256'", "5000"),
         lambda m: many(m, 80, 40), manifest_bytes=5000),
    case("sizes-claimed", "a file that claims more than there is", "CVE-2025-62518", ("'odd'", "ends"),
         lambda m: claimed(m, MEGABYTE)),
    case("sizes-claimed-huge", "a file that claims 100 GiB in base 256", "CPython gh-151497", ("'odd'", "in all"),
         lambda m: claimed(m, base256(100 << 30, 12))),
    case("sizes-claimed-octal", "a file that claims all that octal can say", "CWE-400", ("'odd'", "ends"),
         lambda m: claimed(m, b"77777777777\0")),
]  # fmt: skip

CASES = FRAMING + SIZES
