"""A strict reader of .tar.gz archives: the same verdict on every Python from 3.8 on. No torch.

`tarfile` passes over damage, differs between versions and follows what an archive says. Here an archive holds regular
files and folders and is whole to its last byte, or it is refused with the member and what is wrong with it.
"""

from __future__ import annotations

import re
from typing import Iterator, NamedTuple, NoReturn

from trainer.bundle import header, names
from trainer.bundle.header import BLOCK, ZERO, Header, Refused
from trainer.bundle.stream import COPY_AGAIN, Readable, Unpacked
from trainer.errors import InputError

PADDING_BYTES = 16 << 20  # of zeros behind the end; tar fills up its last record, mostly 10 KiB
COMMIT = re.compile(rb"[0-9a-f]{40}")


class Caps(NamedTuple):
    """The most that an archive may hold: files and folders, also those that are no members, bytes in all, bytes of one
    pax header or long name, bytes of a manifest."""

    files: int = 200_000
    bytes: int = 64 << 30
    header_bytes: int = 64 << 10
    manifest_bytes: int = 64 << 20


class Member(NamedTuple):
    """One file or folder: its name in normal form ("": the root folder), bytes, seconds since 1970, and where in the
    archive it stands, for messages."""

    name: str
    is_folder: bool
    executable: bool
    size: int
    mtime: int
    place: str


