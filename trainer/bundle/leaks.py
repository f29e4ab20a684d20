"""Secrets in the contents of files: private keys and tokens, by their form. No torch, controller only.

The forms are those that the providers document and secret scanners look for. A value that was found is never shown.
"""

from __future__ import annotations

import re

WINDOW = 256  # longer than what tells any of them
LEAST_BYTES = 64 << 10  # looked at before the end of a file: a small one is looked at once
_LETTERS = rb"[A-Za-z0-9]"


def _token(text: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?<![A-Za-z0-9])" + text)


# What a cheap search finds first, what it must then be, and what it is called. A key counts when its header is a line:
# a text that only speaks of one may be trained on.
_KEY_END = rb"-----[ \t]*(?:[\r\n]|\\r|\\n|\Z)"
FORMS: tuple[tuple[bytes, re.Pattern[bytes], str], ...] = (
    (b"-----BEGIN ", re.compile(rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?" + _KEY_END), "a private key"),
    (b"PuTTY-User-Key-File-", re.compile(rb"PuTTY-User-Key-File-\d: "), "a private key"),
    (b"hf_", _token(rb"hf_" + _LETTERS + rb"{30}"), "a Hugging Face token"),
    (b"ghp_", _token(rb"ghp_" + _LETTERS + rb"{36}"), "a GitHub token"),
    (b"gho_", _token(rb"gho_" + _LETTERS + rb"{36}"), "a GitHub token"),
    (b"ghs_", _token(rb"ghs_" + _LETTERS + rb"{36}"), "a GitHub token"),
    (b"github_pat_", _token(rb"github_pat_[A-Za-z0-9_]{50}"), "a GitHub token"),
    (b"glpat-", _token(rb"glpat-[A-Za-z0-9_-]{20}"), "a GitLab token"),
    (b"AKIA", _token(rb"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"), "an AWS key"),
    (b"ASIA", _token(rb"ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"), "an AWS key"),
    (b"LTAI", _token(rb"LTAI[A-Za-z0-9]{16,20}(?![A-Za-z0-9])"), "an Alibaba Cloud key"),
    (b"AIza", _token(rb"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"), "a Google key"),
    (b"xox", _token(rb"xox[abprs]-[A-Za-z0-9-]{20}"), "a Slack token"),
)  # fmt: skip


class Scanner:
    """Looks at a file piece by piece; what lies across the border of two pieces is seen as well."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []  # (line, what it looks like)
        self._kept = b""
        self._place = 0  # where in `_kept` to go on; what lies before was looked at and is seen by a look behind
        self._lines = 1  # number of the line in which `_kept` begins

    def feed(self, piece: bytes) -> None:
        """Look at the next piece."""
        window = self._kept + piece if self._kept else piece
        end = len(window) - WINDOW
        if end <= self._place or len(window) < LEAST_BYTES:
            self._kept = window
            return
        self._search(window, end)
        begin = end - 1
        self._lines += window.count(b"\n", 0, begin)
        self._kept, self._place = window[begin:], end - begin

    def close(self) -> list[tuple[int, str]]:
        """Look at the rest; returns everything found."""
        self._search(self._kept, len(self._kept))
        return sorted(set(self.found))

    def _search(self, window: bytes, end: int) -> None:
        """Note what begins in window[_place:end]."""
        for marker, form, what in FORMS:
            place = window.find(marker, self._place, end + len(marker) - 1)
            while place >= 0:
                if form.match(window, place):
                    self.found.append((self._lines + window.count(b"\n", 0, place), what))
                place = window.find(marker, place + 1, end + len(marker) - 1)
