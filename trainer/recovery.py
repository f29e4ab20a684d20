"""Plans whose supervisor is gone, and plans that somebody wants to end. No torch."""

from __future__ import annotations

import time
from typing import Any

from trainer import credentials, process, stages
from trainer import plan as plans
from trainer.errors import Interrupted
from trainer.ledger import MEND_SECONDS, Ledger
from trainer.process import Ended, Locked
from trainer.state import Layout, StateError, append_event, now, read_stage, write_json
from trainer.supervisor import Supervisor
from trainer.workshop import GRACE_SECONDS

BEGINNING_SECONDS = 10.0  # a supervisor that has the lock writes down at once who it is
LEFT_SECONDS = 5.0  # grace for what outlived its supervisor
UNEXPECTED_END = "its supervisor ended without a word (restart, kill or power loss)"


class Unwritten(Interrupted):
    """A plan is lost, and that cannot be written down."""


def mark_lost(layout: Layout, status: str = "lost", reason: str = UNEXPECTED_END) -> bool:
    """Write down a plan whose supervisor is gone without a word: its running stage is lost, the rest closed.

    What it left running is ended first: nothing trains unseen. Returns whether there was such a plan. Nothing is
    done while somebody holds the lock. Unwritten when the disk does not take it.
    """
    record = plans.read_record(layout)
    if record is None:
        return _mark_without_plan(layout)
    if record["status"] != "running":  # so that looking neither locks nor makes folders
        return False
    plan_id = record["plan_id"]
    try:
        with process.locked(layout.lock):
            record = plans.read_record(layout)
            if record is None or record["status"] != "running" or process.is_alive(record.get("supervisor")):
                return False
            _end_left(layout, record)
            _write_lost(layout, record, status, reason)
            return True
    except Locked:
        return False
    except OSError as problem:
        why = f"{problem.strerror or problem}: {problem.filename or layout.state}"
        raise Unwritten(f"plan {plan_id} is lost: {reason}; this cannot be written down ({why})") from None


def _write_lost(layout: Layout, record: dict[str, Any], status: str, reason: str) -> None:
    """End the books of a dead supervisor: the stage that it had come to is lost, the later ones are closed."""
    dead = Supervisor(Ledger(layout, plans.of_record(record), record))
    dead.ledger.give_up_reserve()
    dead.ledger.patience_is_over = True  # whoever looks does not wait for room on the disk
    left = [name for name in dead.plan.stages if name not in record["outcomes"]]
    for name in left[:1]:
        _lose(dead, name, status, f"stage {name} is {status}: {reason}")
    for name in left[1:]:
        dead.ledger.end_stage(name, "closed", f"closed: the plan was {status} before it", 3)
    if dead.ledger.problem:
        raise dead.ledger.problem
    dead.ledger.close()


def _lose(dead: Supervisor, name: str, status: str, message: str) -> None:
    try:
        state = read_stage(dead.layout, name) or {}
    except StateError as problem:
        dead.ledger.end_stage(name, status, f"{message}; {problem}", 7)
        return
    if state.get("plan_id") == dead.plan.plan_id and state["log"]:
        dead.fail(name, dead.layout.root / state["log"], status, "SupervisorLost", message, 7)
    else:  # it had not begun with it
        dead.ledger.end_stage(name, status, message, 7)


def _mark_without_plan(layout: Layout) -> bool:
    """Stages that say they run where there is neither a plan nor a supervisor: their plan's file is gone."""
    if process.is_locked(layout.lock) or not _running_stages(layout):
        return False
    time.sleep(MEND_SECONDS * 2)  # a supervisor that lives writes its plan again, and its lock
    try:
        with process.locked(layout.lock):
            found = {} if layout.plan.exists() else _running_stages(layout)
            for name, state in found.items():
                message = f"stage {name} is lost: {layout.plan} is gone, and so is its supervisor"
                _end_left(layout, state)
                end = {"status": "lost", "phase": "", "exit_code": 7, "message": message, "ended_at": now()}
                append_event(layout, "stage ended", plan_id=state["plan_id"], stage=name, state=end)
                write_json(layout.stage(name), {**state, **end})
            return bool(found)
    except Locked:
        return False
    except OSError as problem:
        raise Unwritten(f"a stage is lost, which cannot be written down ({problem})") from None


def _running_stages(layout: Layout) -> dict[str, dict[str, Any]]:
    states = {name: _readable(layout, name) for name in stages.load().names}
    return {name: state for name, state in states.items() if state and state["status"] == "running"}


