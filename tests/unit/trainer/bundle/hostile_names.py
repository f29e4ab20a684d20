"""Names that leave the tree, that a terminal or another system reads differently, or that collide."""

from __future__ import annotations

from tests.unit.trainer.bundle.hostile_case import Bundle, Case, Make, start
from tests.unit.trainer.bundle.hostile_tar import GNU, record

KIND = "names"
DEEP = "/".join("d" * 32)
LONG = "/".join(["d" * 99] * 10)  # 999 bytes
DOTDOT = "the component '..'"
PATH_MAX = "/".join(["d" * 250] * 17)


def pax(make: Make, hostile: bytes, harmless: bytes) -> Bundle:
    """The name comes in a pax header; the ustar field holds another."""
    name = make.pick(hostile, harmless)
    tar = start().pax(record(b"path", name)).file("short", listed=name.decode("utf-8", "replace"))
    return make.bundle(tar)


def long(make: Make, hostile: bytes, harmless: bytes) -> Bundle:
    """The name comes in a GNU long name."""
    name = make.pick(hostile, harmless)
    tar = start(GNU).longname(name).file("short", listed=name.decode("utf-8", "replace"))
    return make.bundle(tar)


def two(make: Make, first: str, hostile: str, harmless: str, **fields: bytes | int) -> Bundle:
    """Two files that are fine each on its own."""
    return make.bundle(start().file(first).file(make.pick(hostile, harmless), b"y\n", **fields))


def prefixed(make: Make, hostile: str, harmless: str) -> Bundle:
    """The folder comes in the ustar prefix."""
    prefix = make.pick(hostile, harmless)
    return make.bundle(start().file("b", listed=f"{prefix}/b", prefix=prefix.encode()))


def case(
    name: str, what: str, origin: str, fragments: tuple[str, ...], hostile: str | bytes, harmless: str | bytes
) -> Case:
    """A case of one name in the ustar field where it fits, else in a pax header. OUT is the folder with canaries."""

    def made(make: Make) -> Bundle:
        texts = (text.encode() if isinstance(text, str) else text for text in (hostile, harmless))
        raw, twin = (text.replace(b"OUT", make.outside[1:].encode()) for text in texts)
        is_long = max(len(raw), len(twin)) > 100 or b"\0" in raw
        return pax(make, raw, twin) if is_long else make.one(raw, twin)

    return Case(f"{KIND}-{name}", KIND, what, origin, fragments, made)


