"""Fields and extended headers that readers take for different things, or that lie about what follows."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.trainer.bundle.hostile_case import Bundle, Case, Make, start
from tests.unit.trainer.bundle.hostile_tar import (
    BLOCK,
    GNU,
    USTAR,
    Tar,
    base256,
    header,
    octal,
    padded,
    record,
    signed_sum,
)

KIND = "metadata"
FORM = "is not '<length> <key>=<value>'"


def case(name: str, what: str, origin: str, fragments: tuple[str, ...], make: Callable[[Make], Bundle]) -> Case:
    return Case(f"{KIND}-{name}", KIND, what, origin, fragments, make)


def field(make: Make, field: str, hostile: bytes | int, harmless: bytes | int, content: bytes = b"12345678") -> Bundle:
    """One field of a regular file."""
    return make.bundle(start().file("odd", content, **{field: make.pick(hostile, harmless)}))


def local(make: Make, hostile: bytes, harmless: bytes, content: bytes = b"12345678", listed: str = "odd") -> Bundle:
    """One pax header (the bytes of its records) in front of a file."""
    return make.bundle(start().pax(make.pick(hostile, harmless)).file("odd", content, listed=listed))


def world(make: Make, hostile: bytes, harmless: bytes) -> Bundle:
    """One global pax header in front of everything."""
    tar = Tar().pax(make.pick(hostile, harmless), kind=b"g")
    return make.bundle(tar.file("a.txt", b"harmless\n"))


def resized(make: Make) -> Bundle:
    """The header says 0 and a pax header more: who ignores the one or the other finds other members."""
    inner = Tar().file("evil").data
    tar = start().pax(record(b"size", b"%d" % make.pick(len(inner), 512)))
    if make.hostile:
        return make.bundle(tar.expect("odd", inner).member(b"odd", b"", size=0).raw(inner))
    return make.bundle(tar.expect("odd", inner[:512]).member(b"odd", inner[:512]))


def between(make: Make) -> Bundle:
    """A pax size, a GNU long name, a file: whose is the size?"""
    tar = start(GNU)
    tar = (tar.pax(record(b"size", b"2048")) if make.hostile else tar).longname(b"odd")
    return make.bundle(tar.file("short", b"A" * 16, listed="odd").file("b.txt", b"B" * 16))


def names(make: Make, hostile: tuple[bytes, ...], harmless: tuple[bytes, ...], end: bytes = b"\0") -> Bundle:
    """GNU long names in front of a file of the last one's name."""
    tar, came = start(GNU), make.pick(hostile, harmless)
    for name in came:
        tar.longname(name, end if make.hostile else b"\0")
    return make.bundle(tar.file("short", listed=came[-1].decode() if came else "short"))


def checksum(make: Make) -> Bundle:
    """A name with high bytes, where the two sums differ."""
    name = "\u00e9".encode()
    block = header(name, size=2)
    tar = start().expect("\u00e9", b"x\n")
    return make.bundle(tar.raw(header(name, size=2, checksum=signed_sum(block)) if make.hostile else block).raw(
        padded(b"x\n")))  # fmt: skip


def without_member(make: Make, kind: str) -> Bundle:
    """A header about a member that does not come."""
    tar = start(GNU)
    listing = tar.manifest()
    tar.file("SYNC_MANIFEST.sha256", listing)
    if make.hostile:
        tar = tar.pax(record(b"path", b"b")) if kind == "x" else tar.longname(b"b")
    return make.bundle(tar, listing=listing, inside=None, beside=listing)


def twice(make: Make) -> Bundle:
    """Two headers of one kind about one member."""
    first, second = record(b"comment", b"1"), record(b"mtime", b"1")
    tar = start()
    tar = tar.pax(first).pax(second) if make.hostile else tar.pax(first, second)
    return make.bundle(tar.file("odd"))


def ascii_mtime(value: bytes) -> bytes:
    return value.ljust(12, b"\0")


MODES = [
    case("setuid", "a setuid file", "TestExtractionFilters.test_modes", ("'odd'", "setuid"),
         lambda m: field(m, "mode", 0o4755, 0o755)),
    case("setgid", "a setgid file", "TestExtractionFilters.test_modes", ("'odd'", "setgid"),
         lambda m: field(m, "mode", 0o2755, 0o755)),
    case("sticky", "a sticky file", "TestExtractionFilters.test_modes", ("'odd'", "sticky"),
         lambda m: field(m, "mode", 0o1644, 0o644)),
    case("mode-type", "a mode with a file type, which makes it a folder to some", "CWE-436", ("'odd'", "mode"),
         lambda m: field(m, "mode", 0o40755, 0o755)),
    case("mode-digits", "a mode that is not octal", "CWE-20", ("'odd'", "mode"),
         lambda m: field(m, "mode", b"0000698\0", b"0000644\0")),
]  # fmt: skip

