"""The controller's side of collect: what to fetch, in which order, and what of it counts. No torch.

This process decides; whoever started it fetches (action_plugins/artifacts_fetch.py, through Ansible's connection;
courier.py is between them). The host is not trusted: its listing is checked before a byte of it is fetched
(listing.py), every fetch has a limit that the courier enforces, a file counts when its content has the listed hash,
and no path is taken from an answer: an sftp client would run a command that is hidden in one.

Small files come in batches, as one piece that is cut at the listed sizes: there is no archive format to lie in.
A large file of an adapter or a run comes from where it lies and is hashed while it arrives. What was cut goes on
in pieces: the host hashes what is here already, and only what follows is fetched. A file that changed between
listing and fetch asks for another listing; one that is not what the second listing says either is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import publication
from trainer.courier import Courier, Lost, Progress, Refused
from trainer.errors import InputError, Interrupted
from trainer.landing import Landing, digest_of, opened, pieces, size_of
from trainer.listing import MOST_LISTING_BYTES, Caps, Entry, id_of, parse

LARGE_BYTES = 8 << 20  # from here on a file is worth a transfer of its own
BATCH_BYTES = 64 << 20
BATCH_FILES = 10_000
_LISTINGS = 3


@dataclass(frozen=True)
class Order:
    """What to bring: the host's project root, the id that `collect` gave there, where to, how much at most."""

    host_root: str
    export_id: str
    output_dir: Path
    caps: Caps


class Changed(Exception):
    """A file arrived with another content than listed."""

    def __init__(self, entry: Entry, found: str) -> None:
        super().__init__(f"{entry.path} is listed as {entry.sha256[:12]} and arrived {found}")
        self.entry = entry


def receive(order: Order, courier: Courier) -> dict[str, Any]:
    """Bring an export home and publish it; {"export_id", "changed", "lines"}.

    Interrupted (exit code 7) when what the host sends does not hold or another collect is at work, InputError
    when the disk is too small or `output_dir` is a folder of outputs that is trained in.
    """
    if publication.is_trained_in(order.output_dir):
        return _home_already(order, courier)
    with opened(order.output_dir) as landing:
        publication.finish(landing)
        arrival = _Arrival(order, courier, landing)
        entries = arrival.bring()
        lines = publication.publish(landing, entries, arrival.export_id)
    with contextlib.suppress(Lost, Refused):  # tidying up; what is left there goes with a later collect
        courier.run(["export", "--export-id", arrival.export_id, "--token", arrival.token, "--end", "--json"])
    return {"export_id": arrival.export_id, "changed": True, "lines": lines}


def _home_already(order: Order, courier: Courier) -> dict[str, Any]:
    """The host's own outputs on this machine: nothing is fetched, and they are never marked as a copy."""
    with tempfile.TemporaryDirectory() as folder:
        text = fetch_listing(order, courier, order.export_id, Path(folder) / "listing")
    entries = parse(text, order.caps)
    if not publication.is_there(order.output_dir, entries):
        raise InputError(f"a host trains in {order.output_dir} itself; name another folder for what comes home")
    lines = publication.closing_lines(order.output_dir, entries, order.output_dir)
    return {"export_id": order.export_id, "changed": False, "lines": lines}


def fetch_listing(order: Order, courier: Courier, export_id: str, target: Path) -> bytes:
    """The listing of an export, which is what its id says."""
    if not re.fullmatch(r"[0-9a-f]{64}", export_id):
        raise Interrupted(f"the host answered {export_id[:80]!r} where the id of an export belongs; nothing was taken")
    while True:
        target.unlink(missing_ok=True)
        try:
            courier.fetch(_export_path(order, export_id, "listing"), target, MOST_LISTING_BYTES, lambda: None)
            break
        except Lost:
            continue
        except Refused as problem:
            raise Interrupted(f"the host's listing cannot be fetched: {problem}") from None
    if size_of(target) >= MOST_LISTING_BYTES:
        raise Interrupted(f"the host's listing has more than {MOST_LISTING_BYTES} bytes; nothing was taken over")
    text = target.read_bytes()
    target.unlink()
    if id_of(text) != export_id:
        raise Interrupted(f"the host's listing arrived as {id_of(text)[:12]}, not as {export_id[:12]}; collect again")
    return text


