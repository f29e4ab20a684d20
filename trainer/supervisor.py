"""The supervisor: one per project root, holds the lock, drives the worker, alone writes states. No torch.

It decides by the stage table and the fingerprints what each stage has to do, starts the worker with the first
stage that needs one, and ends it on a timeout, on cancel, or with the plan.
"""

from __future__ import annotations

import errno
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from trainer import config, credentials, diagnose, fingerprint, process, steps
from trainer import plan as plans
from trainer.adapters import fresh_folder, publish
from trainer.bell import Bell, Cancelled
from trainer.errors import InputError, Interrupted, TrainerError, TrainingFailed
from trainer.ledger import Ledger, room, verdict
from trainer.notes import Notes, record_issues
from trainer.state import Layout, now, read_stage, standing_result
from trainer.steps import Step
from trainer.workshop import WorkerLost, Workshop

LOCK_WAIT_SECONDS = 2.0  # `status`, `watch` and `submit` hold the lock for a moment
LEFTOVER_SECONDS = 2.0  # what outlives the worker, which had its grace
LOG_TAIL_LINES = 20
LOG_READ_BYTES = 4 << 20  # of a log's end: a cause stands near it, and a log may be larger than the memory
# Later stages stay closed after these, whatever the gate's mode: there is no result to go on from.
BROKEN = ("failed", "lost", "cancelled")