OUT = [
    case("dotdot-first", "`../` in front", "CVE-2007-4559", ("'../escaped'", DOTDOT), "../escaped", "..escaped"),
    case("dotdot-sly", "a folder that is there, then out", "TestExtractionFilters.test_sly_relative2",
         ("'tmp/../../moo'", DOTDOT), "tmp/../../moo", "tmp/.../moo"),
    case("dotdot-inside", "`..` that stays inside", "CVE-2026-19672", ("'a/../b'", DOTDOT), "a/../b", "a/...b"),
    case("dotdot-return", "out and back in by the folder's name", "CVE-2026-19672",
         ("'../evil/../project/f'", DOTDOT), "../evil/../project/f", "evil/project/f"),
    case("dotdot-behind-dot", "`./../`, which a look at the start misses", "CVE-2007-4559",
         ("'./../escaped'", DOTDOT), "./../escaped", "./escaped"),
    case("dotdot-deep", "far enough up to reach the root", "CVE-2007-4559", (DOTDOT,),
         "../" * 20 + "OUT/escaped", "x../" * 20 + "OUT/escaped"),
    case("dotdot-drive", "a drive in front", "CVE-2021-37713",
         ("'C:/../escaped'", DOTDOT), "C:/../escaped", "C:/.../e"),
    case("absolute-double", "two slashes in front", "CVE-2021-32804", ("'//", "/escaped' is absolute"),
         "//OUT/escaped", "OUT/escaped"),
    case("absolute-behind-dot", "absolute when `./` is taken off", "CVE-2021-32804", ("'.//", "/escaped' is absolute"),
         ".//OUT/escaped", "./OUT/escaped"),
    case("absolute", "an absolute name", "TestExtractionFilters.test_absolute", ("'/", "/escaped' is absolute"),
         "/OUT/escaped", "OUT/escaped"),
    case("backslash", "Windows separators", "CVE-2021-37713", (r"a\\..\\escaped", "backslash"),
         r"a\..\escaped", "a...escaped"),
    case("nul", "NUL, where C ends the name", "CVE-2001-1268", ("NUL",), b"b.txt\0.sh", b"b.txt.sh"),
    case("newline", "a newline, which splits a listing's line", "CVE-2016-6321", ("control character",), "a\nb", "a_b"),
    case("return", "a carriage return, which hides what was printed", "CWE-150",
         ("control character",), "evil\rgood", "evil_good"),
    case("tab", "a tab, which splits columns", "CWE-150", ("control character",), "a\tb", "a_b"),
    case("escape", "a terminal's escape sequence", "CWE-150", ("control character",), "\x1b[2Jb", "_[2Jb"),
    case("delete", "the DEL character", "CWE-150", ("control character",), "a\x7f", "a~"),
    case("c1", "a control character beyond ASCII (U+009B)", "CWE-150", ("control character",), "a\x9b2Jb", "a\xa12Jb"),
    case("bidi", "text that runs backwards", "CVE-2021-42574", ("U+202E",), "a\u202egpj.sh", "a\u2020gpj.sh"),
    case("isolate", "a bidi isolate", "CVE-2021-42574", ("U+2066",), "a\u2066b", "a\u2070b"),
    case("zero-width", "a character without width", "CWE-451", ("U+200B",), "a\u200bb", "a\u2010b"),
    case("line-separator", "a line separator of Unicode", "CWE-150", ("U+2028",), "a\u2028b", "a\u2022b"),
    case("bom", "a byte order mark in front", "CWE-451", ("U+FEFF",), "\ufeffb", "\ufe4fb"),
    case("noncharacter", "a code point that is no character", "CWE-176", ("U+FFFE",), "a\ufffe", "a\ufffd"),
    case("latin1", "Latin-1 instead of UTF-8", "BagIt: ISO-8859-1-encoded-tag-files", ("UTF-8",),
         b"caf\xe9", b"caf\xc3\xa9"),
    case("overlong", "an overlong `../`", "CVE-2000-0884",
         ("UTF-8",), b"\xc0\xae\xc0\xae\xc0\xafb", b"\xc2\xae\xc2\xaeb"),
    case("surrogate", "half of a surrogate pair", "CWE-176", ("UTF-8",), b"a\xed\xa0\x80", b"a\xed\x9f\xbb"),
    case("long-part", "a part of 256 bytes", "CVE-2025-4517", ("255",), "d" * 256, "d" * 255),
    case("long", "a name of 1001 bytes", "CVE-2025-4517", ("1000",), LONG + "/d", LONG + "d"),
    case("path-max", "a name longer than PATH_MAX", "CVE-2025-4517", ("1000",), PATH_MAX, PATH_MAX[:752]),
    case("deep", "33 levels", "CWE-674", ("32",), DEEP + "/f", DEEP),
    case("empty-part", "an empty part", "CWE-22", ("'a//b'", "empty"), "a//b", "a/_/b"),
    case("dot-part", "a part `.`", "CWE-22", ("'a/./b'", "the component '.'"), "a/./b", "a/.b"),
    case("dot-twice", "`././` in front", "CWE-22", ("'././b'", "the component '.'"), "././b", "./.b"),
    case("dot", "a file that is the root folder", "CVE-2024-12718", ("'.'",), ".", "._"),
    case("reserved", "the record that a release says of itself", "this project", (".source.json",),
         ".source.json", "source.json"),
    case("reserved-case", "the same in capitals", "this project", (".Source.JSON",), ".Source.JSON", "d/.Source.JSON"),
]  # fmt: skip

