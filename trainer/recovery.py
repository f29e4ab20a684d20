"""Plans whose supervisor is gone, and plans that somebody wants to end. No torch."""

from __future__ import annotations

import time
from typing import Any

from trainer import credentials, process
from trainer import plan as plans
from trainer.errors import Interrupted
from trainer.ledger import Ledger
from trainer.state import Layout, append_event, now, read_stage, write_json
from trainer.supervisor import Supervisor
from trainer.workshop import GRACE_SECONDS

BEGINNING_SECONDS = 10.0  # a supervisor that has the lock writes down at once who it is


def mark_lost(layout: Layout) -> bool:
    """Write down a plan whose supervisor is gone without a word: its running stage is lost, the rest closed.

    Returns whether there was one. Nothing is done while somebody holds the lock.
    """
    record = plans.read_record(layout)
    if record is None or record["status"] != "running":  # so that looking neither locks nor makes folders
        return False
    try:
        with process.locked(layout.lock):
            record = plans.read_record(layout)
            if record is None or record["status"] != "running":
                return False
            dead = Supervisor(Ledger(layout, plans.of_record(record), record))
            for name in dead.ledger.plan.stages:
                if name in record["outcomes"]:
                    continue
                state = read_stage(layout, name)
                # `lost` without an outcome: between two attempts.
                if state and state["status"] in ("running", "lost") and state["plan_id"] == dead.ledger.plan.plan_id:
                    log = layout.root / state["log"]
                    message = f"stage {name} is lost: its supervisor ended without a word (restart, kill or power loss)"
                    dead.fail(name, log, "lost", "SupervisorLost", message, 7)
                else:
                    dead.ledger.end_stage(name, "closed", "closed: the plan was lost before it", 3)
            dead.ledger.close()
            return True
    except Interrupted as problem:
        if "holds" in str(problem):
            return False
        raise


def cancel(layout: Layout) -> list[str]:
    """End the plan of this project root, whatever it does; lines that say what was done."""
    record = _settled(layout)
    if record is None or record["status"] == "ended":
        return ["no plan is running: nothing to cancel"]
    if record["status"] == "submitted":
        return _cancel_submitted(layout)
    if not process.is_locked(layout.lock):
        mark_lost(layout)
        return [f"plan {record['plan_id']} was lost already: its state says so now"]
    who = record.get("supervisor")
    process.end(who or {}, GRACE_SECONDS * 2 + 10)
    if process.is_alive(record.get("worker")):
        process.end(record["worker"], 1.0)
    mark_lost(layout)
    return [f"plan {record['plan_id']} was cancelled"]


def _settled(layout: Layout) -> dict[str, Any] | None:
    """The plan's file, read when no supervisor is just beginning with it: then it is known whom to end."""
    deadline = time.monotonic() + BEGINNING_SECONDS
    while True:
        record = plans.read_record(layout)
        beginning = record is not None and record["status"] == "submitted" and process.is_locked(layout.lock)
        if not beginning or time.monotonic() >= deadline:
            return record
        time.sleep(0.05)


def _cancel_submitted(layout: Layout) -> list[str]:
    """End a plan that nobody runs yet; under the lock, so that no supervisor begins with it meanwhile."""
    with process.locked(layout.lock):
        record = plans.read_record(layout)
        if record is not None and record["status"] == "submitted":
            message = "cancelled before it began"
            outcome = {"status": "cancelled", "message": message, "exit_code": 7}
            outcomes = dict.fromkeys(record["stages"], outcome)
            credentials.forget(layout)
            write_json(layout.plan, {**record, "status": "ended", "ended_at": now(), "outcomes": outcomes})
            append_event(layout, "plan ended", plan_id=record["plan_id"], exit_code=7, message=message)
            return [f"plan {record['plan_id']} was {message}"]
    return cancel(layout)  # it began, or another one came, in that moment
