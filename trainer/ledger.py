"""The books of one plan: its file, its stages' states and the events, written by whoever holds the lock. No torch.

What cannot be written at once (a full disk, a read-only mount) is kept in memory and written later, in order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer import credentials
from trainer.digest import of_value
from trainer.errors import Interrupted
from trainer.plan import Plan
from trainer.state import (
    SCHEMA,
    Layout,
    StateError,
    append_record,
    new_event,
    now,
    read_json,
    read_stage,
    standing_result,
    write_json,
)

PATIENCE_SECONDS = 300.0  # how long the last words of a plan are tried to be written
PAUSE_SECONDS = 1.0
MEND_SECONDS = 2.0
RESERVE_FILES, RESERVE_BYTES = 8, 32 * 1024
PLAN = ""  # the plan's own place among the names of the stages
FULL = (errno.ENOSPC, errno.EDQUOT)


class Ledger:
    """Writes what happens to a plan: first the event (the log can rebuild the states), then the file."""

    def __init__(self, layout: Layout, plan: Plan, record: dict[str, Any]) -> None:
        self.layout = layout
        self.plan = plan
        self.record = record
        self.states: dict[str, dict[str, Any]] = {}  # of the stages that this ledger has written
        self.events_due: deque[dict[str, Any]] = deque()
        self.files_due: dict[str, dict[str, Any]] = {}
        self.written: dict[str, str] = {}  # the hashes of the values in the files
        self.mended_at = 0.0
        self.problem: OSError | None = None
        self.patience_is_over = False
        self.trouble = ""  # what could not be written since the stage began, as a sentence

    # What happens

    def update(self, **changes: Any) -> None:
        """Change the plan's file."""
        self.record.update(changes)
        self.files_due[PLAN] = self.record
        self.flush()

    def event(self, event: str, **fields: Any) -> None:
        self.events_due.append(new_event(event, plan_id=self.plan.plan_id, **fields))
        self.flush()

    def hint(self, event: str, **fields: Any) -> None:
        """An event that may be left out when it cannot be written at once."""
        if self.flush():
            try:
                append_record(self.layout, new_event(event, plan_id=self.plan.plan_id, **fields))
            except OSError as problem:
                self._note(problem, self.layout.events)

    def outcome(self, name: str, status: str, message: str, code: int) -> None:
        """How a stage ended for this plan; a kept stage's state stays that of the plan that made it."""
        outcomes = {**self.record["outcomes"], name: {"status": status, "message": message, "exit_code": code}}
        self.update(outcomes=outcomes)

    def known(self, name: str) -> dict[str, Any] | None:
        """A stage's state; StateError when it is none of this ledger's and cannot be trusted."""
        return self.states.get(name) or read_stage(self.layout, name)

    def begin_stage(self, name: str, **fields: Any) -> None:
        """A state of its own for a stage in this plan; the result that stood before is kept in it.

        OSError when a running stage cannot be written down: then it must not run.
        """
        known = self.known(name)
        blank = dict.fromkeys(
            ("log", "started_at", "ended_at", "fingerprint", "gate", "summary", "times", "error", "stalled_since")
        )
        record = {
            **blank, "schema": SCHEMA, "stage": name, "plan_id": self.plan.plan_id, "attempt": 0, "exit_code": 0,
            "message": "", "phase": "", "superseded": standing_result(known), **fields,
        }  # fmt: skip
        self.trouble = self.trouble if self.problem else ""
        self.set_stage("stage started", name, **record)
        if self.problem and fields.get("status") == "running":
            raise self.problem

    def end_stage(self, name: str, status: str, message: str, code: int, final: bool = True, **more: Any) -> None:
        """The end of a stage in its state, in the events and, unless it is tried again, among the plan's outcomes."""
        message += f"; {self.trouble}" if self.trouble and self.trouble not in message else ""
        changes = {
            "status": status, "phase": "", "ended_at": now(), "exit_code": code, "message": message,
            "stalled_since": None, **more,
        }  # fmt: skip
        try:
            if (self.known(name) or {}).get("plan_id") == self.plan.plan_id:
                self.set_stage("stage ended", name, **changes)
            else:  # never started in this plan
                self.begin_stage(name, reason=message, **changes)
        except StateError as problem:  # a file that we do not understand is not ours to replace
            self.event("stage unreadable", stage=name, status=status, message=str(problem))
        if final:
            self.outcome(name, status, message, code)
        self.flush(PATIENCE_SECONDS)

    def set_stage(self, event: str, name: str, details: dict[str, Any] | None = None, **changes: Any) -> None:
        """Change a stage's state; `details` go into the event only."""
        changes["updated_at"] = now()
        known = {} if event == "stage started" else self.known(name) or {}
        self.states[name] = {**known, **changes}
        self.files_due[name] = self.states[name]
        self.event(event, stage=name, state=changes, **(details or {}))

    def close(self) -> int:
        """Write down the plan's end, which needs no secrets any more; returns its exit code.

        Interrupted when it cannot be written.
        """
        with contextlib.suppress(OSError):
            credentials.forget(self.layout)
        code, message = verdict(self.record)
        self.update(status="ended", ended_at=now())
        self.event("plan ended", exit_code=code, message=message)
        written = self.flush(PATIENCE_SECONDS)
        self.give_up_reserve()
        if not written:
            raise Interrupted(f"the end of plan {self.plan.plan_id} ({message}) is not written: {self.trouble}")
        return code

    # Writing

    def flush(self, patience_seconds: float = 0.0) -> bool:
        """Write what is due, trying again for so long; returns whether it is all written."""
        deadline = time.monotonic() + patience_seconds
        while not self._written():
            if not patience_seconds or self.patience_is_over or not self.layout.root.is_dir():
                return False
            if not self.give_up_reserve():
                time.sleep(PAUSE_SECONDS)
            self.patience_is_over = time.monotonic() >= deadline  # for all that follows: it was tried long enough
        return True

    def _written(self) -> bool:
        path = self.layout.events
        try:
            if not self.layout.root.is_dir():  # moved or removed: not to be made again in its old place
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.layout.root))
            while self.events_due:
                append_record(self.layout, self.events_due[0])
                self.events_due.popleft()
            for name in list(self.files_due):
                path = self.path(name)
                self._write(name, path)
        except OSError as problem:
            self._note(problem, path)
            return False
        self.problem = None
        return True

    def _write(self, name: str, path: Path) -> None:
        if path.is_dir():  # whoever put it there may want it back
            path.rename(path.with_name(f"{path.name}.moved-{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}"))
        write_json(path, self.files_due[name])
        self.written[name] = of_value(self.files_due.pop(name))

    def path(self, name: str) -> Path:
        return self.layout.stage(name) if name else self.layout.plan

    def _note(self, problem: OSError, path: Path) -> None:
        """Remember why something could not be written, and have it among the events when they can be."""
        first = self.problem is None
        self.problem = problem
        if first:
            self.trouble = room(self.layout, problem, path)
            stage = next((name for name in reversed(self.plan.stages) if name in self.states), self.plan.stages[0])
            self.events_due.append(
                new_event("not written", plan_id=self.plan.plan_id, stage=stage, text=self.trouble)
            )  # fmt: skip

    def mend(self) -> None:
        """Write again what somebody emptied, changed or removed: while the plan runs, its files have one author."""
        if time.monotonic() - self.mended_at < MEND_SECONDS:
            return
        self.mended_at = time.monotonic()
        hurt = [name for name, known in self.written.items() if _hash_in(self.path(name)) != known]
        for name in hurt:
            self.files_due[name] = self.states[name] if name else self.record
            self.event("file mended", text=f"{self.path(name).name} was changed by somebody else and is written again")
        if not hurt and (self.files_due or self.events_due):
            self.flush()

    # The room for the last words

    def _reserve(self) -> list[Path]:
        return [self.layout.state / f".reserve-{number}" for number in range(RESERVE_FILES)]

    def make_reserve(self) -> None:
        """Take some room and inodes on the disk now, to be given up for the last words."""
        try:
            for path in self._reserve():
                if not path.exists() or path.stat().st_size < RESERVE_BYTES:
                    path.write_bytes(os.urandom(RESERVE_BYTES))  # a file of zeros takes no room on some disks
        except OSError as problem:
            self._note(problem, path)

    def give_up_reserve(self) -> bool:
        """Free the reserve; returns whether there was one."""
        found = False
        for path in self._reserve():
            with contextlib.suppress(OSError):
                path.unlink()
                found = True
        return found


def _hash_in(path: Path) -> str:
    """The hash of the value in a state file, empty when it holds none."""
    try:
        return of_value(read_json(path))
    except (OSError, StateError):
        return ""


def room(layout: Layout, problem: OSError, path: Path) -> str:
    """A sentence on something that could not be written, with what is free there."""
    words = "the disk is full: " if problem.errno in FULL else ""
    try:
        disk = os.statvfs(layout.root)
        free = f"{disk.f_bavail * disk.f_frsize} bytes and {disk.f_favail} inodes free"
    except OSError:
        free = "its folder is gone"
    return f"{words}{path} could not be written ({problem.strerror or problem}; {free})"


def verdict(record: dict[str, Any]) -> tuple[int, str]:
    """(exit code, sentence) of a plan: its first stage that did not end well; 0 when all did."""
    for item in record["outcomes"].values():
        if item["exit_code"]:
            return int(item["exit_code"]), str(item["message"])
    return 0, "every stage is done"