class Archive:
    """The members of a .tar.gz with their contents, in order; InputError for what is not strictly right.

    Names are checked alone and together before a member is given out: each comes once, and files never are folders of
    others. A folder may come behind files that lie in it. What is left of a content is read over at the next member.
    Behind the last one the end blocks, the padding, gzip's CRC and length have been checked, and that nothing follows.
    """

    def __init__(self, stream: Readable, caps: Caps = Caps(), shown: str = "the archive") -> None:  # noqa: B008 - only read
        self._caps, self._shown = caps, shown
        self._unpacked = Unpacked(stream, shown)
        self._together = names.Together(caps.files)
        self._headers = self._members = self._left = self._bytes = 0
        self._place = shown
        self.commit = ""  # 40 hex digits, when the archive begins with the commit it was made from
        self.unpacked_bytes = 0  # of all files

    def __iter__(self) -> Iterator[tuple[Member, Iterator[bytes]]]:
        while True:
            member = self._next_member()
            if member is None:
                break
            self._left = member.size
            yield member, self._content(self._members)
            for _ in self._content(self._members):
                pass
            self._padding(member.size)
        self._end()

    def _next_member(self) -> Member | None:
        """The next file or folder with what its metadata headers say, None at the end blocks."""
        before = b""
        local: dict[bytes, bytes] = {}
        name: bytes | None = None
        while True:
            found = self._header(bool(before))
            if found is None:
                return None
            if found.kind not in header.METADATA:
                return self._member(found, name, local)
            before = self._ordered(found.kind, before)
            data = self._metadata(found)
            try:
                if found.kind == header.LONG_NAME:
                    name = header.long_name(data)
                elif found.kind == header.LOCAL:
                    local = header.records(data, local=True)
                    name = local.get(b"path")
                else:
                    self._global(header.records(data, local=False))
            except Refused as problem:
                self._refuse(problem)

    def _header(self, is_owed: bool) -> Header | None:
        """The next header block, None for an end block; `is_owed`: a metadata header waits for its member."""
        self._headers += 1
        self._place = f"{self._shown}, member {self._members + 1} at byte {self._unpacked.position}"
        block = self._unpacked.exactly(BLOCK)
        if block == ZERO and not is_owed:
            return None
        if block == ZERO:
            self._refuse(f"the archive ends behind a header without its member; {header.AGAIN}")
        if len(block) < BLOCK:
            self._refuse(f"the archive ends here, without its end blocks; {COPY_AGAIN}")
        try:
            return header.parse(block)
        except Refused as problem:
            self._refuse(problem, block[:100].partition(b"\x00")[0])

    def _ordered(self, kind: bytes, before: bytes) -> bytes:
        """The kinds of metadata headers before a member, with one more: a global one first, then one of its own."""
        if before not in (b"", header.GLOBAL) or kind == before:
            self._refuse(
                f"a header of the type {names.shown(kind)} behind one of {names.shown(before)}; {header.AGAIN}"
            )
        return before + kind

    def _metadata(self, found: Header) -> bytes:
        """The content of a metadata header."""
        most = self._caps.header_bytes
        if not 0 < found.size <= most:
            self._refuse(f"a header of {found.size} bytes, allowed are 1 to {most}; {header.AGAIN}")
        self._counted(found.size)
        data = self._unpacked.exactly(found.size)
        if len(data) < found.size:
            self._refuse(f"the archive ends within a header; {COPY_AGAIN}")
        self._padding(found.size)
        return data

    def _global(self, records: dict[bytes, bytes]) -> None:
        comment = records.get(b"comment", b"")
        if self._headers == 1 and COMMIT.fullmatch(comment):
            self.commit = comment.decode()

    def _member(self, found: Header, name: bytes | None, local: dict[bytes, bytes]) -> Member:
        """The member of a header, judged."""
        raw = found.name if name is None else name
        is_folder = found.kind == header.FOLDER
        checked = names.checked(raw, self._place, folder=is_folder)
        self._place += f", {names.shown(raw)}"
        if found.mode > 0o7777:
            self._refuse(f"the mode {found.mode:o} is more than permissions; {header.AGAIN}")
        if found.mode & 0o7000 and not is_folder:
            self._refuse(f"the file's mode {found.mode:o} is setuid, setgid or sticky; remove it and build again")
        try:
            size = header.size_of(found, local)
        except Refused as problem:
            self._refuse(problem)
        if is_folder and size:
            self._refuse(f"a folder of {size} bytes; {header.AGAIN}")
        self._members += 1
        self.unpacked_bytes += size
        self._counted(size)
        self._together.add(checked, self._place, folder=is_folder)
        return Member(checked, is_folder, bool(found.mode & 0o100), size, found.mtime, self._place)

    def _counted(self, size: int) -> None:
        """Keep within the cap before a byte is read: contents and metadata together."""
        self._bytes += size
        if self._bytes > self._caps.bytes:
            self._refuse(f"with its {size} bytes it is more than {self._caps.bytes} in all; build a smaller bundle")

    def _content(self, number: int) -> Iterator[bytes]:
        while self._left and self._members == number:
            piece = self._unpacked.some(self._left)
            if not piece:
                self._refuse(f"the archive ends {self._left} bytes before this file does; {COPY_AGAIN}")
            self._left -= len(piece)
            yield piece

    def _padding(self, size: int) -> None:
        """What fills the last block of a content: zeros."""
        count = -size % BLOCK
        padding = self._unpacked.exactly(count)
        if len(padding) < count:
            self._refuse(f"the archive ends within the padding; {COPY_AGAIN}")
        if padding.strip(b"\x00"):
            self._refuse(f"the padding behind its content is not zero; {header.AGAIN}")

    def _end(self) -> None:
        """Behind the first end block: the second one, and zeros up to the end."""
        if self._unpacked.exactly(BLOCK) != ZERO:
            self._refuse(f"one end block where two are expected; {COPY_AGAIN}")
        begin = self._unpacked.position
        while True:
            piece = self._unpacked.some(PADDING_BYTES)
            if not piece:
                break
            if self._unpacked.position - begin > PADDING_BYTES:
                self._refuse(f"more than {PADDING_BYTES} bytes of padding; {header.AGAIN}")
            if piece.strip(b"\x00"):
                self._refuse(f"there is data behind the end blocks; {header.AGAIN}")
        if self._unpacked.position % BLOCK:
            self._refuse(f"the archive's {self._unpacked.position} bytes are not whole blocks; {COPY_AGAIN}")

    def _refuse(self, problem: object, raw: bytes = b"") -> NoReturn:
        name = f", {names.shown(raw)}" if raw else ""
        raise InputError(f"{self._place}{name}: {problem}") from None
