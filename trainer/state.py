"""Durable files: whole-or-nothing JSON, stage states and the append-only event log. No torch.

A file is written beside its target, fsynced, renamed, and its folder fsynced. Anything unknown, corrupt or
written by a newer version stops with a named error; it never means "start again".
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer.errors import Interrupted

SCHEMA = 1
STATUSES = (
    "pending", "running", "passed", "missed", "failed", "lost", "cancelled", "skipped", "closed",
)  # fmt: skip
# After these a stage of a plan moves no more.
ENDED = tuple(status for status in STATUSES if status not in ("pending", "running"))


class StateError(Interrupted):
    """A state file that cannot be trusted."""


class Layout:
    """Where everything lies below one project root."""

    def __init__(self, project_root: Path) -> None:
        self.move_to(project_root)

    def move_to(self, project_root: Path) -> None:
        """Follow a project root that was moved."""
        self.root = project_root.resolve()
        self.outputs = self.root / "outputs"
        self.adapters = self.outputs / "adapter"
        self.logs = self.outputs / "logs"
        self.runs = self.outputs / "training_sync"
        self.state = self.outputs / "state"
        self.cache = self.outputs / "cache"
        self.checkpoints = self.outputs / "checkpoints"
        self.models = self.root / "models"
        self.plan = self.state / "plan.json"
        self.events = self.state / "events.jsonl"
        self.lock = self.state / "supervisor.lock"

    def stage(self, name: str) -> Path:
        return self.state / f"{name}.json"

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def now() -> str:
    """The present time as ISO 8601 in UTC, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text` durably: a reader, or a host that loses power, sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with fresh.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """fsync a file that somebody else wrote: its bytes survive a power loss."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write a record of this schema durably."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The record in a file, None where there is no file; StateError for anything that is not one of ours."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as problem:
        raise StateError(f"the state file {path} cannot be read ({problem}); look at it before you go on") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise StateError(f"the state file {path} is not JSON; restore it or move it away after a look") from None
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        words = "was written by a newer version" if isinstance(schema, int) and schema > SCHEMA else "is not a state"
        raise StateError(f"the state file {path} {words} (schema {schema!r}, known {SCHEMA}); nothing was started")
    return dict(value)


def read_stage(layout: Layout, name: str) -> dict[str, Any] | None:
    """The state of a stage, None when it never ran; StateError when it is not a known state."""
    record = read_json(layout.stage(name))
    if record is None:
        return None
    if record.get("stage") != name or record.get("status") not in STATUSES:
        raise StateError(
            f"the state file {layout.stage(name)} is of stage {record.get('stage')!r} with the status "
            f"{record.get('status')!r}; restore it or move it away after a look"
        )
    return record


# What a stage's state says of a result; a later state keeps it as `superseded` while the result itself stands.
RESULT_FIELDS = (
    "status", "plan_id", "attempt", "reason", "mode", "started_at", "ended_at", "log", "exit_code", "message",
    "fingerprint", "gate", "summary", "times", "error",
)  # fmt: skip


def standing_result(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """The result (passed or missed) that a stage's adapter on disk stands for, whatever was tried since."""
    if record is None:
        return None
    if record["status"] in ("passed", "missed") and record.get("fingerprint"):
        return {name: record.get(name) for name in RESULT_FIELDS}
    return record.get("superseded")


def new_event(event: str, **fields: Any) -> dict[str, Any]:
    """An event of now."""
    return {"time": now(), "event": event, **fields}


def append_event(layout: Layout, event: str, **fields: Any) -> dict[str, Any]:
    """Append one event durably and return it."""
    record = new_event(event, **fields)
    append_record(layout, record)
    return record


def append_record(layout: Layout, record: dict[str, Any]) -> None:
    """Append an event durably. A torn last line (power loss, full disk) is closed first."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    layout.state.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(layout.events, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:  # a disk with some room left takes a part of it
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_events(layout: Layout, after: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Whole events behind byte `after`, and where the next one will begin. A torn line is passed over.

    A log that is shorter than `after` is another one than that of the last reading, and is read from its start.
    """
    events: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError), layout.events.open("rb") as stream:
        after = after if after <= os.fstat(stream.fileno()).st_size else 0
        stream.seek(after)
        for line in stream:
            if not line.endswith(b"\n"):
                break
            after += len(line)
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and isinstance(found.get("event"), str):
                    events.append(found)
    return events, after


def stage_of_event(event: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, changes of its state) that an event carries."""
    if "stage" in event and isinstance(event.get("state"), dict):
        yield event["stage"], event["state"]


def derive_states(events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The stage states as the events tell them: the files can be rebuilt from the log."""
    states: dict[str, dict[str, Any]] = {}
    for event in events:
        for stage, changes in stage_of_event(event):
            kept = {} if event["event"] == "stage started" else states.get(stage, {})
            states[stage] = {**kept, **changes}
    return states