class Supervisor:
    """Runs one plan from its first stage to its last.

    `held` are the streams that hold the lock; without them (a plan that is only written down as lost, a test)
    nothing is ended but the worker and what carries the plan's marker.
    """

    def __init__(self, ledger: Ledger, held: list[IO[str]] | None = None) -> None:
        self.ledger = ledger
        self.layout = ledger.layout
        self.plan = ledger.plan
        self.held = held or []
        self.bell = Bell()
        self.marker = process.marker(self.plan.plan_id, self.layout.root)
        self.workshop = Workshop(self.layout.root, self.environment(), self.tick)
        self.notes: Notes | None = None
        self.coming: list[Step] = []  # what the plan has to do behind the stage that is carried out
        self.ends_at = process.boot_seconds() + self.plan.plan_timeout_seconds
        self.root: int | None = None

    def environment(self) -> dict[str, str]:
        """What the worker gets in its environment beside the host's variables; secrets stay in their file."""
        return {process.PLAN_VARIABLE: self.marker}

    def run(self) -> int:
        """Carry the plan out; returns its exit code."""
        self.ledger.make_reserve()
        self.ledger.update(status="running", started_at=now(), supervisor=process.identity(), marker=self.marker)
        if self.ledger.problem:
            self.ledger.give_up_reserve()
            raise Interrupted(f"plan {self.plan.plan_id} cannot begin: {self.ledger.trouble}; submit it again then")
        self.ledger.event("plan started")
        closed_by = ""
        with self._place():
            try:
                for name in self.plan.stages:
                    if closed_by:
                        self.ledger.end_stage(name, "closed", f"closed: {closed_by}", 3)
                        continue
                    status = self.run_stage(name)
                    strict = status == "missed" and self.plan.gate == "strict"
                    if strict or status in BROKEN:
                        closed_by = f"stage {name} {'missed its gate' if strict else f'is {status}'}"
            finally:
                self.end_worker()
            return self.ledger.close()

    def tick(self) -> None:
        """Looked at all the time: Cancelled, the plan's end, its folder, its files, its worker's silence."""
        self.bell.answer()
        self._follow_place()
        if process.boot_seconds() >= self.ends_at:
            seconds = self.plan.plan_timeout_seconds
            raise TrainingFailed(f"plan {self.plan.plan_id} ran longer than plan_timeout_seconds = {seconds}; raise it")
        if self.held:
            process.renew(self.held, self.layout.lock, plan_id=self.plan.plan_id)
        self.ledger.mend()
        if self.notes:
            self.notes.look()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Keep the project root open, so that it is known where it went."""
        self.root = os.open(self.layout.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield
        finally:
            os.close(self.root)
            self.root = None

    def _follow_place(self) -> None:
        """Interrupted when the project root was moved or removed; its states then tell so in their new place."""
        if self.root is None:
            return
        ours = os.fstat(self.root)
        try:
            if os.path.samestat(ours, self.layout.root.stat()):
                return
        except OSError:
            pass
        before = self.layout.root
        if ours.st_nlink and (after := Path(os.readlink(f"/proc/self/fd/{self.root}"))).is_dir():
            self.layout.move_to(after)
            raise Interrupted(f"{before} was moved to {after} while the plan ran; run it again there")
        raise Interrupted(f"{before} was removed while the plan ran; run it again")

    def ours(self) -> list[process.Identity]:
        """Everything that this plan started and that still runs."""
        found = {who["pid"]: who for who in process.marked(self.marker)}
        below = process.descendants(os.getpid()) if self.held else []
        found.update({pid: process.identity(pid) for pid in below if pid not in found})
        return [who for who in found.values() if who["start_time"]]

    def end_worker(self, notes: Notes | None = None) -> str:
        """End the worker and whatever it started, in whatever session; words on what cannot be ended."""
        self.workshop.close(notes)
        left = process.end_all(self.ours, LEFTOVER_SECONDS).left
        return f"; it cannot be ended: {', '.join(left)}; restart the host" if left else ""

    def run_stage(self, name: str) -> str:
        """One stage from the decision what it has to do to its end; returns its status."""
        self.notes = None
        try:
            self.tick()
            plans.check_code(self.plan)
            with self.bell.listening():
                found = steps.steps(self.plan, self.layout)
            place = next(place for place, step in enumerate(found) if step.stage.name == name)
            self.coming = [
                step for step in found[place + 1 :]
                if step.mode != "keep" and not steps.is_skipped(self.plan, step.stage)
            ]  # fmt: skip
            return self.carry_out(found[place])
        except Cancelled:  # between two attempts; within one it has been written down
            self.ledger.end_stage(name, "cancelled", f"stage {name} was cancelled", 7)
            return "cancelled"
        except TrainerError as problem:  # inputs that went away or changed since the plan was checked
            self.ledger.end_stage(name, "failed", str(problem), problem.exit_code)
            return "failed"
        except OSError as problem:
            message = f"stage {name} could not begin: {problem.strerror or problem}: {problem.filename or ''}"
            self.ledger.end_stage(name, "failed", message.rstrip(": "), InputError.exit_code)
            return "failed"

    def carry_out(self, step: Step) -> str:
        """What the step asks for, as often as its attempts allow."""
        name = step.stage.name
        if steps.is_skipped(self.plan, step.stage):
            self.ledger.end_stage(name, "skipped", "skipped as asked for", 0, fingerprint=step.fingerprint)
            return "skipped"
        if step.mode == "keep":
            return self.keep(step)
        attempts = step.parameters.stage_attempts
        for attempt in range(1, attempts + 1):
            self.tick()
            status = self.attempt(step, last=attempt == attempts)
            if status != "lost":
                break
        return status

    def keep(self, step: Step) -> str:
        """A stage whose result stands: passed, or missed as before."""
        name = step.stage.name
        state = read_stage(self.layout, name) or {}
        kept = standing_result(state) or {}
        missed = kept["status"] == "missed"
        status = "missed" if missed else "up to date"
        message = f"up to date: {step.reason}"
        if missed:
            message = f"{kept['message']} (nothing has changed since; change the data or a parameter)"
        if state["status"] != kept["status"]:  # closed, skipped or broken off since: the result is still good
            self.ledger.set_stage("stage restored", name, **kept, phase="", superseded=None)
        code = 6 if missed and self.plan.gate != "off" else 0
        self.ledger.outcome(name, status, message, code)
        self.ledger.event("stage kept", stage=name, status=status, message=message)
        return status

    def attempt(self, step: Step, last: bool) -> str:
        """Start the stage once more and follow it to its end, which is not the stage's unless it is the last."""
        name = step.stage.name
        before = read_stage(self.layout, name) or {}
        stamp = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}"
        log = self.layout.logs / f"train_{name}_{stamp}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self.ledger.make_reserve()
        self.ledger.begin_stage(
            name, status="running", phase="starting", attempt=int(before.get("attempt") or 0) + 1, started_at=now(),
            log=self.layout.relative(log), reason=step.reason, mode=step.mode,
        )  # fmt: skip
        self.notes = notes = Notes(self.ledger, name, self.workshop.identity, step.parameters.stall_timeout_seconds)
        try:
            folder = fresh_folder(self.layout, step.stage, step.mode)
            job = self.job(step, folder, log)
            result = self.workshop.carry_out(job, log, step.parameters.stage_timeout_seconds, notes)
            return self.finish(step, folder, result)
        except Cancelled:
            left = self.end_worker(notes)
            return self.fail(name, log, "cancelled", "Cancelled", f"stage {name} was cancelled{left}", 7)
        except WorkerLost as problem:
            message = f"{problem}{self.end_worker()}"
            return self.fail(name, log, "lost", problem.kind, message, 7, exit_signal=problem.exit_signal, final=last)
        except TrainerError as problem:
            message = f"{problem}{self.end_worker(notes)}"
            return self.fail(name, log, "failed", type(problem).__name__, message, problem.exit_code)
        except Exception as problem:  # whatever it is, the stage has ended and the plan's books are to say so
            left = self.end_worker(notes)
            if not isinstance(problem, OSError):
                traceback.print_exc()
                problem = RuntimeError(f"{type(problem).__name__}: {problem}")
            message = f"stage {name} could not be carried out: {problem}{left}"
            return self.fail(name, log, "failed", "OSError", message, TrainingFailed.exit_code)
        finally:
            self.notes = None

    def job(self, step: Step, folder: Path, log: Path) -> dict[str, Any]:
        state = self.ledger.known(step.stage.name) or {}
        return {
            "stage": step.stage.name,
            "mode": step.mode,
            "plan_id": self.plan.plan_id,
            "attempt": state["attempt"],
            "gate": self.plan.gate,
            "parameters": config.table(step.parameters, step.sources),
            "fingerprint": step.fingerprint,
            "base_hash": step.training["base"],
            "source_id": self.plan.source_id,
            "coming": [
                {"stage": later.stage.name, "parameters": config.table(later.parameters, later.sources)}
                for later in self.coming
            ],
            "data_root": str(steps.data_root(self.plan.data_root)),
            "corpus": str(steps.corpus()),
            "folder": str(folder),
            "checkpoints": str(self.layout.checkpoints / step.stage.name),
            "log": self.layout.relative(log),
        }

    def finish(self, step: Step, folder: Path, result: dict[str, Any]) -> str:
        """Put the new adapter in the place of the old one and write the stage's end."""
        name = step.stage.name
        if fingerprint.of_adapter(folder) != result["fingerprint"]["adapter"]:
            raise TrainingFailed(f"the adapter of stage {name} changed on disk after it was written; run it again")
        publish(folder, self.layout.adapters / step.stage.adapter)
        shutil.rmtree(self.layout.checkpoints / name, ignore_errors=True)  # what they were for is in its place
        gate = result["gate"]
        status = "passed" if gate["passed"] else "missed"
        code = 6 if status == "missed" and self.plan.gate != "off" else 0
        message = "; ".join(gate["reasons"]) if gate["reasons"] else "the gate is open"
        if status == "missed":
            message = f"stage {name} missed its gate: {message}"
            folder = self.layout.adapters / step.stage.adapter
            issue = diagnose.Issue(
                now(), "evaluating", name, "error", message, "the scores are below the gate's targets",
                f"look at the failed rows in {folder.name}/eval_report_{name}.md; more or better rows, more epochs",
            )  # fmt: skip
            record_issues(self.ledger, [issue])
        self.ledger.end_stage(
            name, status, message, code, gate=gate, fingerprint=result["fingerprint"], summary=result["summary"],
            times=result["times"], superseded=None,
        )  # fmt: skip
        return status

    def fail(
        self, name: str, log: Path, status: str, kind: str, message: str, code: int, exit_signal: int | None = None,
        final: bool = True,
    ) -> str:  # fmt: skip
        """Write down a stage that broke, with the last lines of its log and what is known about the cause."""
        text = credentials.scrub(_end_of(log), credentials.known(self.layout))
        tail = text.splitlines()[-LOG_TAIL_LINES:]
        if os.strerror(errno.ENOSPC) in message and not self.ledger.trouble:  # told by the worker
            message += f"; {room(self.layout, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), self.layout.outputs)}"
        state = self.ledger.known(name) or {}
        if status != "cancelled":
            issues = [
                diagnose.Issue(**{**asdict(issue), "time": now(), "phase": state.get("phase") or "", "stage": name})
                for issue in diagnose.diagnose(f"{text}\nerror: {message}", exit_signal=exit_signal, error_kind=kind)
            ]
            record_issues(self.ledger, issues)
        error = {"kind": kind, "message": message, "log_tail": tail}
        self.ledger.end_stage(name, status, message, code, final, error=error)
        return status


