"""A courier between two folders of this machine, on which everything can happen that happens on a real line."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer import arrival, artifacts, cli
from trainer.courier import Lost, Refused
from trainer.errors import TrainerError
from trainer.listing import Caps
from trainer.state import Layout

MIB = 1 << 20


class Killed(BaseException):
    """The controller is gone in the middle."""


class Road:
    """Runs the host's commands in this process and copies files like sftp: follows links, stops at the limit."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.said: list[str] = []
        self.ran: list[list[str]] = []
        self.fetched: list[tuple[str, int]] = []  # (name, bytes that passed)
        self.cuts: list[int] = []  # of the next transfers: after how many bytes they break off
        self.kill_after: int | None = None  # bytes of one transfer
        self.before_fetch: Callable[[str], None] = lambda source: None

    def run(self, words: Sequence[str]) -> dict[str, Any]:
        self.ran.append(list(words))
        given = cli.build_parser().parse_args(list(words))
        try:
            if given.command == "collect":
                return artifacts.collect(self.layout, given.anew)
            if given.end:
                return artifacts.end_export(self.layout, given.export_id, given.token)
            piece = (given.files, given.offset, given.most_bytes)
            return artifacts.export(self.layout, given.export_id, *piece, given.token)
        except (TrainerError, OSError) as problem:
            raise Refused(str(problem)) from None

    def fetch(self, source: str, target: Path, limit_bytes: int, tick: Callable[[], None]) -> None:
        self.before_fetch(source)
        if not os.path.exists(source) or not stat.S_ISREG(os.stat(source).st_mode):
            raise Refused("not a regular file")
        end = min([limit_bytes, os.path.getsize(source), *self.cuts[:1]])
        kill = self.kill_after if self.kill_after is not None and self.kill_after < end else None
        with open(source, "rb") as there, target.open("wb") as here:
            left = end if kill is None else kill
            while left > 0 and (piece := there.read(min(left, MIB))):
                left -= here.write(piece)
                here.flush()
                tick()
        self.fetched.append((Path(source).name, target.stat().st_size))
        if kill is not None:
            raise Killed
        if self.cuts and self.cuts.pop(0) <= end < os.path.getsize(source):
            raise Lost
        if os.path.getsize(source) > limit_bytes:
            raise Refused("File too large")

    def say(self, lines: Sequence[str]) -> None:
        self.said += lines

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.fetched)

    def order(self, home: Path, export_id: str = "", caps: Caps | None = None) -> arrival.Order:
        """What the role asks for after `collect`."""
        export_id = export_id or artifacts.collect(self.layout)["export_id"]
        return arrival.Order(str(self.layout.root), export_id, home, caps or Caps(1 << 40, 1 << 40))

    def bring(self, home: Path, **more: Any) -> dict[str, Any]:
        return arrival.receive(self.order(home, **more), self)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, without what collect keeps for itself there."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: content for name, content in found.items() if not name.startswith((".incoming/", ".collected"))}


def exported(layout: Layout) -> dict[str, bytes]:
    """What of a host's outputs goes home."""
    return {name: content for name, content in tree(layout.outputs).items() if not name.startswith("cache/")}


def large(layout: Layout, mib: int, name: str = "adapter/adapter_style/adapter_model.safetensors") -> Path:
    """A file that is worth a transfer of its own; no two MiB of it are equal."""
    path = layout.outputs / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        for number in range(mib):
            stream.write(number.to_bytes(8, "big") * (MIB // 8))
    return path


def kill(road: Road, home: Path, after: int) -> None:
    """One collect whose controller dies in the first transfer of more than `after` bytes."""
    road.kill_after = after
    with contextlib.suppress(Killed):
        road.bring(home)
        raise AssertionError("no transfer was that long")
    road.kill_after = None
