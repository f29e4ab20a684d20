"""The `.sha256` beside a bundle, and the bundle's own name and kind: what `sha256sum -c` passes over."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.trainer.bundle.hostile_case import NAME, OUTER, Bundle, Case, Fifo, Folder, Link, Make, start
from tests.unit.trainer.bundle.hostile_listing import BOM, FORM, case
from tests.unit.trainer.bundle.hostile_tar import digest

REMEDY = "from a bundle that you trust"


def outer(make: Make, hostile: Callable[[bytes], object], harmless: Callable[[bytes], bytes] | None = None) -> Bundle:
    """Another file in the place of `b.tar.gz.sha256`, made from the right digest; None for none."""
    found = make.bundle(start())
    archive = found.files[NAME]
    chosen = make.pick(hostile, harmless or (lambda right: right + b"  b.tar.gz\n"))
    assert isinstance(archive, bytes)
    content = chosen(digest(archive))
    files = {name: part for name, part in found.files.items() if name != OUTER}
    return Bundle(files if content is None else {**files, OUTER: content}, found.tree)


def outer_case(name: str, what: str, origin: str, fragments: tuple[str, ...], line: bytes) -> Case:
    """One other line; `@` stands for the right digest."""
    return case(f"outer-{name}", what, origin, (OUTER, *fragments), lambda m: outer(m, lambda d: line.replace(b"@", d)))


def beheaded(make: Make, way: str) -> Bundle:
    """A FIFO or a folder in the place of the bundle."""
    found = make.bundle(start())
    return Bundle({**found.files, NAME: Fifo() if way == "fifo" else Folder()}, found.tree) if make.hostile else found


def renamed(make: Make, name: str, named: str | None = None) -> Bundle:
    """The bundle of another name, with what lies beside it; `named`: the name in there."""
    found = make.bundle(start())
    archive = found.files[NAME]
    assert isinstance(archive, bytes)
    line = digest(archive) + b"  " + (named or name).encode() + b"\n"
    return Bundle({name: archive, f"{name}.sha256": line}, found.tree, name)


OUTERS = [
    case("outer-none", "none, and the user does not say so", "issue", (OUTER, "--without-sha256"),
         lambda m: outer(m, lambda d: None)),
    case("outer-folder", "a folder", "CWE-706", (OUTER, "regular file"), lambda m: outer(m, lambda d: Folder())),
    case("outer-fifo", "a FIFO, at which readers hang", "CWE-706", (OUTER, "regular file"),
         lambda m: outer(m, lambda d: Fifo())),
    case("outer-link-nowhere", "a link to nothing, which is not the same as none", "CWE-59",
         (OUTER, "there is no file"), lambda m: outer(m, lambda d: Link("nowhere")), without_sha256=True),
    case("outer-link-device", "a link to a device", "CWE-59", (OUTER, "regular file"),
         lambda m: outer(m, lambda d: Link("/dev/null"))),
    case("outer-link-loop", "a link to itself", "CWE-59", (OUTER, "cannot be opened"),
         lambda m: outer(m, lambda d: Link(OUTER)), without_sha256=True),
    case("outer-link-folder", "a link to a folder", "CWE-59", (OUTER, "regular file"),
         lambda m: outer(m, lambda d: Link("."))),
    outer_case("empty", "an empty file", "sha256sum -c", (REMEDY, "empty"), b""),
    outer_case("two-lines", "a good line and one more", "sha256sum -c", ("2 lines",), b"@  b.tar.gz\n@  b.tar.gz\n"),
    outer_case("comment", "a comment in front", "sha256sum -c", ("2 lines",), b"# by hand\n@  b.tar.gz\n"),
    outer_case("empty-line", "an empty line behind", "sha256sum -c", ("2 lines",), b"@  b.tar.gz\n\n"),
    outer_case("no-newline", "a line that is not ended", "CWE-354", ("not ended",), b"@  b.tar.gz"),
    outer_case("other-name", "another file's name", "sha256sum -c", ("'/dev/null'",),
               b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  /dev/null\n"),
    outer_case("absolute", "the right name with a path", "CWE-22", ("'/tmp/b.tar.gz'",), b"@  /tmp/b.tar.gz\n"),
    outer_case("folder-name", "the right name in a folder", "CWE-22", ("'other/b.tar.gz'",), b"@  other/b.tar.gz\n"),
    outer_case("dotdot", "the right name a folder up", "CWE-22", ("'../b.tar.gz'",), b"@  ../b.tar.gz\n"),
    outer_case("case", "the name in capitals", "CWE-178", ("'B.tar.gz'",), b"@  B.tar.gz\n"),
    outer_case("crlf", "a carriage return", "BagIt: line ends", (REMEDY, "carriage return"), b"@  b.tar.gz\r\n"),
    outer_case("bom", "a byte order mark", "BagIt: bom-in-bagit.txt", (REMEDY, "byte order mark"),
               BOM + b"@  b.tar.gz\n"),
    outer_case("utf16", "UTF-16", "BagIt: UTF-16-encoded-tag-files",
               ("line 2", "not ended"), "ab  b.tar.gz\n".encode("utf-16-le")),
    outer_case("short", "63 digits", "CWE-354", ("63 hex digits",), b"a" * 63 + b"  b.tar.gz\n"),
    outer_case("long", "65 digits", "CWE-354", ("65 hex digits",), b"@0  b.tar.gz\n"),
    outer_case("sha1", "a sha1", "CVE-2005-4900", ("40 hex digits",), b"a" * 40 + b"  b.tar.gz\n"),
    outer_case("sha512", "a sha512", "CWE-354", ("128 hex digits",), b"a" * 128 + b"  b.tar.gz\n"),
    outer_case("no-hex", "a letter that is no digit", "CWE-20", (REMEDY, "line 1", FORM), b"g" * 64 + b"  b.tar.gz\n"),
    outer_case("tag", "the form of --tag", "sha256sum --tag", (REMEDY, "--tag"), b"SHA256 (b.tar.gz) = @\n"),
    outer_case("escaped", "the escaped form", "sha256sum", (REMEDY, "escaped"), b"\\@  b.tar.gz\n"),
    outer_case("one-space", "one space", "sha256sum", (REMEDY, "line 1", FORM), b"@ b.tar.gz\n"),
    outer_case("three-spaces", "a space more, which belongs to the name", "sha256sum",
               ("' b.tar.gz'",), b"@   b.tar.gz\n"),
    outer_case("space-first", "a space in front", "sha256sum", (REMEDY, "line 1", FORM), b" @  b.tar.gz\n"),
    outer_case("universal", "shasum's universal mode", "shasum -U", (REMEDY, "line 1", FORM), b"@ Ub.tar.gz\n"),
    outer_case("nul", "NUL behind the name", "CWE-626", (r"'b.tar.gz\x00'",), b"@  b.tar.gz\0\n"),
    outer_case("large", "more than 4 KiB", "CWE-400", ("4096",), b"@  b.tar.gz\n" * 99),
    case("outer-digest", "the digest of another file", "CWE-354", ("the sha256 of 'b.tar.gz' is",),
         lambda m: outer(m, lambda d: digest(b"other") + b"  b.tar.gz\n")),
    case("outer-nibble", "one digit is another", "CWE-354", ("the sha256 of 'b.tar.gz' is",),
         lambda m: outer(m, lambda d: (b"1" if d[:1] == b"0" else b"0") + d[1:] + b"  b.tar.gz\n")),
    case("outer-ending", "a name that says another format", "issue", ("'b.tar.bz2'", ".tar.gz"),
         lambda m: renamed(m, m.pick("b.tar.bz2", "b.tgz"))),
    case("outer-normal-form", "the other Unicode form of the bundle's name", "BagIt: filename-normalization",
         ("line 1", "it names"),
         lambda m: renamed(m, "caf\u00e9.tar.gz", m.pick("cafe\u0301.tar.gz", "caf\u00e9.tar.gz"))),
    case("outer-bundle-fifo", "the bundle is a FIFO", "CWE-706", ("'b.tar.gz'", "regular file"),
         lambda m: beheaded(m, "fifo")),
    case("outer-bundle-folder", "the bundle is a folder", "CWE-706", ("'b.tar.gz'", "regular file"),
         lambda m: beheaded(m, "folder")),
]  # fmt: skip

CASES = OUTERS
