"""The manifest of a bundle: a strict reading of what `sha256sum` and `shasum` write. Python 3.8, no torch.

`sha256sum -c` passes over lines that it does not understand; here every byte has a meaning or is an error.
"""

from __future__ import annotations

import re
from typing import Mapping, NamedTuple

from trainer.bundle import names
from trainer.errors import InputError

NAME = "SYNC_MANIFEST.sha256"
OLD_NAME = "SYNC_MANIFEST.txt"
ALGORITHMS = {64: "sha256", 40: "sha1"}
_LINE = re.compile(rb"([0-9A-Fa-f]+) [ *](.*)", re.DOTALL)
_TAGGED = re.compile(rb"[A-Z0-9-]+ ?\(.*\) ?= ?[0-9A-Fa-f]+", re.DOTALL)
AGAIN = "make the manifest again with sha256sum"


class Manifest(NamedTuple):
    """The digests that a manifest lists: lower-case hex by name."""

    algorithm: str
    digests: dict[str, str]


def parse(data: bytes, shown: str, own: str = NAME) -> Manifest:
    """A manifest's content; `shown` is what messages call it, `own` the name that it has in the tree.

    InputError names the line, what is there and what to do.
    """
    digests: dict[str, str] = {}
    together, length = names.Together(), 0
    for number, line in enumerate(_lines(data, shown), 1):
        where = f"{shown} line {number}"
        digest, raw = _split(line, where)
        length = length or _known_length(digest, where)
        if len(digest) != length:
            raise InputError(f"{where}: {len(digest)} hex digits behind lines with {length}; {AGAIN}")
        name = names.checked(raw, where)
        if name == own:
            raise InputError(f"{where}: the manifest lists itself, {names.shown(name)}; remove this line")
        together.add(name, where)
        digests[name] = digest.lower()
    return Manifest(ALGORITHMS[length], digests)


def parse_outer(data: bytes, shown: str, name: str) -> str:
    """The sha256 in `<bundle>.tar.gz.sha256`, which has one line and names the bundle `name` and nothing else."""
    again = _outer_remedy(name)
    lines = _lines(data, shown, again)
    if len(lines) != 1:
        raise InputError(f"{shown}: {len(lines)} lines, where one is expected; {again}")
    where = f"{shown} line 1"
    digest, raw = _split(lines[0], where, again)
    if len(digest) != 64:
        raise InputError(f"{where}: {len(digest)} hex digits, where sha256 has 64; {again}")
    if raw not in (name.encode("utf-8", "surrogateescape"), b"./" + name.encode("utf-8", "surrogateescape")):
        named = f"it names {names.shown(raw, False)}, not {names.shown(name, False)}"
        raise InputError(f"{where}: {named}; bring the file that came with the bundle")
    return digest.lower()


def render(digests: Mapping[str, str]) -> bytes:
    """The manifest of these digests as `sha256sum` writes it, sorted by the bytes of the names."""
    listed = sorted((name.encode(), digest.encode()) for name, digest in digests.items())
    return b"".join(digest + b"  " + name + b"\n" for name, digest in listed)


def _outer_remedy(name: str) -> str:
    return f"make it again with `sha256sum`, in the folder of {names.shown(name)}, from a bundle that you trust"


def _lines(data: bytes, shown: str, again: str = AGAIN) -> list[bytes]:
    """The lines of a listing; InputError for an empty one and for one that is cut."""
    if not data:
        raise InputError(f"{shown}: the file is empty; {again}")
    if data.startswith(b"\xef\xbb\xbf"):
        raise InputError(f"{shown} line 1: it begins with a byte order mark; {again}")
    *lines, last = data.split(b"\n")
    if last:
        raise InputError(
            f"{shown} line {len(lines) + 1}: {names.shown(last)} is not ended, so it may be cut; bring it again"
        )
    return lines


def _split(line: bytes, where: str, again: str = AGAIN) -> tuple[str, bytes]:
    """(hex digits, name) of a line."""
    match = _LINE.fullmatch(line)
    if match is None or line.endswith(b"\r"):
        raise InputError(f"{where}: {_wrong(line)}; {again}")
    return match[1].decode(), match[2]


def _wrong(line: bytes) -> str:
    """What a line is that is not `<hex>  <name>`."""
    value = names.shown(line)
    if not line:
        return "the line is empty"
    if line.endswith(b"\r"):
        return f"{value} ends with a carriage return"
    if line.startswith(b"\\"):
        return f"{value} is escaped, so its name has a newline or a backslash"
    if line.startswith((b"#", b";")):
        return f"{value} is a comment"
    if _TAGGED.fullmatch(line):
        return f"{value} is in the form of --tag"
    return f"{value} is not '<hex digits>  <name>'"


def _known_length(digest: str, where: str) -> int:
    if len(digest) not in ALGORITHMS:
        raise InputError(
            f"{where}: {len(digest)} hex digits, where sha256 has 64 and sha1 40 ({names.shown(digest)}); {AGAIN}"
        )
    return len(digest)