NUMBERS = [
    case("size-negative", "a negative size in base 256, at which readers loop", "CVE-2026-59874", ("'odd'", "size"),
         lambda m: field(m, "size", base256(-512, 12), octal(8, 12))),
    case("size-huge", "a size of 8 EiB in base 256", "CPython gh-151497", ("'odd'", "more than"),
         lambda m: m.bundle(start(GNU).file("odd", b"12345678", size=m.pick(base256(1 << 63, 12), 8)))),
    case("size-base256", "a size in base 256 that octal could say", "CWE-436", ("'odd'", "base 256"),
         lambda m: m.bundle(start(GNU).file("odd", b"12345678", size=m.pick(base256(8, 12), 8)))),
    case("size-base256-ustar", "a size in base 256, which ustar does not have", "CWE-436", ("'odd'", "base 256"),
         lambda m: field(m, "size", base256(9 << 30, 12), octal(8, 12))),
    case("size-not-octal", "a size with the digit 8", "CWE-20", ("'odd'", "size"),
         lambda m: field(m, "size", b"00000000008\0", b"00000000010\0")),
    case("size-sign", "a size with a minus sign", "CVE-2025-8194", ("'odd'", "size"),
         lambda m: field(m, "size", b"-0000000010\0", b"00000000010\0")),
    case("size-plus", "a size with a plus sign, which int() takes", "CWE-20", ("'odd'", "size"),
         lambda m: field(m, "size", b"+0000000010\0", b"00000000010\0")),
    case("size-underscore", "a size with an underscore, which int() takes", "CWE-20", ("'odd'", "size"),
         lambda m: field(m, "size", b"00000_00010\0", b"00000000010\0")),
    case("size-hex", "a size as hex", "CWE-20", ("'odd'", "size"),
         lambda m: field(m, "size", b"0x000000008\0", b"00000000010\0")),
    case("size-behind-nul", "digits behind the end of the size", "CWE-20", ("'odd'", "size"),
         lambda m: field(m, "size", b"0000000010\0007", b"0000000010\0\0")),
    case("mtime-not-octal", "a time that is no number", "CWE-20", ("'odd'", "time"),
         lambda m: field(m, "mtime", b"yesterday\0\0\0", octal(1, 12))),
    case("mtime-base256-negative", "a time before 1970 in base 256", "CWE-20", ("'odd'", "time"),
         lambda m: field(m, "mtime", base256(-1, 12), octal(0, 12))),
    case("checksum", "a wrong checksum", "CWE-354", ("checksum",), lambda m: m.bundle(
        start().file("odd", b"", **({"checksum": 7} if m.hostile else {})))),
    case("checksum-signed", "the sum of signed bytes", "SunOS tar", ("checksum",), checksum),
    case("checksum-text", "a checksum that is no number", "CWE-20", ("checksum",), lambda m: m.bundle(
        start().file("odd", b"", **({"checksum": b"what?\0 "} if m.hostile else {})))),
    case("version", "ustar of another version", "CWE-20", ("ustar",),
         lambda m: field(m, "magic", b"ustar\x0001", b"ustar\x0000")),
    case("magic-other", "a magic that is neither", "CWE-20", ("odd",),
         lambda m: field(m, "magic", b"USTAR\x0000", b"ustar\x0000")),
    case("name-behind-nul", "bytes behind the NUL of a name", "CWE-626", ("name", "behind its end"),
         lambda m: m.bundle(start().file(m.pick(b"odd\0/../evil", b"odd"), listed="odd"))),
    case("gnu-fields", "a GNU header with a real size in its extension", "GNU tar", ("'odd'",), lambda m: m.bundle(
        start(GNU).file("odd", prefix=b"\0" * 137 + m.pick(octal(9, 12), b"\0" * 12)))),
    case("gnu-prefix", "a GNU header with a prefix, which some readers put before the name", "CWE-436", ("'odd'",),
         lambda m: m.bundle(start(GNU).file("odd", prefix=m.pick(b"../..", b"")))),
]  # fmt: skip

