"""The manifest of a bundle, inside and beside: what `sha256sum -c` passes over, and what BagIt forbids."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.unit.trainer.bundle.hostile_case import (
    BESIDE,
    INSIDE,
    NAME,
    OLD,
    OUTER,
    Bundle,
    Case,
    Fifo,
    Folder,
    Link,
    Make,
    start,
)  # fmt: skip
from tests.unit.trainer.bundle.hostile_tar import Tar, digest

FORM = "is not '<hex digits>  <name>'"
BOM = b"\xef\xbb\xbf"
LACKS, OTHER = "lacks files", "not what its manifest says"
MANIFEST_LINE = "SYNC_MANIFEST.sha256 in 'b.tar.gz' line"


def case(
    name: str, what: str, origin: str, fragments: tuple[str, ...], make: Callable[[Make], Bundle],
    without_sha256: bool = False,
) -> Case:  # fmt: skip
    kind = name.partition("-")[0]
    return Case(name, kind, what, origin, fragments, make, {}, without_sha256)


def listed(make: Make, change: Callable[[bytes], bytes], old: bool = False, tar: Tar | None = None) -> Bundle:
    """The right manifest or what `change` makes of it."""
    tar = (tar or start()).file("b.txt", b"y\n")
    right = tar.manifest()
    return make.bundle(tar, listing=make.pick(change(right), right), inside=OLD if old else INSIDE)


def line_case(
    name: str, what: str, origin: str, fragments: tuple[str, ...], change: Callable[[bytes], bytes], line: int = 0
) -> Case:
    where = (f"{MANIFEST_LINE} {line}",) if line else ()
    return case(f"manifest-{name}", what, origin, (*where, *fragments), lambda m: listed(m, change))


def plus(line: bytes) -> Callable[[bytes], bytes]:
    """One more line behind the two good ones; `@` stands for a digest."""
    return lambda right: right + line.replace(b"@", digest(b"x\n")) + b"\n"


def names(hostile: bytes) -> Callable[[bytes], bytes]:
    """Another name in the second line."""
    return lambda right: right.replace(b"b.txt", hostile)


def twin_manifest(make: Make, beside: bytes | Link | Folder | Fifo | None, inside: str | None = INSIDE) -> Bundle:
    """The manifest beside is another than the one inside, which is right."""
    tar = start()
    return make.bundle(tar, inside=inside, beside=make.pick(beside, None))


def two_manifests(make: Make) -> Bundle:
    """A bad new manifest beside a good old one inside: never a fall-back."""
    tar = start()
    tar.file(OLD, tar.manifest())
    bad = re.sub(rb"^.", b"g", tar.manifest())
    return make.bundle(tar, listing=make.pick(bad, tar.manifest()))


def beside_old(make: Make, content: bytes | Link | Folder | Fifo) -> Bundle:
    """An old bundle with something beside it that has the new manifest's name."""
    found = make.bundle(start(), inside=OLD)
    return Bundle({**found.files, BESIDE: content}, found.tree) if make.hostile else found


def beside_variant(make: Make, name: str) -> Bundle:
    """The new manifest lies beside, under its name or one that is nearly its."""
    tar = start()
    found = make.bundle(tar, inside=None, beside=tar.manifest())
    files = {part: found.files[part] for part in (NAME, OUTER)}
    return Bundle({**files, make.pick(name, BESIDE): found.files[BESIDE]}, found.tree)


def variant(make: Make, name: str, folder: bool = False) -> Bundle:
    """A good old manifest, and a member that is the new one but for its case or kind."""
    tar = start()
    if folder:
        tar.folder(make.pick(name, "other/"))
    else:
        tar.file(make.pick(name, "OTHER.sha256"), b"")
    return make.bundle(tar, inside=OLD)


def uneven(make: Make, missing: bool) -> Bundle:
    """A file that is only listed, or only there."""
    tar = start().file("b.txt", b"y\n")
    listing = tar.manifest()
    if make.hostile:
        listing = listing + digest(b"") + b"  c.txt\n" if missing else listing[: listing.index(b"\n") + 1]
    return make.bundle(tar, listing=listing)


def digits(count: int) -> Callable[[bytes], bytes]:
    return lambda right: re.sub(rb"(?m)^[0-9a-f]{64}", b"a" * count, right)


