"""Members that are no regular file or folder: links, devices, and what only some readers know."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.trainer.bundle.hostile_case import Bundle, Case, Make, start
from tests.unit.trainer.bundle.hostile_tar import BLOCK, GNU, Tar, octal, record

KIND = "types"


def linked(
    make: Make, *links: tuple[str, str], kind: bytes = b"2", then: str | None = None, folder: str | None = None
) -> Bundle:
    """Links (harmless: empty files, the folders that they stand for being folders), then a file."""
    tar = start()
    for name, target in links:
        if make.hostile:
            tar.link(name, target, kind)
        elif then is None or not then.startswith(name.rstrip("/")):
            tar.file(name, b"")
    if folder:
        tar.folder(folder)
    if then:
        tar.file(then, b"through\n")
    return make.bundle(tar)


def typed(make: Make, kind: bytes, harmless: bytes = b"0", **fields: bytes | int) -> Bundle:
    """A member of a type, the twin an empty regular file."""
    tar = start().file("odd", b"", type=make.pick(kind, harmless), **fields)
    return make.bundle(tar)


def case(name: str, what: str, origin: str, cause: str, make: Callable[[Make], Bundle], member: str = "'odd'") -> Case:
    return Case(f"{KIND}-{name}", KIND, what, origin, (member, cause), make)


def realpath_limit(make: Make) -> Bundle:
    """Short links for long folders, so that what they expand to is too long to be looked at."""
    tar, part, path, short = start(), "d" * 55, "", ""
    for step in "abcdefghijklmnop":
        tar.pax(record(b"path", f"{path}{part}/".encode())).folder("folder")
        tar.pax(record(b"path", f"{path}{step}".encode()))
        tar.link("step", part) if make.hostile else tar.file("step", listed=f"{path}{step}")
        path, short = f"{path}{part}/", f"{short}{step}/"
    tar.link("escape", f"{short}..") if make.hostile else tar.file("escape")
    return make.bundle(tar.file("flaglink", b"overwrite\n"))


def hidden(make: Make) -> Bundle:
    """A folder that claims content: one reader skips it, another reads members there."""
    inner = Tar().file("hidden", b"evil\n").data
    tar = start().folder("odd/", size=make.pick(len(inner), 0))
    return make.bundle(tar.raw(inner if make.hostile else b""))


def sparse(make: Make) -> Bundle:
    """The old GNU form: a map of pieces in the header, more than there is."""
    rest = b"\0" * 41 + octal(0, 12) + octal(1, 12)
    tar = start(GNU).file("odd", b"x", type=make.pick(b"S", b"0"), prefix=make.pick(rest, b""))
    return make.bundle(tar)


def pax_sparse(make: Make, *keys: tuple[bytes, bytes]) -> Bundle:
    """The pax forms; the twin has keys of the same length that mean nothing."""
    records = [record(make.pick(b"GNU.sparse", b"GNX.sparse") + b"." + key, value) for key, value in keys]
    return make.bundle(start().pax(*records).file("odd", b"0\n" + b"\0" * (BLOCK - 2)))


SYMBOLIC = [
    case("symlink-absolute", "a link to an absolute path, then a file through it",
         "TestExtractionFilters.test_absolute_symlink", "symbolic link",
         lambda m: linked(m, ("odd", m.outside), then="odd/evil")),
    case("symlink-up", "a link to a folder outside, then a file through it", "CVE-2021-32803", "symbolic link",
         lambda m: linked(m, ("odd", "../../../.."), then="odd/canary")),
    case("symlink-inside", "a link that stays inside", "CVE-2025-45582", "symbolic link",
         lambda m: linked(m, ("odd", "a.txt"))),
    case("symlink-parent", "a link to `.`, one through it to the parent",
         "TestExtractionFilters.test_parent_symlink", "symbolic link",
         lambda m: linked(m, ("odd", "."), ("parent", "odd/.."), then="parent/evil")),
    case("symlink-parent2", "the same by a link in a link", "TestExtractionFilters.test_parent_symlink2",
         "symbolic link", lambda m: linked(m, ("odd", "."), ("current/parent", ".."), then="parent/evil")),
    case("symlink-sly", "a link outside the tree", "TestExtractionFilters.test_sly_relative0", "'../moo'",
         lambda m: m.bundle(start().link("../moo", "..//tmp/moo") if m.hostile else start().file("..moo")), "'../moo'"),
    case("symlink-deep", "a link beside a hard link to one file", "TestExtractionFilters.test_deep_symlink",
         "symbolic link", lambda m: m.bundle(
             start().file("targetdir/target", b"abc") if not m.hostile else
             start().file("targetdir/target", b"abc").link("linkdir/symlink", "../targetdir/target")),
         "'linkdir/symlink'"),
    case("symlink-chain", "links before what they point to, hard links to them", "TestExtractionFilters.test_chains",
         "symbolic link", lambda m: linked(m, ("linkdir/symlink", "hardlink"), ("symlink2", "linkdir/hardlink2"),
                                           then="targetdir/target"), "'linkdir/symlink'"),
    case("symlink-realpath-limit", "links that expand beyond PATH_MAX",
         "TestExtractionFilters.test_realpath_limit_attack (CVE-2025-4517)", "symbolic link", realpath_limit, "'step'"),
    case("symlink-exfiltrate", "a link by which a later reader shows an outside file", "CVE-2025-4138",
         "symbolic link", lambda m: linked(m, ("odd", f"{m.outside}/canary"))),
    case("symlink-chmod", "a link in the place of the destination itself, to change its mode", "CVE-2024-12718",
         "symbolic link", lambda m: linked(m, ("odd", ".."), folder=m.pick("odd/", "more/"))),
    case("symlink-empty-name", "a link without a name", "CPython gh-149486", "symbolic link",
         lambda m: m.bundle(start().link("", m.outside) if m.hostile else start().file("b", b"")), "member 2"),
    case("symlink-drive", "a link to a path of another drive", "CVE-2026-31802", "symbolic link",
         lambda m: linked(m, ("odd", "C:../../../target"))),
    case("symlink-in-folders-place", "a link with the name of a folder that is there", "CVE-2021-37701",
         "symbolic link", lambda m: m.bundle(
             start().folder("d/").link("odd", m.outside) if m.hostile else start().folder("d/").file("odd", b""))),
    case("symlink-empty-target", "a link to nothing", "CWE-59", "symbolic link", lambda m: typed(m, b"2")),
]  # fmt: skip

HARD = [
    case("hardlink-absolute", "a hard link to an absolute path", "TestExtractionFilters.test_absolute_hardlink",
         "hard link", lambda m: linked(m, ("odd", f"{m.outside}/canary"), kind=b"1")),
    case("hardlink-up", "a hard link to a file outside", "CVE-2026-24842", "hard link",
         lambda m: linked(m, ("odd", "../../../../canary"), kind=b"1")),
    case("hardlink-then-file", "a hard link to an outside file, then a file of its name", "CVE-2018-20834",
         "hard link", lambda m: m.bundle(start().link("odd", f"{m.outside}/canary", b"1").file("odd")
                                         if m.hostile else start().file("odd"))),
    case("hardlink-to-symlink", "a hard link to a symbolic link", "CVE-2025-4330", "symbolic link",
         lambda m: m.bundle(start().link("odd", f"{m.outside}/canary").link("hard", "odd", b"1")
                            if m.hostile else start().file("odd").file("hard"))),
    case("hardlink-fallback", "a hard link whose target comes as a copy", "CVE-2026-87910", "hard link",
         lambda m: m.bundle(start().link("odd", "b", b"1").file("b") if m.hostile else start().file("odd").file("b"))),
    case("hardlink-inside", "a hard link to a file of the archive", "CPython gh-151558", "hard link",
         lambda m: linked(m, ("odd", "a.txt"), kind=b"1")),
    case("hardlink-escape-chain", "two links and a hard link through them", "CVE-2026-26960", "symbolic link",
         lambda m: linked(m, ("a/b/c/up", "../.."), ("a/b/escape", "c/up/../.."), then="exfil"), "'a/b/c/up'"),
    case("hardlink-drive", "a hard link to a path of another drive", "CVE-2026-29786", "hard link",
         lambda m: linked(m, ("odd", "C:../target"), kind=b"1")),
    case("hardlink-content", "a hard link that brings content", "POSIX.1-2001", "hard link",
         lambda m: m.bundle(start().file("odd", b"new\n", type=m.pick(b"1", b"0"), link=m.pick(b"a.txt", b"")))),
    case("link-field", "a regular file with a link's target", "CVE-2026-23745", "link",
         lambda m: m.bundle(start().file("odd", b"", link=m.pick(m.outside.encode()[:100], b"")))),
    case("folder-link-field", "a folder with a link's target", "CVE-2026-23745", "link",
         lambda m: m.bundle(start().folder("odd/", link=m.pick(b"..", b""))), "'odd/'"),
]  # fmt: skip

SPECIAL = [
    case("fifo", "a FIFO, at which readers hang", "TestExtractionFilters.test_pipe", "FIFO", lambda m: typed(m, b"6")),
    case("character", "a character device", "TestExtractionFilters.test_special_files", "character device",
         lambda m: typed(m, b"3", devmajor=1, devminor=3)),
    case("block", "a block device", "TestExtractionFilters.test_special_files", "block device",
         lambda m: typed(m, b"4", devmajor=8, devminor=0)),
    case("contiguous", "a contiguous file", "POSIX.1-1988", "contiguous", lambda m: typed(m, b"7")),
    case("sparse", "a sparse file, old GNU form", "CVE-2025-58183", "sparse", sparse),
    case("sparse-00", "a sparse file, pax form 0.0", "CVE-2025-58183", "'GNU.sparse.size'", lambda m: pax_sparse(
        m, (b"size", b"512"), (b"numblocks", b"1"), (b"offset", b"0"), (b"numbytes", b"512")), "sparse"),
    case("sparse-10", "a sparse file, pax form 1.0, with a name of its own", "CVE-2025-58183", "'GNU.sparse.major'",
         lambda m: pax_sparse(m, (b"major", b"1"), (b"minor", b"0"), (b"name", b"../evil"),
              (b"realsize", b"9")), "sparse"),
    case("volume", "a volume label", "GNU tar", "volume label", lambda m: typed(m, b"V")),
    case("multi-volume", "the rest of a file of another volume", "GNU tar", "another volume", lambda m: typed(m, b"M")),
    case("dumpdir", "a GNU dump folder, which removes and renames", "CVE-2016-6321", "folder's listing",
         lambda m: typed(m, b"D")),
    case("old-names", "an old GNU list of renames", "GNU tar", "old long name", lambda m: typed(m, b"N")),
    case("long-link", "a GNU long link target", "CVE-2025-4330", "long link", lambda m: m.bundle(
        start(GNU).longname(b"t", kind=b"K").link("odd", "t") if m.hostile else start(GNU).file("odd", b"")), ""),
    case("solaris", "a Solaris header", "star", "Solaris header", lambda m: typed(m, b"X")),
    case("solaris-acl", "a Solaris access list", "star", "access list", lambda m: typed(m, b"A")),
    case("unknown", "a type that nobody knows", "POSIX: as a regular file", "'Z'", lambda m: typed(m, b"Z")),
    case("unknown-high", "a type beyond ASCII", "CWE-838", r"'\x80'", lambda m: typed(m, b"\x80")),
    case("whiteout", "a BSD whiteout", "FreeBSD tar", "'W'", lambda m: typed(m, b"W")),
    case("folder-content", "a folder that claims content and hides members in it", "CVE-2026-5704",
         "folder of 1024 bytes", hidden,         "'odd/'"),
    case("v7", "a header without a magic", "V7 tar", "neither ustar nor GNU tar", lambda m: m.bundle(
        start().file("odd", b"", magic=m.pick(b"\0" * 8, b"ustar\x0000")))),
]  # fmt: skip

CASES = SYMBOLIC + HARD + SPECIAL
