"""Bundles that look odd and are harmless: what older scripts, other tars and other people's names bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.unit.trainer.bundle.hostile_case import BESIDE, INSIDE, NAME, OLD, OUTER, Bundle, Link, Make, start
from tests.unit.trainer.bundle.hostile_outer import renamed
from tests.unit.trainer.bundle.hostile_tar import BLOCK, GNU, Tar, base256, digest, gzipped, octal, record


class Layout(NamedTuple):
    """A bundle that is accepted. `lines`: what its warnings must hold."""

    name: str
    what: str
    origin: str
    make: Callable[[Make], Bundle]
    lines: tuple[str, ...] = ()
    without_sha256: bool = False


def old(make: Make, line: bytes = b"%s  ./%s\n", algorithm: str = "sha256", mtime: int = 1_600_000_000) -> Bundle:
    """As `tar -czf x.tar.gz .` makes it: `./` everywhere, folders, own users, the manifest somewhere inside."""
    tar = Tar(GNU)
    own: dict[str, bytes | int] = {"uid": 1000, "gid": 1000, "uname": b"user", "gname": b"users", "mtime": mtime}
    tar.folder("./", **own).folder("./data/", **own, mode=0o2775).file("./data/rows.jsonl", b"{}\n", **own)
    tar.folder("./empty/", **own).file("./run.sh", b"#!/bin/sh\n", **{**own, "mode": 0o755})
    name = "./data/" + "/".join(["d" * 60] * 3) + "/long.txt"
    tar.longname(name.encode()).file(name[:100].encode(), b"long\n", listed=name, **own)
    tar.folder("./文档/", **own).file("./文档/说明 (1).txt", "好\n".encode(), **own)
    return make.bundle(tar, listing=tar.manifest(line, algorithm), inside=f"./{OLD}", end=b"\0" * BLOCK * 20)


def beside_only(make: Make, inside: str | None = None) -> Bundle:
    """The new manifest lies beside alone."""
    tar = start()
    return make.bundle(tar, inside=inside, beside=tar.manifest())


def both(make: Make) -> Bundle:
    """An old manifest is a file as any other when there is a new one."""
    tar = start()
    return make.bundle(tar.file(OLD, b"whatever\n"))


def outer(make: Make, line: bytes) -> Bundle:
    found = make.bundle(start())
    archive = found.files[NAME]
    assert isinstance(archive, bytes)
    return Bundle({**found.files, OUTER: line.replace(b"@", digest(archive)).replace(b"^", digest(archive).upper())},
                  found.tree)  # fmt: skip


def without_outer(make: Make) -> Bundle:
    found = make.bundle(start())
    return Bundle({name: part for name, part in found.files.items() if name != OUTER}, found.tree)


def linked(make: Make) -> Bundle:
    """The files that the user names are links to regular files."""
    found = make.bundle(start())
    files = {f"real.{name}": part for name, part in found.files.items()}
    return Bundle({**files, **{name: Link(f"real.{name}") for name in found.files}}, found.tree)


def pax(make: Make, *records: bytes) -> Bundle:
    return make.bundle(start().pax(*records).file("odd", b"12345678"))


def listing(make: Make, line: bytes, name: str = "b.txt") -> Bundle:
    tar = start().file(name, b"y\n")
    return make.bundle(tar, listing=tar.manifest(line))


ODD_NAMES = (
    "~/x", "~root/x", "$HOME", "`id`", "-rf", "--checkpoint-action=exec=sh", "*", "a b", "%41", "CON", "a:b", "a;b",
    "'quoted'", '"', "123456", "._a", ".git/config", "文档", "e\u0301", "\u1e9e", "🙂", "a/.source.json", "...",
    "a\u00a0b",
)  # fmt: skip


def odd_names(make: Make) -> Bundle:
    tar = start()
    for name in ODD_NAMES:
        tar.file(name, b"")
    return make.bundle(tar)


LAYOUTS = [
    Layout("old-sha256", "the old layout with sha256sum's listing", "older scripts", old),
    Layout("old-sha256-plain", "names without `./` in the listing", "older scripts", lambda m: old(m, b"%s  %s\n")),
    Layout("old-binary", "the listing in binary mode", "shasum -b", lambda m: old(m, b"%s *./%s\n")),
    Layout("old-sha1", "the listing with sha1", "shasum", lambda m: old(m, algorithm="sha1"), ("sha1",)),
    Layout("old-sha1-binary", "sha1 in binary mode", "shasum -b", lambda m: old(m, b"%s *%s\n", "sha1"), ("sha1",)),
    Layout("old-time", "times of 1970", "SOURCE_DATE_EPOCH=0", lambda m: old(m, mtime=0)),
    Layout("old-without-sha256", "no `.sha256`, and the user says so", "issue", without_outer,
           ("no 'b.tar.gz.sha256'",), True),
    Layout("ours-beside-only", "the new manifest only beside", "issue", beside_only),
    Layout("ours-beside-and-old", "the new manifest beside, the old one a file as others", "issue",
           lambda m: beside_only(m, None)),
    Layout("ours-with-old-name", "a file with the old manifest's name", "issue", both),
    Layout("ours-inside-only", "the new manifest only inside", "issue", lambda m: (
        lambda found: Bundle({name: part for name, part in found.files.items() if name != BESIDE}, found.tree))(
        m.bundle(start()))),
    Layout("outer-binary", "the outer line in binary mode", "sha256sum -b", lambda m: outer(m, b"@ *b.tar.gz\n")),
    Layout("outer-dot", "the outer name with `./`", "sha256sum", lambda m: outer(m, b"@  ./b.tar.gz\n")),
    Layout("outer-capitals", "the outer digest in capitals", "certutil", lambda m: outer(m, b"^  b.tar.gz\n")),
    Layout("outer-language", "a bundle's name beyond ASCII, with a space", "a user's folder",
           lambda m: renamed(m, "数据 1.tar.gz")),
    Layout("outer-links", "links to the files", "a user's folder", linked),
    Layout("manifest-capitals", "digests in capitals", "certutil", lambda m: m.bundle(
        start(), listing=digest(b"harmless\n").upper() + b"  a.txt\n")),
    Layout("manifest-unsorted", "lines in another order", "find", lambda m: m.bundle(
        (tar := start().file("b")), listing=b"".join(reversed(tar.manifest().splitlines(keepends=True))))),
    Layout("manifest-binary-new", "the new manifest in binary mode", "sha256sum -b", lambda m: listing(m, b"%s *%s\n")),
    Layout("manifest-dot", "the new manifest with `./`", "BagIt: bag-with-leading-dot-slash-in-manifest",
           lambda m: listing(m, b"%s  ./%s\n")),
    Layout("manifest-space", "a name with spaces around", "BagIt: bag-with-space",
           lambda m: listing(m, b"%s  %s\n", " b ")),
    Layout("manifest-star", "a name that begins with `*`", "BagIt issue 6", lambda m: listing(m, b"%s  %s\n", "*b")),
    Layout("names-odd", "names that only a shell or another system takes for more",
           "BagIt: out-of-scope-file-paths-using-shortcut",           odd_names),
    Layout("names-digits", "a pax name of digits alone, on which a reader fell", "CVE-2026-59871",
           lambda m: m.bundle(start().pax(record(b"path", b"123456")).file("short", listed="123456"))),
    Layout("names-full-field", "a name of 100 bytes, which fills its field", "POSIX.1-2001",
           lambda m: m.one("n" * 100, "n" * 100)),
    Layout("names-prefix", "a name in two fields", "POSIX.1-2001", lambda m: m.bundle(
        start().file("b", listed="p" * 155 + "/b", prefix=b"p" * 155))),
    Layout("modes", "modes that are not ours", "TestExtractionFilters.test_modes", lambda m: m.bundle(
        start().file("perm_bits", mode=0o777).file("exec_group_other", mode=0o677).file("read_group_only", mode=0o040)
        .file("no_bits", mode=0).folder("dir/", mode=0o037).folder("dir_all_bits/", mode=0o7777))),
    Layout("pax-times", "pax records that others write", "bsdtar, GNU tar --format=pax", lambda m: pax(
        m, record(b"mtime", b"1700000000.123456789"), record(b"atime", b"1700000000.5"), record(b"ctime", b"-1.5"),
        record(b"LIBARCHIVE.creationtime", b"1"), record(b"SCHILY.xattr.user.a", b"\xff\xfe"),
        record(b"uid", b"99999999"))),
    Layout("pax-charset", "a pax header that says UTF-8", "POSIX.1-2001",
           lambda m: pax(m, record(b"hdrcharset", b"ISO-IR 10646 2000 UTF-8"))),
    Layout("pax-size", "a pax size that is the header's", "POSIX.1-2001", lambda m: pax(m, record(b"size", b"8"))),
    Layout("pax-global", "a global header with the commit", "git archive", lambda m: m.bundle(
        Tar().pax(record(b"comment", b"0123456789abcdef0123456789abcdef01234567"), kind=b"g").file("a.txt"))),
    Layout("old-file-type", "a file of the type NUL", "V7 tar", lambda m: m.bundle(start().file("odd", type=b"\0"))),
    Layout("numbers", "numbers that fill their fields or end in a space", "bsdtar", lambda m: m.bundle(start().file(
        "odd", b"12345678", size=b"00000000010 ", mtime=b"14524612400 ", mode=b"000644 \0"))),
    Layout("users", "users and devices that nobody knows", "older scripts", lambda m: m.bundle(start().file(
        "odd", uid=base256(1 << 40, 8), gid=octal(0o7777777, 8), uname=b"\xff" * 31, devmajor=base256(-1, 8)))),
    Layout("folders-behind", "a folder behind what lies in it", "tar --append", lambda m: m.bundle(
        start().file("d/b").folder("d/", mode=0o700).folder("e/f/"))),
    Layout("empty-files", "files without content", "older scripts",
           lambda m: m.bundle(start().file("b", b"").file("c", b""))),
    Layout("whole-blocks", "contents that fill their blocks", "older scripts", lambda m: m.bundle(
        start().file("b", b"x" * BLOCK).file("c", b"y" * BLOCK * 3))),
    Layout("gzip-name", "gzip's header with a name, a comment and a CRC", "gzip -N", lambda m: m.bundle(
        start(), pack=lambda data: gzipped(data, flags=0x18, more=b"b.tar\0by hand\0"))),
    Layout("gzip-extra", "gzip's header with an extra field", "RFC 1952", lambda m: m.bundle(
        start(), pack=lambda data: gzipped(data, flags=4, more=b"\4\0ab\0\0"))),
    Layout("end-blocked", "an end that fills its record", "GNU tar",
           lambda m: m.bundle(start(), end=b"\0" * BLOCK * 20)),
    Layout("manifest-first", "the manifest is the first member", "older scripts", lambda m: m.bundle(
        Tar().file(INSIDE, digest(b"x\n") + b"  b\n").file("b"), listing=digest(b"x\n") + b"  b\n", inside=None,
        beside=digest(b"x\n") + b"  b\n")),
]  # fmt: skip