LINES = [
    line_case("bom", "a byte order mark", "BagIt: bom-in-bagit.txt", ("byte order mark",), lambda r: BOM + r, 1),
    line_case("crlf", "carriage returns", "BagIt: line ends", ("carriage return",),
              lambda r: r.replace(b"\n", b"\r\n"), 1),
    line_case("crlf-one", "one carriage return", "BagIt: line ends", ("carriage return",),
              lambda r: r[:-1] + b"\r\n", 2),
    line_case("empty", "an empty manifest, which lists nothing wrong", "BagIt: missing manifest", ("empty",),
              lambda r: b""),
    line_case("empty-line", "an empty line", "sha256sum -c", ("empty",), lambda r: r.replace(b"\n", b"\n\n", 1), 2),
    line_case("comment", "a comment", "sha256sum -c", ("comment",), plus(b"# @  c"), 3),
    line_case("garbage", "garbage beside good lines", "sha256sum -c", ("garbage",), plus(b"garbage"), 3),
    line_case("mixed", "a sha1 among sha256", "sha256sum -c", ("40 hex digits",), plus(b"a" * 40 + b"  c"), 3),
    line_case("63", "63 digits", "CWE-354", ("63 hex digits",), digits(63), 1),
    line_case("65", "65 digits", "CWE-354", ("65 hex digits",), digits(65), 1),
    line_case("32", "md5", "CWE-328", ("32 hex digits",), digits(32), 1),
    line_case("128", "sha512", "BagIt: sha512", ("128 hex digits",), digits(128), 1),
    line_case("40", "sha1 in a file that says sha256", "CVE-2005-4900", ("40 hex digits",), digits(40), 1),
    line_case("no-hex", "a letter that is no digit", "CWE-20", (FORM,), lambda r: b"g" + r[1:], 1),
    line_case("dotdot", "a name that leaves the tree", "BagIt: out-of-scope-file-paths-using-dot-notation",
              ("'../b.txt'",), names(b"../b.txt"), 2),
    line_case("absolute", "an absolute name", "BagIt: out-of-scope-file-paths-using-absolute-path",
              ("'/b.txt'", "absolute"), names(b"/b.txt"), 2),
    line_case("backslash", "a name with Windows separators", "BagIt: out-of-scope-file-paths-using-unc",
              ("backslash",), names(rb"\\host\b.txt"), 2),
    line_case("twice", "one name twice with the same digest", "BagIt: same-filename-listed-twice-with-the-same-hash",
              ("'b.txt'", "twice"), lambda r: r + r[r.index(b"\n") + 1 :], 3),
    line_case("twice-other", "one name twice with different digests",
              "BagIt: same-filename-listed-twice-with-different-hashes", ("'b.txt'", "twice"), plus(b"@  b.txt"), 3),
    line_case("twice-dot", "one name with and without `./`", "BagIt: bag-with-leading-dot-slash-in-manifest",
              ("'b.txt'", "twice"), plus(b"@  ./b.txt"), 3),
    line_case("twice-case", "names equal but for case", "BagIt: duplicate-file-with-different-case",
              ("case or Unicode form",), plus(b"@  B.TXT"), 3),
    line_case("itself", "the manifest lists itself", "BagIt: tagmanifest", ("itself",),
              plus(b"@  SYNC_MANIFEST.sha256"), 3),
    line_case("folder", "a folder's name", "BagIt: special-system-files", ("'d/'",), plus(b"@  d/"), 3),
    line_case("no-name", "no name", "CWE-20", ("empty",), plus(b"@  "), 3),
    line_case("control", "a control character in a name", "CVE-2016-6321", ("control character",), plus(b"@  a\tb"), 3),
    line_case("no-newline", "the last line is not ended", "CWE-354", ("not ended",), lambda r: r[:-1], 2),
    line_case("escaped", "an escaped line", "sha256sum", ("escaped",), plus(rb"\@  a\nb"), 3),
    line_case("percent", "a name in BagIt's escapes is another name", "BagIt: bag-with-encoded-names",
              ("'b%2Etxt'", LACKS), names(b"b%2Etxt")),
    line_case("wildcard", "a name with a wildcard is a name", "BagIt: bag-with-escapable-characters",
              ("'*.txt'", LACKS), names(b"*.txt")),
    line_case("normal-form", "the other Unicode form of a name is another name", "BagIt: filename-normalization",
              ("e\u0301", LACKS), plus(b"@  caf" + "e\u0301".encode())),
    line_case("reserved", "the record of a release", "this project", ("'.source.json'", "reserved"),
              plus(b"@  .source.json"), 3),
    line_case("home", "a name with `~` is a name", "BagIt: out-of-scope-file-paths-using-shortcut",
              ("'~/b.txt'", LACKS), names(b"~/b.txt")),
    line_case("tag", "the form of --tag", "BagIt: made-with-md5sum-tools", ("--tag",),
              lambda r: b"SHA256 (a.txt) = " + digest(b"harmless\n") + b"\n", 1),
    line_case("one-space", "one space", "sha256sum", (FORM,), lambda r: r.replace(b"  ", b" "), 1),
    line_case("tabs", "a tab instead of spaces", "BagIt: invalid-whitespace", (FORM,),
              lambda r: r.replace(b"  ", b"\t"), 1),
    line_case("space-first", "a space in front", "BagIt: invalid-whitespace", (FORM,), lambda r: b" " + r, 1),
    line_case("digest", "another content", "BagIt: corrupt-data-file", ("'b.txt'", OTHER),
              lambda r: r.replace(digest(b"y\n"), digest(b"z\n"))),
    line_case("swapped", "two digests in each other's place", "CWE-354", ("'a.txt', 'b.txt'", OTHER),
              lambda r: digest(b"y\n") + b"  a.txt\n" + digest(b"harmless\n") + b"  b.txt\n"),
]  # fmt: skip

