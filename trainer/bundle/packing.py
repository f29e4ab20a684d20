"""The archive of a bundle, written while its files are read once, hashed, and looked at for secrets. No torch,
controller only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from trainer.bundle import manifest, names, reading, tarball
from trainer.bundle.compress import GzipWriter
from trainer.bundle.leaks import Scanner
from trainer.bundle.provenance import Provenance
from trainer.bundle.reading import Stamp
from trainer.config import raise_findings
from trainer.content import Entry

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


class Packed(NamedTuple):
    """What an archive holds: an entry for each file, the manifest among them, that manifest, and the sha256 of the
    archive itself."""

    entries: list[Entry]
    digests: dict[str, str]  # of the files without the manifest
    manifest: bytes
    sha256: str


def pack(source: Path, files: dict[str, Stamp], origin: Provenance, stream: BinaryIO, progress: Progress) -> Packed:
    """Write the archive of these files to `stream`. InputError for secrets, all of them, and for a changed file."""
    hashing, leaks = _Hashing(stream), []
    total, done = sum(stamp.size_bytes for stamp in files.values()), 0
    digests: dict[str, str] = {}
    with GzipWriter(hashing) as packed:
        tar, waiting = _Tar(packed), b""
        if origin.commit:
            tar.write(tarball.commit_header(origin.commit, origin.made_at))
        for name, stamp in files.items():
            digest, scanner = hashlib.sha256(), Scanner()
            waiting += tarball.header(name, stamp.size_bytes, stamp.executable, origin.made_at)
            for piece in reading.pieces(source, name, stamp):
                digest.update(piece)
                scanner.feed(piece)
                tar.write(waiting + piece if waiting else piece)
                waiting = b""
                done += len(piece)
                progress(done, total)
            waiting += tarball.padding(stamp.size_bytes)
            digests[name] = digest.hexdigest()
            leaks += [(name, line, what) for line, what in scanner.close()]
        _raise_leaks(leaks)
        listing = manifest.render(digests)
        tar.write(waiting + tarball.header(manifest.NAME, len(listing), False, origin.made_at))
        tar.write(listing + tarball.padding(len(listing)))
        tar.write(tarball.end(tar.written))
    entries = [(name, files[name].executable, digest) for name, digest in digests.items()]
    entries.append((manifest.NAME, False, hashlib.sha256(listing).hexdigest()))
    return Packed(sorted(entries), digests, listing, hashing.digest.hexdigest())


def _raise_leaks(leaks: list[tuple[str, int, str]]) -> None:
    raise_findings(
        [
            f"{names.shown(name)}, line {line}: what looks like {what} is never in a bundle; take it out, or leave the "
            "file out with a line !… in the whitelist"
            for name, line, what in leaks
        ]
    )


class _Hashing:
    """Hashes what is written on its way to the file."""

    def __init__(self, stream: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._stream = stream

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._stream.write(data)


class _Tar:
    """Counts what is written, for the end of the archive."""

    def __init__(self, packed: GzipWriter) -> None:
        self.written = 0
        self._packed = packed

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self._packed.write(data)