def _end_of(log: Path) -> str:
    """The end of a log, empty where it cannot be read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - LOG_READ_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def supervise(project_root: Path, plan_id: str) -> int:
    """Entry of `python -m trainer supervise`: run the submitted plan; Interrupted when it is not ours to run."""
    layout = Layout(project_root)
    os.umask(os.umask(0o022) | 0o022)  # what we write is nobody else's to change
    with process.locked(layout.lock, wait_seconds=LOCK_WAIT_SECONDS) as stream:
        record = plans.read_record(layout)
        if record is None or record["plan_id"] != plan_id:
            other = record["plan_id"] if record else "none"
            raise Interrupted(f"the plan here is {other}, not {plan_id}; submit it again")
        if record["status"] == "running":
            if process.is_alive(record.get("supervisor")):  # its lock file was deleted under it
                raise process.Locked(f"another process (pid {record['supervisor']['pid']}) runs plan {plan_id} here")
            raise Interrupted(f"the supervisor of plan {plan_id} is gone; look at its status, then submit it again")
        if record["status"] == "ended":
            return verdict(record)[0]
        plan = plans.of_record(record)
        ledger = Ledger(layout, plan, record)
        try:
            plans.check_code(plan)
            plans.check_source(plan)
        except InputError as problem:  # nobody reads our standard error: whoever watches must learn it
            for name in plan.stages:
                ledger.outcome(name, "failed", str(problem), problem.exit_code)
            ledger.close()
            raise
        process.claim(stream, plan_id=plan_id)
        process.adopt_orphans()
        supervisor = Supervisor(ledger, [stream])
        supervisor.bell.install()
        return supervisor.run()
