"""The supervisor: one per project root, holds the lock, drives the worker, alone writes states. No torch.

It decides by the stage table and the fingerprints what each stage has to do, starts the worker with the first
stage that needs one, and ends it on a timeout, on cancel, or with the plan.
"""

from __future__ import annotations

import signal
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer import config, credentials, diagnose, fingerprint, process
from trainer import plan as plans
from trainer.adapters import fresh_folder, publish
from trainer.errors import InputError, Interrupted, TrainerError, TrainingFailed
from trainer.gpu import gpu_load
from trainer.ledger import Ledger, verdict
from trainer.plan import Step
from trainer.state import Layout, now, read_stage, standing_result
from trainer.workshop import WorkerLost, Workshop

PROGRESS_SECONDS = 2.0  # between two progress events: each is fsynced and is a line on a terminal
LOCK_WAIT_SECONDS = 2.0  # `status` and `watch` hold the lock for a moment when they write down a lost plan
LOG_TAIL_LINES = 20
# Later stages stay closed after these, whatever the gate's mode: there is no result to go on from.
BROKEN = ("failed", "lost", "cancelled")


class Cancelled(Exception):
    """Somebody asked the supervisor to end (SIGTERM or SIGINT)."""


class Supervisor:
    """Runs one plan from its first stage to its last."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.layout = ledger.layout
        self.plan = ledger.plan
        self.workshop = Workshop(ledger.layout.root)

    def run(self) -> int:
        """Carry the plan out; returns its exit code."""
        self.ledger.update(status="running", started_at=now(), supervisor=process.identity())
        self.ledger.event("plan started")
        closed_by = ""
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
            self.workshop.close()
        return self.ledger.close()

    def run_stage(self, name: str) -> str:
        """One stage from the decision what it has to do to its end; returns its status."""
        try:
            step = next(s for s in plans.steps(self.plan, self.layout) if s.stage.name == name)
            return self.carry_out(step)
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
        if plans.is_skipped(self.plan, step.stage):
            self.ledger.end_stage(name, "skipped", "skipped as asked for", 0, fingerprint=step.fingerprint)
            return "skipped"
        if step.mode == "keep":
            return self.keep(step)
        attempts = step.parameters.stage_attempts
        for attempt in range(1, attempts + 1):
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
        self.ledger.begin_stage(
            name, status="running", phase="starting", attempt=int(before.get("attempt") or 0) + 1, started_at=now(),
            log=self.layout.relative(log), reason=step.reason, mode=step.mode,
        )  # fmt: skip
        try:
            folder = fresh_folder(self.layout, step.stage, step.mode)
            job = self.job(step, folder, log)
            result = self.workshop.carry_out(job, log, step.parameters.stage_timeout_seconds, Notes(self, name))
            return self.finish(step, folder, result)
        except Cancelled:
            self.workshop.close()
            return self.fail(name, log, "cancelled", "Cancelled", f"stage {name} was cancelled", 7)
        except WorkerLost as problem:
            return self.fail(
                name, log, "lost", "WorkerLost", str(problem), 7, exit_signal=problem.exit_signal, final=last
            )
        except TrainerError as problem:
            self.workshop.close()
            kind = type(problem).__name__
            return self.fail(name, log, "failed", kind, str(problem), problem.exit_code)
        except OSError as problem:
            self.workshop.close()
            return self.fail(name, log, "failed", "OSError", f"stage {name} could not be carried out: {problem}", 5)

    def job(self, step: Step, folder: Path, log: Path) -> dict[str, Any]:
        state = read_stage(self.layout, step.stage.name) or {}
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
            "data_root": str(plans.data_root(self.plan.data_root)),
            "corpus": str(plans.corpus()),
            "folder": str(folder),
            "log": self.layout.relative(log),
        }

    def finish(self, step: Step, folder: Path, result: dict[str, Any]) -> str:
        """Put the new adapter in the place of the old one and write the stage's end."""
        name = step.stage.name
        if fingerprint.of_adapter(folder) != result["fingerprint"]["adapter"]:
            raise TrainingFailed(f"the adapter of stage {name} changed on disk after it was written; run it again")
        publish(folder, self.layout.adapters / step.stage.adapter)
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
            diagnose.append_issues(self.layout.logs, [issue])
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
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        text = credentials.scrub(text, credentials.known(self.layout))
        tail = text.splitlines()[-LOG_TAIL_LINES:]
        state = read_stage(self.layout, name) or {}
        if status != "cancelled":
            issues = [
                diagnose.Issue(**{**asdict(issue), "time": now(), "phase": state.get("phase") or "", "stage": name})
                for issue in diagnose.diagnose(f"{text}\nerror: {message}", exit_signal=exit_signal, error_kind=kind)
            ]
            diagnose.append_issues(self.layout.logs, issues)
        error = {"kind": kind, "message": message, "log_tail": tail}
        self.ledger.end_stage(name, status, message, code, final, error=error)
        return status


class Notes:
    """Turns the reports of a worker on one stage into states and events."""

    def __init__(self, supervisor: Supervisor, stage: str) -> None:
        self.supervisor = supervisor
        self.ledger = supervisor.ledger
        self.stage = stage
        self.last_progress = 0.0

    def __call__(self, report: dict[str, Any]) -> None:
        event = report.pop("event")
        if event == "phase":
            self._remember_worker()
            self.ledger.set_stage("phase", self.stage, details=report, phase=report["phase"])
        elif event == "progress":
            final = report.get("step") == report.get("steps") and report.get("answered") == report.get("rows")
            if final or time.monotonic() - self.last_progress >= PROGRESS_SECONDS:
                self.last_progress = time.monotonic()
                self.ledger.event("progress", stage=self.stage, **report, **gpu_load())
        else:
            self.ledger.event(event, stage=self.stage, **report)

    def _remember_worker(self) -> None:
        who = self.supervisor.workshop.identity()
        if self.ledger.record.get("worker") != who:
            self.ledger.update(worker=who)


def supervise(project_root: Path, plan_id: str) -> int:
    """Entry of `python -m trainer supervise`: run the submitted plan; Interrupted when it is not ours to run."""
    layout = Layout(project_root)
    with process.locked(layout.lock, wait_seconds=LOCK_WAIT_SECONDS):
        record = plans.read_record(layout)
        if record is None or record["plan_id"] != plan_id:
            other = record["plan_id"] if record else "none"
            raise Interrupted(f"the plan here is {other}, not {plan_id}; submit it again")
        if record["status"] == "running":  # we hold the lock, so whoever ran it is gone
            raise Interrupted(f"the supervisor of plan {plan_id} is gone; look at its status, then submit it again")
        if record["status"] == "ended":
            return verdict(record)[0]
        plan = plans.of_record(record)
        ledger = Ledger(layout, plan, record)
        try:
            plans.check_code(plan)
        except InputError as problem:  # nobody reads our standard error: whoever watches must learn it
            for name in plan.stages:
                ledger.outcome(name, "failed", str(problem), problem.exit_code)
            ledger.close()
            raise
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _raise_cancelled)
        return Supervisor(ledger).run()


def _raise_cancelled(number: int, frame: Any) -> None:
    # A second signal must not break the writing down of the first.
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise Cancelled
