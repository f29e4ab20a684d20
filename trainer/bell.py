"""How a supervisor hears that somebody wants it to end: at safe places, never in a rename's middle. No torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGINT)


class Cancelled(Exception):
    """Somebody asked the supervisor to end (SIGTERM or SIGINT)."""


class Bell:
    """Rings once; `answer` raises Cancelled from then on, and so does anything under `listening` at once."""

    def __init__(self) -> None:
        self.rung = False
        self.listens = False

    def install(self) -> None:
        """Ring on the signals that end a process, whatever whoever started this one had blocked or ignored.

        A closed terminal is not one of them: the plan goes on.
        """
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*ENDING, signal.SIGCHLD})
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide how the worker ended
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in ENDING:
            signal.signal(number, self.ring)

    def ring(self, number: int = 0, frame: Any = None) -> None:
        self.rung = True
        if self.listens:
            self.listens = False
            raise Cancelled

    def answer(self) -> None:
        """Raise Cancelled when it has rung."""
        if self.rung:
            raise Cancelled

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Let the bell break off what takes long and changes nothing."""
        self.listens = True
        try:
            self.answer()
            yield
        finally:
            self.listens = False
