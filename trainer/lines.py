"""JSONL as a stream: one row at a time, the findings on the way, the hash of what was read at the end. No torch.

A file of a million rows is never held: neither its bytes nor its rows nor its findings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SHOWN = 1000  # findings of one severity that a file tells in full; the others are counted
MAX_LINE_BYTES = 64 << 20  # a line is parsed as a whole; a row of a context of a million tokens has some 4 MB
# Above so many brackets a line may be nested deeper than others can write it, so it is written once for a test.
NESTED = 200
BIG_BYTES = 4 << 20  # from here on a file is streamed: smaller ones are held and take less than a second
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Finding:
    """One fault in a data file: where it is, what is wrong with the value found, what to do.

    `count` is above 1 for the one that stands for all those that are not told in full.
    """

    severity: str
    file: str
    line: int
    field: str
    problem: str
    remedy: str
    count: int = 1

    def __str__(self) -> str:
        place = self.file + (f":{self.line}" if self.line else "")
        name = f"{self.field}: " if self.field else ""
        return f"{self.severity}: {place}: {name}{self.problem}; {self.remedy}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_big(path: Path) -> bool:
    """Whether a file is too large to be held or read more often than needed; one that is not there is not."""
    try:
        return path.stat().st_size >= BIG_BYTES
    except OSError:
        return False


class Findings:
    """Collects the findings of one file: the first `shown` of each severity, and how many more there are."""

    def __init__(self, file: str, shown: int = SHOWN) -> None:
        self.file = file
        self.shown = shown
        self.counts: dict[str, int] = {}
        self._kept: list[Finding] = []

    def add(self, line: int, field: str, problem: str, remedy: str, severity: str = "error") -> None:
        self.counts[severity] = self.counts.get(severity, 0) + 1
        if self.counts[severity] <= self.shown:
            self._kept.append(Finding(severity, self.file, line, field, problem, remedy))

    def take(self, others: list[Finding]) -> None:
        """Findings that somebody else made, in their order."""
        for item in others:
            before = self.counts.get(item.severity, 0)
            self.counts[item.severity] = before + item.count
            if item.count == 1 and before < self.shown:
                self._kept.append(item)

    def told(self) -> list[Finding]:
        """Those kept, in their order, and one for the others of each severity."""
        return [*self._kept, *(self._rest(severity) for severity, n in self.counts.items() if n > self.shown)]

    def _rest(self, severity: str) -> Finding:
        more = self.counts[severity] - self.shown
        problem = f"and {more:,} more {severity}{'s' if more > 1 else ''} like these"
        return Finding(severity, self.file, 0, "", problem, "correct those named first", more)


class Lines:
    """The rows of a JSONL file with their line numbers; may be walked through again, each time from the start.

    After a walk `rows` is their number, `findings` has one finding for each line that is not a row, and `sha256`
    is the hash of the bytes that were read.
    """

    def __init__(self, path: Path, shown: str = "") -> None:
        self.path = path
        self.shown = shown or str(path)
        self._begin()

    def _begin(self) -> None:
        self.findings = Findings(self.shown)
        self.rows = 0
        self.sha256 = ""

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        for number, line in self.raw():
            row = parse(number, line, self.findings)
            if row is not None:
                self.rows += 1
                yield number, row
        if not self.rows and not self.findings.counts:
            self.findings.add(0, "", "holds no row", "add rows or name another data root")

    def sample(self, most: int, rows: int) -> list[Row]:
        """At most so many rows, evenly spaced over the `rows` of a file in which every line that is not blank is one;
        no other line is parsed."""
        wanted = {place * rows // most for place in range(most)} if rows > most else range(rows)
        lines = (line for place, line in enumerate(self.raw()) if place in wanted)
        return [row for number, line in lines if (row := parse(number, line, self.findings)) is not None]

    def raw(self) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers, unread; counts no rows."""
        self._begin()
        digest, number = hashlib.sha256(), 0
        try:
            with self.path.open("rb") as stream:
                while line := stream.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    digest.update(line)
                    if number == 1:
                        line = line.removeprefix(BOM)
                    if len(line) > MAX_LINE_BYTES:
                        while line and not line.endswith(b"\n"):
                            line = stream.readline(MAX_LINE_BYTES)
                            digest.update(line)
                        limit = f"{MAX_LINE_BYTES >> 20} MiB"
                        self.findings.add(number, "", f"is longer than {limit}", "write one JSON object a line")
                    elif line.strip():
                        yield number, line
        except OSError as problem:
            told = f"cannot be read ({problem.strerror})"
            self.findings.add(0, "", told, "put the file there or name another data root")
        self.sha256 = digest.hexdigest()


def parse(number: int, line: bytes, findings: Findings) -> Row | None:
    """The row in a line, or None and a finding that says why it is none."""
    try:
        row = _DECODER.decode(line.removesuffix(b"\n").decode("utf-8"))
        if b"\\u" in line or line.count(b"[") + line.count(b"{") > NESTED:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as problem:
        findings.add(number, "", f"is not UTF-8 (byte {problem.start})", "save the file as UTF-8")
    except UnicodeEncodeError:
        findings.add(number, "", "holds half of a surrogate pair", "write the whole character")
    except (ValueError, RecursionError) as problem:
        findings.add(number, "", f"broken JSON ({problem})", "write one JSON object a line")
    else:
        if isinstance(row, dict):
            return row
        findings.add(number, "", f"is a {type(row).__name__}, not an object", "write one JSON object a line")
    return None


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = min(name for name in found if names.count(name) > 1)
        raise ValueError(f"the name {doubled!r} stands twice in one object")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)  # made once: it is not cheap
