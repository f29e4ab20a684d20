"""The whitelist of a bundle: entries and globs that say which files of a source tree go in. No torch, controller only.

One entry a line, matched against the whole path below the source tree: a name or a path, a folder (everything below
it), a glob (`*`, `?` and `[abc]` stay within one name, `**` stands for any number of folders), `!entry` for what is
left out wherever the line stands. A `#` at the start of a line or behind a blank begins a comment. Globs see dot files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import FrozenSet, NamedTuple

from trainer.config import raise_findings
from trainer.errors import InputError

NAME = ".bundleinclude"
GLOB = re.compile(r"[*?\[]")
COMMENT = re.compile(r"(?:^|\s)#.*")
States = FrozenSet[int]


class Entry(NamedTuple):
    """One line: `parts` are the path's components, None for `**`. The states of a walk are places in `parts` up to
    which the path so far matches; the last one, `len(parts)`, means that all of it does, and whatever lies below."""

    line: int
    text: str
    leaves_out: bool
    folder_only: bool
    literal: str  # the path, empty for a glob
    parts: tuple[re.Pattern[str] | None, ...]

    def start(self) -> States:
        """The states at the top of the tree."""
        return self._closed({0})

    def step(self, states: States, component: str) -> States:
        """The states one component further down; empty when nothing there or below can match."""
        if len(self.parts) in states and len(states) == 1:  # below what was matched
            return states
        moved = set(self.reached(states, component))
        moved.update(place for place in states if place < len(self.parts) and self.parts[place] is None)
        return self._closed(moved)

    def reached(self, states: States, component: str) -> States:
        """As `step`, without what `**` passes over: the places that this very component led to."""
        last = len(self.parts)
        found = {last} if last in states else set()
        for place in states - {last}:
            part = self.parts[place]
            if part is not None and part.fullmatch(component):
                found.add(place + 1)
        return frozenset(found)

    def matches(self, states: States) -> bool:
        """Whether the path of these states is matched as a whole."""
        return len(self.parts) in states

    def _closed(self, places: set[int]) -> States:
        for place in sorted(places):
            while place < len(self.parts) and self.parts[place] is None:
                place += 1
                places.add(place)
        return frozenset(places)


class Whitelist(NamedTuple):
    """What goes in, what is left out of that, and how the file is called in messages."""

    shown: str
    included: tuple[Entry, ...]
    left_out: tuple[Entry, ...]


def load(path: Path) -> Whitelist:
    """Read a whitelist; InputError names every wrong line at once."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no whitelist {path}; write one, or name another with --whitelist") from None
    except OSError as problem:
        raise InputError(f"the whitelist {path} cannot be read ({problem.strerror}); correct that") from None
    return parse(data, path.name)


def parse(data: bytes, shown: str) -> Whitelist:
    """The whitelist in these bytes; InputError names every wrong line at once."""
    try:
        rows = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise InputError(
            f"{shown}, line {line}: byte {data[problem.start]:#04x} is not UTF-8; save it as UTF-8"
        ) from None
    entries: list[Entry] = []
    findings: list[str] = []
    for line, row in enumerate(rows, 1):
        text = COMMENT.sub("", row).strip()
        if text:
            try:
                entries.append(_entry(line, text))
            except ValueError as problem:
                findings.append(f"{shown}, line {line}: {text!r} {problem}")
    if not findings and all(entry.leaves_out for entry in entries):
        findings.append(f"the whitelist {shown} names nothing that goes in; write one entry a line, such as trainer/")
    raise_findings(findings)
    return Whitelist(
        shown,
        tuple(entry for entry in entries if not entry.leaves_out),
        tuple(entry for entry in entries if entry.leaves_out),
    )


def _entry(line: int, text: str) -> Entry:
    """The entry of a line; ValueError says what is wrong with it and what to do."""
    path = text[1:].lstrip() if text.startswith("!") else text
    if "\\" in path:
        raise ValueError("holds a backslash; write / between folders, and [*] for a star itself")
    if path.startswith(("/", "~")):
        raise ValueError("is absolute; write the path below the source tree")
    while path.startswith("./"):
        path = path[2:]
    components = path.split("/")
    folder_only = components[-1] == ""
    if folder_only:
        components.pop()
    if not components or not all(components):
        raise ValueError("holds an empty name; write one path below the source tree")
    if set(components) & {".", ".."}:
        raise ValueError("holds '.' or '..'; write the path below the source tree, or ** for all of it")
    while components and components[-1] == "**":
        components.pop()
        folder_only = True
    parts = tuple(_translated(component) for component in components)
    literal = "" if not parts or GLOB.search(path) else "/".join(components)
    return Entry(line, text, text.startswith("!"), folder_only, literal, parts)


def _translated(component: str) -> re.Pattern[str] | None:
    """The expression of one component of a glob, None for `**`."""
    if component == "**":
        return None
    if "**" in component:
        raise ValueError("holds ** beside other letters; let it stand alone, as in folder/**/*.json")
    found, place = "", 0
    while place < len(component):
        letter = component[place]
        place += 1
        if letter == "[":
            end = component.find("]", place + (component[place : place + 1] == "!") + 1)
            if end < 0:
                raise ValueError("holds a [ without its ]; write [[] for the bracket itself")
            found += _letters(component[place:end])
            place = end + 1
        else:
            found += {"*": ".*", "?": "."}.get(letter, re.escape(letter))
    return re.compile(found, re.DOTALL)


def _letters(inside: str) -> str:
    """The expression of what stands between brackets."""
    negated, inside = ("^", inside[1:]) if inside.startswith("!") else ("", inside)
    escaped = "".join(letter if letter == "-" or letter.isalnum() else "\\" + letter for letter in inside)
    expression = f"[{negated}{escaped}]"
    try:
        re.compile(expression)
    except re.error:
        raise ValueError(f"holds the wrong range [{inside}]; write it from the lower letter to the higher") from None
    return expression