def _export_path(order: Order, export_id: str, name: str) -> str:
    return f"{order.host_root}/outputs/cache/export_{export_id}/{name}"


class _Arrival:
    """One run of `receive`: its listing, what is still missing, how far it is."""

    def __init__(self, order: Order, courier: Courier, landing: Landing) -> None:
        self.order, self.courier, self.landing = order, courier, landing
        self.export_id = order.export_id
        self.token = secrets.token_hex(4)
        self.numbers: dict[str, int] = {}
        self.progress = Progress(courier.say, 0)

    def bring(self) -> list[Entry]:
        """Fetch until every listed file is in the landing folder; returns the listing."""
        lied: dict[str, str] = {}
        while True:
            target = self.landing.parts / "listing.got"
            entries = parse(fetch_listing(self.order, self.courier, self.export_id, target), self.order.caps)
            self.numbers = {entry.path: number for number, entry in enumerate(entries)}
            self.landing.reuse(entries)
            self.landing.take_up(entries)
            self.landing.check_space(entries)
            try:
                self._fetch(self.landing.missing(entries))
                return entries
            except Changed as change:
                entry = change.entry
                if lied.get(entry.path) == entry.sha256 or len(lied) >= _LISTINGS:
                    raise Interrupted(f"{change}; nothing was taken over, look at the host and collect again") from None
                lied[entry.path] = entry.sha256
                self.courier.say([f"collect: {entry.path} changed on the host meanwhile; asking for a new listing"])
                self.export_id = str(self._run(["collect", "--anew", "--json"]).get("export_id"))

    def _run(self, words: Sequence[str]) -> dict[str, Any]:
        while True:
            try:
                return self.courier.run(words)
            except Lost:
                continue
            except Refused as problem:
                raise Interrupted(f"the host does not go on with the collecting: {problem}") from None

    def _fetch(self, missing: Sequence[Entry]) -> None:
        self.progress = Progress(self.courier.say, sum(entry.size for entry in missing))
        for batch in _batches([entry for entry in missing if entry.size < LARGE_BYTES]):
            self._batch(batch)
        for entry in missing:
            if entry.size >= LARGE_BYTES:
                self.progress.known(size_of(self.landing.part(entry)))
                self._large(entry)

    def _export(self, entries: Sequence[Entry], offset: int = 0) -> tuple[str, str]:
        """Let the host write a piece; (its path, the hash of what is before it)."""
        words = ["export", "--export-id", self.export_id, "--token", self.token, "--json"]
        words += ["--files", _ranges(sorted(self.numbers[entry.path] for entry in entries))]
        words += ["--offset", str(offset), "--most-bytes", str(BATCH_BYTES)]
        before = str(self._run(words).get("before"))
        return _export_path(self.order, self.export_id, f"piece-{self.token}"), before

    def _batch(self, batch: Sequence[Entry]) -> None:
        """Bring small files together; after a cut, those that had not arrived."""
        while batch:
            source, _ = self._export(batch)
            got, size = self.landing.expect_batch(batch), sum(entry.size for entry in batch)
            lost = False
            try:
                self.courier.fetch(source, got, size + 1, self._shows(got))
            except Lost:
                lost = True
            except Refused as problem:
                self.landing.check_space(batch)
                raise Interrupted(f"{batch[0].path} and others cannot be fetched: {problem}") from None
            wrong = self.landing.split_batch()
            rest = self.landing.missing(batch)
            self.progress.arrived(sum(entry.size for entry in batch) - sum(entry.size for entry in rest))
            if wrong:
                raise Changed(wrong[0][0], f"as {wrong[0][1][:12]}")
            if rest and not lost:
                raise Changed(rest[0], "cut short")
            batch = rest

    def _shows(self, got: Path) -> Callable[[], None]:
        return lambda: self.progress.show(size_of(got))

    def _large(self, entry: Entry) -> None:
        """Bring one large file: from where it lies while nothing of it is here, in pieces after a cut."""
        # Logs and events may have grown since; a piece has the listed size, the file itself has not.
        stands_still = entry.path.startswith(("adapter/", "training_sync/"))
        part = self.landing.part(entry)
        tail = Tail(part)
        while entry.sha256 not in self.landing.verified:
            if size_of(part) > entry.size:
                part.unlink()
            if stands_still and not size_of(part):
                self._whole(entry)
                tail = Tail(part)
            else:
                tail = self._piece(entry, tail)

    def _whole(self, entry: Entry) -> None:
        got = self.landing.got(entry)
        got.unlink(missing_ok=True)
        tail = Tail(got)
        if not self._fetch_file(entry, f"{self.order.host_root}/outputs/{entry.path}", got, entry.size, tail.read):
            return
        # Written out of order, the file is right where its hash on the way was not.
        if tail.finish() != entry.sha256 and digest_of(got) != entry.sha256:
            got.unlink()
            raise Changed(entry, f"as {tail.finish()[:12]}")
        self.landing.accept(got, entry)
        self.progress.arrived(entry.size)

    def _piece(self, entry: Entry, tail: Tail) -> Tail:
        """Fetch what follows the part that is here; returns what hashes the part from then on."""
        part, got = self.landing.part(entry), self.landing.got(entry)
        part.touch()
        here = tail.finish()
        source, before = self._export([entry], tail.position)
        if before != here:
            part.unlink()
            return Tail(part)
        size = min(entry.size - tail.position, BATCH_BYTES)
        got.unlink(missing_ok=True)
        if not self._fetch_file(entry, source, got, size, lambda: None):
            return tail
        self.landing.append(entry, got, size)
        got.unlink()
        self.progress.arrived(size)
        if tail.position + size == entry.size:
            if tail.finish() != entry.sha256:
                part.unlink()
                raise Changed(entry, f"as {tail.finish()[:12]}")
            self.landing.accept(part, entry)
        return tail

    def _fetch_file(self, entry: Entry, source: str, got: Path, size: int, hash_more: Callable[[], None]) -> bool:
        """Fetch exactly `size` bytes; False when it was cut (what arrived is then part of the part)."""

        def tick() -> None:
            hash_more()
            self.progress.show(size_of(got))

        try:
            self.courier.fetch(source, got, size + 1, tick)
        except Lost:
            before = size_of(self.landing.part(entry))
            self.landing.salvage(entry, got)
            self.progress.arrived(size_of(self.landing.part(entry)) - before)
            return False
        except Refused as problem:
            if size_of(got) <= size:
                self.landing.check_space([entry])
                got.unlink(missing_ok=True)
                raise Changed(entry, f"not at all ({problem})") from None
        if size_of(got) != size:
            found = "with more than was listed" if size_of(got) > size else f"with {size_of(got)} bytes of {size}"
            got.unlink(missing_ok=True)
            raise Changed(entry, found)
        return True


class Tail:
    """Hashes a file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self.position = 0

    def read(self, most_bytes: int = 256 << 20) -> None:
        """Hash what has come since."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as stream:
            stream.seek(self.position)
            for piece in pieces(stream, most_bytes):
                self._digest.update(piece)
                self.position += len(piece)

    def finish(self) -> str:
        """Hash the rest; sha256 of everything."""
        self.read(1 << 60)
        return self._digest.hexdigest()


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        if batch and (len(batch) >= BATCH_FILES or size + entry.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 7] -> "0-2,7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in found)