EXTENDED = [
    case("pax-size-hides", "a pax size over a header with size 0", "CVE-2025-62518",
         ("'odd'", "header's size is 0"), resized),
    case("pax-size-more", "a pax size that is more than the header's", "CVE-2026-33055",
         ("'odd'", "header's size is 8"),
         lambda m: local(m, record(b"size", b"1032"), record(b"size", b"8"))),
    case("pax-size-before-name", "a pax size in front of a long name", "CVE-2026-53655",
         ("'L' behind one of 'x'",), between),
    case("pax-size-negative", "a negative pax size", "CVE-2025-8194", ("record 'size' '-8'",),
         lambda m: local(m, record(b"size", b"-8"), record(b"size", b"8"))),
    case("pax-size-underscore", "a pax size as only int() reads it", "CWE-20", ("record 'size' '0_8'",),
         lambda m: local(m, record(b"size", b"0_8"), record(b"size", b"8"))),
    case("pax-size-digits", "a pax size in Arabic digits, which int() takes", "CWE-20",
         ("record 'size'", "not a decimal number"),
         lambda m: local(m, record(b"size", "\u0668".encode()), record(b"size", b"8"))),
    case("pax-size-space", "a pax size with a space in front", "CWE-20", ("record 'size' ' 8'",),
         lambda m: local(m, record(b"size", b" 8"), record(b"size", b"8"))),
    case("pax-path-empty", "a pax name that is deleted", "CWE-436", ("empty",),
         lambda m: local(m, record(b"path", b""), record(b"path", b"odd"))),
    case("pax-path-nul", "NUL in a pax name", "CVE-2001-1268", ("'path'", "NUL"),
         lambda m: local(m, record(b"path", b"odd\0/../x"), record(b"path", b"odd"))),
    case("pax-comment-nul", "NUL in another value", "CWE-626", ("'comment'", "NUL"),
         lambda m: local(m, record(b"comment", b"a\0b"), record(b"comment", b"a b"))),
    case("pax-linkpath", "a link's target in a pax header", "CVE-2025-4138", ("linkpath",),
         lambda m: local(m, record(b"linkpath", b"../x"), record(b"linkname", b"../x"))),
    case("pax-charset", "another character set", "POSIX.1-2001", ("hdrcharset",),
         lambda m: local(m, record(b"hdrcharset", b"BINARY"), record(b"hdrcharset", b"ISO-IR 10646 2000 UTF-8"))),
    case("pax-duplicate", "one key twice", "CVE-2026-33055", ("path", "twice"),
         lambda m: local(m, record(b"path", b"b") + record(b"path", b"odd"), record(b"path", b"odd"))),
    case("pax-duplicate-size", "two sizes", "CVE-2026-33055", ("size", "twice"),
         lambda m: local(m, record(b"size", b"8") + record(b"size", b"9"),
                         record(b"size", b"8") + record(b"sine", b"9"))),
    case("pax-length-zero", "a record of length 0, at which readers loop", "CVE-2019-20907",
         ("record '0 path", "wrong length"),
         lambda m: local(m, b"0 path=b\n", record(b"path", b"odd"), listed="odd")),
    case("pax-length-short", "a length that cuts a record", "CVE-2019-20907", ("record '10 path=od'", FORM),
         lambda m: local(m, b"10 path=odd\n", b"12 path=odd\n")),
    case("pax-length-long", "a length beyond the header", "CVE-2019-20907", ("record '99 path", "wrong length"),
         lambda m: local(m, b"99 path=odd\n", b"12 path=odd\n")),
    case("pax-length-sign", "a length with a sign", "CWE-20", ("record '+13 path", "wrong length"),
         lambda m: local(m, b"+13 path=odd\n", b"12 path=odd\n")),
    case("pax-length-zeros", "a length with zeros in front", "CWE-20", ("record '0014 path", "wrong length"),
         lambda m: local(m, b"0014 path=odd\n", b"12 path=odd\n")),
    case("pax-length-none", "records without a length", "CWE-20", ("record 'path", "wrong length"),
         lambda m: local(m, b"path=odd\n", b"12 path=odd\n")),
    case("pax-no-equals", "a record without a value", "CWE-20", ("record '8 path", FORM),
         lambda m: local(m, b"8 path\n\n", b"12 path=odd\n")),
    case("pax-no-newline", "a record that is not ended", "CWE-20", ("record '12 path=oddx'", FORM),
         lambda m: local(m, b"12 path=oddx", b"12 path=odd\n")),
    case("pax-no-key", "a record without a key", "CWE-20", ("record '7 =odd", FORM),
         lambda m: local(m, record(b"", b"odd"), record(b"comment", b"odd"))),
    case("pax-empty", "a pax header without a record", "CWE-20", ("header of 0 bytes",),
         lambda m: local(m, b"", record(b"comment", b"odd"))),
    case("pax-behind", "bytes behind the records", "CWE-436", ("record", "wrong length"),
         lambda m: local(m, record(b"path", b"odd") + b"\0\0\0", record(b"path", b"odd"))),
    case("pax-twice", "two pax headers about one member", "CWE-436", ("'x' behind one of 'x'",), twice),
    case("pax-alone", "a pax header at the end", "CWE-436", ("ends behind a header without its member",),
         lambda m: without_member(m, "x")),
    case("pax-and-long", "a pax name and a GNU long name, which readers rank differently", "CWE-436",
         ("'x' behind one of 'L'",), lambda m: m.bundle((start(GNU) if m.hostile else start()).raw(
             Tar().longname(b"other").data if m.hostile else b"").pax(record(b"path", b"odd")).file(
             "short", listed="odd"))),
    case("global-between", "a global header between a pax header and its member", "GHSA-3cv2-h65g-fgmm",
         ("'g' behind one of 'x'",), lambda m: m.bundle(start().raw(m.pick(
             Tar().pax(record(b"path", b"odd")).pax(record(b"comment", b"c"), kind=b"g").data,
             Tar().pax(record(b"comment", b"c"), kind=b"g").pax(record(b"path", b"odd")).data)).file(
             "short", listed="odd"))),
    case("pax-in-gnu", "a pax header in a GNU header", "CWE-436", ("type 'x'", "tar format"),
         lambda m: m.bundle(start().pax(record(b"path", b"odd"), magic=m.pick(GNU, USTAR)).file("s", listed="odd"))),
    case("long-in-ustar", "a GNU long name in a ustar header", "CWE-436", ("type 'L'", "tar format"),
         lambda m: m.bundle(start(GNU).longname(b"odd", magic=m.pick(USTAR, GNU)).file("s", listed="odd"))),
    case("global-path", "a global name", "CWE-436", ("path", "global"),
         lambda m: world(m, record(b"path", b"b"), record(b"pith", b"b"))),
    case("global-size", "a global size", "CVE-2025-62518", ("size", "global"),
         lambda m: world(m, record(b"size", b"9"), record(b"sine", b"9"))),
    case("global-linkpath", "a global link target", "CVE-2025-4138", ("linkpath", "global"),
         lambda m: world(m, record(b"linkpath", b"/etc/passwd"), record(b"linkname", b"/etc/passwd"))),
    case("global-sparse", "a global sparse map", "CVE-2025-58183", ("'GNU.sparse.map'", "sparse"),
         lambda m: world(m, record(b"GNU.sparse.map", b"0,9"), record(b"GNX.sparse.map", b"0,9"))),
    case("global-charset", "a global character set", "CWE-436", ("hdrcharset", "global"),
         lambda m: world(m, record(b"hdrcharset", b"BINARY"), record(b"hdrcharged", b"BINARY"))),
    case("long-alone", "a GNU long name at the end", "CWE-436", ("ends behind a header without its member",),
         lambda m: without_member(m, "L")),
    case("long-twice", "two GNU long names about one member", "CWE-436", ("'L' behind one of 'L'",),
         lambda m: names(m, (b"other", b"odd"), (b"odd",))),
    case("long-open", "a GNU long name without its NUL", "CWE-170", ("long name", "NUL"),
         lambda m: names(m, (b"odd",), (b"odd",), end=b"")),
    case("long-nul-inside", "bytes behind the NUL of a long name", "CWE-626", ("long name", "NUL"),
         lambda m: names(m, (b"odd",), (b"odd",), end=b"\0/../evil\0")),
    case("long-empty", "a GNU long name without content", "CWE-20", ("header of 0 bytes",), lambda m: m.bundle(
        start(GNU).longname(m.pick(b"", b"odd"), m.pick(b"", b"\0")).file("short", listed=m.pick("short", "odd")))),
    case("padding", "content behind a file's end in its last block", "CWE-506", ("'odd'", "padding"),
         lambda m: m.bundle(start().file("odd", filler=m.pick(b"\xcc", b"\0")))),
    case("pax-padding", "content behind the records of a pax header", "CWE-506", ("padding",),
         lambda m: m.bundle(start().pax(record(b"comment", b"c"), filler=m.pick(b"\xcc", b"\0")).file("odd"))),
    case("size-claims-next", "a size that takes in the next members", "CVE-2025-62518", ("'odd'", "the archive ends"),
         lambda m: m.bundle(start().file("odd", b"x" * 8, size=m.pick(8 + 64 * BLOCK, 8)))),
]  # fmt: skip

CASES = MODES + NUMBERS + EXTENDED
