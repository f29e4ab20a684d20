"""How the arriving side asks for what it needs: one JSON object a line with whoever can reach the host. No torch.

Requests on standard output: {"run": [words of a host command]}, {"fetch": {"source", "target", "limit_bytes"}},
{"say": [lines]}, {"stop": true} (end the fetch that does not move), and {"answer": {...}} at the end. Replies on
standard input, one for each `run` and `fetch`: {"ok": true, "answer": {...}} or {"ok": false, "lost": bool,
"reason": text}; `lost` means that the connection broke and is back.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.errors import Interrupted

STALL_SECONDS = 90.0
_TICK_SECONDS = 0.2
_REPORT_SECONDS = 5.0
_SHOWN_BYTES = 32 << 20


class Lost(Exception):
    """The connection broke and is back; what arrived until then is there."""


class Refused(Exception):
    """The host, or the transfer, says no; the text says why."""


class Courier(Protocol):
    """Whoever can reach the host."""

    def run(self, words: Sequence[str]) -> dict[str, Any]:
        """Run a command of the host's trainer and return its answer. Raises Refused, and Lost after an outage."""

    def fetch(self, source: str, target: Path, limit_bytes: int, tick: Callable[[], None]) -> None:
        """Fetch a file, never writing more than `limit_bytes`, and call `tick` meanwhile. Raises like `run`."""

    def say(self, lines: Sequence[str]) -> None:
        """Show lines to people."""


class Pipe:
    """The courier at the other end of standard input and output."""

    def __init__(self, replies: int | None = None, requests: int | None = None) -> None:
        self._replies = sys.stdin.fileno() if replies is None else replies
        self._requests = sys.stdout.fileno() if requests is None else requests
        self._rest = b""

    def run(self, words: Sequence[str]) -> dict[str, Any]:
        answer = self._ask({"run": list(words)}, lambda: None).get("answer")
        return answer if isinstance(answer, dict) else {}

    def fetch(self, source: str, target: Path, limit_bytes: int, tick: Callable[[], None]) -> None:
        moved, size = time.monotonic(), -1

        def watch() -> None:
            nonlocal moved, size
            tick()
            now = target.stat().st_size if target.exists() else 0
            if now != size:
                moved, size = time.monotonic(), now
            elif time.monotonic() - moved > STALL_SECONDS:
                moved = time.monotonic()
                self._send({"stop": True})

        request = {"source": source, "target": str(target), "limit_bytes": limit_bytes}
        self._ask({"fetch": request}, watch)

    def say(self, lines: Sequence[str]) -> None:
        self._send({"say": list(lines)})

    def answer(self, value: dict[str, Any]) -> None:
        """The last word."""
        self._send({"answer": value})

    def _ask(self, request: dict[str, Any], tick: Callable[[], None]) -> dict[str, Any]:
        self._send(request)
        while not select.select([self._replies], [], [], _TICK_SECONDS)[0]:
            tick()
        reply = self._line()
        if reply.get("ok"):
            return reply
        if reply.get("lost"):
            raise Lost
        raise Refused(str(reply.get("reason", "no reason given")))

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._requests, line) :]
        except BrokenPipeError:
            raise Interrupted(_LEFT) from None

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            piece = os.read(self._replies, 1 << 16)
            if not piece:
                raise Interrupted(_LEFT)
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))


_LEFT = "collect was interrupted; the same command goes on with what has arrived"


class Progress:
    """Lines like "collect: 412 of 1,034 MiB, 88 MiB/s", every few seconds, for transfers that are worth them."""

    def __init__(self, say: Callable[[Sequence[str]], None], total_bytes: int) -> None:
        self._say = say
        self._total = total_bytes
        self._done = self._before = 0
        self._shown = -1
        self._start = self._next = time.monotonic()
        self._next += _REPORT_SECONDS

    def known(self, size: int) -> None:
        """Note bytes that an earlier collect has brought."""
        self._before += size

    def arrived(self, size: int) -> None:
        """Note bytes that need not come any more."""
        self._done += size

    def show(self, under_way_bytes: int) -> None:
        """Tell people when it is time; `under_way_bytes`: of what is arriving now."""
        now = time.monotonic()
        if now < self._next or self._total < _SHOWN_BYTES:
            return
        self._next = now + _REPORT_SECONDS
        if self._shown == self._done + under_way_bytes:  # it stands still: said once is enough
            return
        self._shown = self._done + under_way_bytes
        come = (self._done + under_way_bytes) / (1 << 20)
        done, rate = come + self._before / (1 << 20), come / (now - self._start)
        self._say([f"collect: {done:,.0f} of {self._total / (1 << 20):,.0f} MiB, {rate:,.0f} MiB/s"])
