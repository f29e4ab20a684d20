"""The books of one plan: its file, its stages' states and the events, written by whoever holds the lock. No torch."""

from __future__ import annotations

import contextlib
from typing import Any

from trainer import credentials
from trainer.plan import Plan
from trainer.state import SCHEMA, Layout, append_event, now, read_stage, standing_result, write_json


class Ledger:
    """Writes what happens to a plan: first the event (the log can rebuild the states), then the file."""

    def __init__(self, layout: Layout, plan: Plan, record: dict[str, Any]) -> None:
        self.layout = layout
        self.plan = plan
        self.record = record

    def update(self, **changes: Any) -> None:
        """Change the plan's file."""
        self.record.update(changes)
        write_json(self.layout.plan, self.record)

    def event(self, event: str, **fields: Any) -> None:
        append_event(self.layout, event, plan_id=self.plan.plan_id, **fields)

    def outcome(self, name: str, status: str, message: str, code: int) -> None:
        """How a stage ended for this plan; a kept stage's state stays that of the plan that made it."""
        outcomes = {**self.record["outcomes"], name: {"status": status, "message": message, "exit_code": code}}
        self.update(outcomes=outcomes)

    def begin_stage(self, name: str, **fields: Any) -> None:
        """A state of its own for a stage in this plan; the result that stood before is kept in it."""
        known = read_stage(self.layout, name)
        blank = dict.fromkeys(("log", "started_at", "ended_at", "fingerprint", "gate", "summary", "times", "error"))
        record = {
            **blank, "schema": SCHEMA, "stage": name, "plan_id": self.plan.plan_id, "attempt": 0, "exit_code": 0,
            "message": "", "phase": "", "superseded": standing_result(known), **fields,
        }  # fmt: skip
        self.set_stage("stage started", name, **record)

    def end_stage(self, name: str, status: str, message: str, code: int, final: bool = True, **more: Any) -> None:
        """The end of a stage in its state, in the events and, unless it is tried again, among the plan's outcomes."""
        changes = {
            "status": status, "phase": "", "ended_at": now(), "exit_code": code, "message": message, **more,
        }  # fmt: skip
        known = read_stage(self.layout, name) or {}
        if known.get("plan_id") == self.plan.plan_id:
            self.set_stage("stage ended", name, **changes)
        else:  # never started in this plan
            self.begin_stage(name, reason=message, **changes)
        if final:
            self.outcome(name, status, message, code)

    def set_stage(self, event: str, name: str, details: dict[str, Any] | None = None, **changes: Any) -> None:
        """Change a stage's state; `details` go into the event only."""
        changes["updated_at"] = now()
        self.event(event, stage=name, state=changes, **(details or {}))
        known = {} if event == "stage started" else read_stage(self.layout, name) or {}
        write_json(self.layout.stage(name), {**known, **changes})

    def close(self) -> int:
        """Write down the plan's end, which needs no secrets any more; returns its exit code."""
        with contextlib.suppress(OSError):
            credentials.forget(self.layout)
        code, message = verdict(self.record)
        self.update(status="ended", ended_at=now())
        self.event("plan ended", exit_code=code, message=message)
        return code


def verdict(record: dict[str, Any]) -> tuple[int, str]:
    """(exit code, sentence) of a plan: its first stage that did not end well; 0 when all did."""
    for item in record["outcomes"].values():
        if item["exit_code"]:
            return int(item["exit_code"]), str(item["message"])
    return 0, "every stage is done"
