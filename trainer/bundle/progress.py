"""How far a long work is, on standard error. No torch, Python 3.8."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Callable, TextIO

COLUMNS = 79
TERMINAL_SECONDS = 0.2  # between two updates of a terminal's line
LINE_SECONDS = 10.0  # between two lines elsewhere; shorter works say nothing there
MIB = 1 << 20


class Progress:
    """Called with (bytes done, bytes in all). A terminal sees one line that is updated and goes away at the end."""

    def __init__(self, what: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._began = clock()
        self._next = self._began + (TERMINAL_SECONDS if self._is_terminal else LINE_SECONDS)
        self._is_line_there = False

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (TERMINAL_SECONDS if self._is_terminal else LINE_SECONDS)
        text = self._text(done, total, now - self._began)
        self._write(f"\r{text:<{COLUMNS}}" if self._is_terminal else text + "\n")
        self._is_line_there = self._is_terminal

    def close(self) -> None:
        """Clear the line of a terminal."""
        if self._is_line_there:
            self._write("\r" + " " * COLUMNS + "\r")
            self._is_line_there = False

    def _text(self, done: int, total: int, seconds: float) -> str:
        speed = done / seconds if seconds > 0 else 0.0
        text = f"{self._what}: {done // MIB} of {-(-total // MIB)} MiB, {speed / MIB:.0f} MiB/s"
        if 0 < done <= total and speed:
            text += f", {(total - done) / speed:.0f} s left"
        return text[:COLUMNS]

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            self._stream.write(text)
            self._stream.flush()