TREES = [
    case("manifest-none", "none", "BagIt: missing manifest", ("neither SYNC_MANIFEST.sha256 nor",),
         lambda m: m.bundle(start(), inside=m.pick(None, INSIDE))),
    case("manifest-below", "one that is not at the top", "BagIt: bag-in-a-bag", ("neither SYNC_MANIFEST.sha256 nor",),
         lambda m: m.bundle(start(), inside=m.pick(f"d/{OLD}", OLD))),
    case("manifest-missing", "a file that is listed and not there", "BagIt: missing payload", ("'c.txt'", LACKS),
         lambda m: uneven(m, missing=True)),
    case("manifest-extra", "a file that is there and not listed", "BagIt: extra-file-in-bag",
         ("'b.txt'", "does not list"), lambda m: uneven(m, missing=False)),
    case("manifest-no-fall-back", "a bad new manifest beside a good old one", "issue",
         (f"{MANIFEST_LINE} 1",), two_manifests),
    case("manifest-beside-other", "another one beside than inside", "CWE-345", (BESIDE, "not equal"),
         lambda m: twin_manifest(m, digest(b"harmless\n") + b"  ./a.txt\n")),
    case("manifest-beside-folder", "a folder beside", "CWE-706", (BESIDE, "regular file"),
         lambda m: twin_manifest(m, Folder())),
    case("manifest-beside-fifo", "a FIFO beside", "CWE-706", (BESIDE, "regular file"),
         lambda m: twin_manifest(m, Fifo())),
    case("manifest-beside-nowhere", "a link to nothing beside", "CWE-59", (BESIDE,),
         lambda m: twin_manifest(m, Link("nowhere"))),
    case("manifest-beside-old", "a bad new one beside a good old bundle", "issue", (BESIDE,),
         lambda m: beside_old(m, b"garbage\n")),
    case("manifest-beside-old-empty", "an empty new one beside a good old bundle", "issue", (BESIDE, "empty"),
         lambda m: beside_old(m, b"")),
    case("manifest-beside-old-folder", "a folder beside a good old bundle", "issue", (BESIDE, "regular file"),
         lambda m: beside_old(m, Folder())),
    case("manifest-beside-case", "one in small letters beside", "CWE-178", ("'b.sync_manifest.sha256'", "rename it"),
         lambda m: beside_variant(m, "b.sync_manifest.sha256")),
    case("manifest-case", "one in small letters beside an old one", "CWE-178", ("'sync_manifest.sha256'",),
         lambda m: variant(m, "sync_manifest.sha256")),
    case("manifest-is-folder", "a folder of its name beside an old one", "CWE-706", ("SYNC_MANIFEST.sha256",),
         lambda m: variant(m, "SYNC_MANIFEST.sha256/", folder=True)),
    case("manifest-in-folder", "a file in a folder of its name", "CWE-706", ("SYNC_MANIFEST.sha256",),
         lambda m: variant(m, "SYNC_MANIFEST.sha256/x")),
    case("manifest-old-41", "an old manifest with 41 digits", "CWE-354", ("SYNC_MANIFEST.txt", "41 hex digits"),
         lambda m: listed(m, digits(41), old=True)),
    case("manifest-old-mixed", "an old manifest with sha1 and sha256", "issue", ("SYNC_MANIFEST.txt", "hex digits"),
         lambda m: listed(m, lambda r: digest(b"harmless\n", "sha1") + r[64:], old=True)),
    case("manifest-old-itself", "an old manifest that lists itself", "BagIt: tagmanifest", ("itself",),
         lambda m: listed(m, plus(b"@  ./SYNC_MANIFEST.txt"), old=True)),
    case("manifest-old-twice", "two old manifests in one archive", "CVE-2026-5704", ("SYNC_MANIFEST.txt", "twice"),
         lambda m: m.bundle(start().file(OLD if m.hostile else "SYNC.txt", b""), inside=OLD)),
]  # fmt: skip

CASES = LINES + TREES