WAYS = [
    Case("names-pax-dotdot", KIND, "`..` in a pax header behind a harmless ustar name", "CVE-2007-4559",
         ("'../escaped'", DOTDOT), lambda make: pax(make, b"../escaped", b"..escaped")),
    Case("names-pax-absolute", KIND, "absolute in a pax header", "CVE-2021-32804", ("/escaped' is absolute",),
         lambda make: pax(make, f"{make.outside}/escaped".encode(), f"{make.outside[1:]}/escaped".encode())),
    Case("names-long-dotdot", KIND, "`..` in a GNU long name behind a harmless one", "CVE-2007-4559",
         ("'a/../../escaped'", DOTDOT), lambda make: long(make, b"a/../../escaped", b"a/.../escaped")),
    Case("names-long-absolute", KIND, "absolute in a GNU long name", "CVE-2021-32804", ("/escaped' is absolute",),
         lambda make: long(make, f"{make.outside}/escaped".encode(), f"{make.outside[1:]}/escaped".encode())),
    Case("names-prefix-dotdot", KIND, "`..` in the ustar prefix", "CVE-2007-4559", ("'../b'", DOTDOT),
         lambda make: prefixed(make, "..", "...")),
    Case("names-prefix-absolute", KIND, "absolute by the ustar prefix", "CVE-2021-32804", ("/b' is absolute",),
         lambda make: prefixed(make, make.outside, make.outside[1:])),
    Case("names-folder-dotdot", KIND, "a folder `..`", "CVE-2024-12718", ("'a/../'", DOTDOT),
         lambda make: make.bundle(start().folder(make.pick("a/../", "a/.../")))),
    Case("names-empty", KIND, "no name at all", "CPython gh-149486", ("'' is empty",),
         lambda make: make.one("", "b")),
    Case("names-file-slash", KIND, "a file whose name ends like a folder's", "CVE-2025-13462",
         ("'b/' ends with a slash",),
         lambda make: make.one("b/", "b")),
    Case("names-old-file-slash", KIND, "a V7 folder: type NUL and a trailing slash", "CVE-2025-13462",
         ("'b/' ends with a slash",),
         lambda make: make.one("b/", "b", type=b"\0")),
    Case("names-twice", KIND, "one name twice: the second replaces the first", "CVE-2026-5704", ("'b.txt'", "twice"),
         lambda make: two(make, "b.txt", "b.txt", "c.txt")),
    Case("names-twice-dot", KIND, "one name with and without `./`", "CVE-2026-5704", ("'b.txt'", "twice"),
         lambda make: two(make, "b.txt", "./b.txt", "./c.txt")),
    Case("names-case", KIND, "equal but for case", "CVE-2021-37712", ("b.txt", "B.txt", "case or Unicode form"),
         lambda make: two(make, "b.txt", "B.txt", "C.txt")),
    Case("names-case-folder", KIND, "folders equal but for case", "CVE-2021-37701", ("case or Unicode form",),
         lambda make: two(make, "dir/b", "DIR/c", "DIRS/c")),
    Case("names-normal-form", KIND, "equal but for the Unicode form",
         "BagIt: same-filename-listed-twice-with-different-normalization",
         (r"'cafe\u0301'", "case or Unicode form"), lambda make: two(make, "caf\u00e9", "cafe\u0301", "cafe_")),
    Case("names-sharp-s", KIND, "equal when folded: ß and ss", "CVE-2026-23950", ("case or Unicode form",),
         lambda make: two(make, "stra\u00dfe", "strasse", "strase")),
    Case("names-kelvin", KIND, "equal when folded: the Kelvin sign and k", "CVE-2021-37712", ("case or Unicode form",),
         lambda make: two(make, "5k", "5\u212a", "5\u212b")),
    Case("names-ligature", KIND, "equal when folded: a ligature", "CVE-2026-23950", ("case or Unicode form",),
         lambda make: two(make, "file", "\ufb01le", "\ufb02le")),
    Case("names-file-then-below", KIND, "a file that is the folder of another", "CVE-2021-37701",
         ("'b'", "a file and a folder"),
         lambda make: two(make, "b", "b/c", "c/c")),
    Case("names-below-then-file", KIND, "the same in the other order", "CVE-2021-37701", ("'b'", "a file and a folder"),
         lambda make: two(make, "b/c", "b", "c")),
    Case("names-file-and-folder", KIND, "a file and a folder of one name", "CVE-2026-33056", ("'b/'", "twice"),
         lambda make: make.bundle(start().file("b").folder(make.pick("b/", "c/")))),
    Case("names-folder-and-file", KIND, "the same in the other order", "CVE-2026-33056", ("'b'", "twice"),
         lambda make: make.bundle(start().folder("b/").file(make.pick("b", "c")))),
]  # fmt: skip

CASES = OUT + WAYS