def _readable(layout: Layout, name: str) -> dict[str, Any] | None:
    try:
        return read_stage(layout, name)
    except StateError:
        return None


def _end_left(layout: Layout, record: dict[str, Any], grace_seconds: float = LEFT_SECONDS) -> Ended:
    """End every process that carries the plan's marker, in whatever session; Interrupted when one does not go."""
    ended = process.end_all(lambda: _of_plan(layout, record), grace_seconds)
    if ended.left:
        raise Interrupted(
            f"of plan {record['plan_id']} this cannot be ended: {', '.join(ended.left)}; restart the host"
        )
    return ended


def cancel(layout: Layout) -> list[str]:
    """End the plan of this project root, whatever it does; lines that say what was done.

    Idempotent, also when two do it at once. Interrupted (with the names) when something cannot be ended.
    """
    record = _settled(layout)
    if record is None or record["status"] == "ended":
        mark_lost(layout)
        ended = _end_left(layout, record) if record else Ended(0, [])
        return [f"no plan is running: nothing to cancel{_counted(ended.count)}"]
    if record["status"] == "submitted":
        return _cancel_submitted(layout)
    if not plans.is_running(layout, record):
        ended = _end_left(layout, record)
        mark_lost(layout)
        return [f"plan {record['plan_id']} was lost already: its state says so now{_counted(ended.count)}"]
    return _cancel_running(layout, record)


def _cancel_running(layout: Layout, record: dict[str, Any]) -> list[str]:
    """End a supervisor and everything of its plan, and see that it is gone."""
    plan_id, supervisor = record["plan_id"], record.get("supervisor") or {}
    before = _of_plan(layout, record)
    # Its worker gets its grace for a checkpoint, then what is left is killed, then the supervisor writes that down.
    was_there = process.end(supervisor, GRACE_SECONDS * 2 + 10)
    late = _end_left(layout, record, 1.0)
    killed = was_there and mark_lost(layout, "cancelled", "its supervisor did not answer and was killed")
    killed = killed or mark_lost(layout)
    if not _is_free(layout):
        raise Interrupted(f"{_holder_words(layout)}, and that is not the supervisor of plan {plan_id}; end it yourself")
    if process.is_alive(supervisor):
        raise Interrupted(
            f"the supervisor of plan {plan_id} (pid {supervisor['pid']}) cannot be ended; restart the host"
        )
    counted = _counted(len(before) + was_there + max(0, late.count - len(before)))
    after = plans.read_record(layout) or record
    if not killed and all(item["status"] != "cancelled" for item in after["outcomes"].values()):
        return [f"plan {plan_id} had just ended by itself"]
    return [f"plan {plan_id} was cancelled{counted}"]


def _of_plan(layout: Layout, record: dict[str, Any]) -> list[process.Identity]:
    """What runs of a plan beside its supervisor: everything with its marker, and the worker that it names."""
    found = process.marked(record.get("marker") or process.marker(record["plan_id"], layout.root))
    worker = record.get("worker")
    return [*found, worker] if worker and process.is_alive(worker) and worker not in found else found


def _is_free(layout: Layout) -> bool:
    """Whether nobody holds the lock; those who only look let it go in a moment."""
    deadline = time.monotonic() + plans.LOCK_WAIT_SECONDS
    while process.is_locked(layout.lock):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def _holder_words(layout: Layout) -> str:
    pid = (process.holder(layout.lock) or {}).get("pid")
    return f"process {pid} holds {layout.lock}" if pid else f"a process holds {layout.lock}"


def _counted(count: int) -> str:
    return f"; {count} process{'es' if count > 1 else ''} ended" if count else ""


def _settled(layout: Layout) -> dict[str, Any] | None:
    """The plan's file, read when no supervisor is just beginning with it: then it is known whom to end.

    A file that cannot be trusted is no reason to let the plan train on: the lock knows its supervisor.
    """
    deadline = time.monotonic() + BEGINNING_SECONDS
    while True:
        try:
            record = plans.read_record(layout)
        except StateError:
            who = process.holder(layout.lock)
            if who is None or "plan_id" not in who:
                raise
            return {"plan_id": who["plan_id"], "status": "running", "supervisor": who, "outcomes": {}}
        beginning = record is not None and record["status"] == "submitted" and process.is_locked(layout.lock)
        if not beginning or time.monotonic() >= deadline:
            return record
        time.sleep(0.05)


def _cancel_submitted(layout: Layout) -> list[str]:
    """End a plan that nobody runs yet; under the lock, so that no supervisor begins with it meanwhile."""
    with process.locked(layout.lock, plans.LOCK_WAIT_SECONDS):
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
