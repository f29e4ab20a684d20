"""The supervisor: one per project root, holds the lock, drives the worker, alone writes states. No torch.

It decides by the stage table and the fingerprints what each stage has to do, starts the worker with the first
stage that needs one, and ends it on a timeout, on cancel, or with the plan.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainer import config, diagnose, fingerprint, process
from trainer import plan as plans
from trainer.errors import KINDS, InputError, Interrupted, TrainerError
from trainer.plan import Plan, Step
from trainer.state import SCHEMA, Layout, append_event, now, read_stage, sync_folder, write_json
from trainer.worker import fresh_folder

GRACE_SECONDS = 20.0
# What the worker runs with unless the host says otherwise. Waiting OpenMP threads sleep instead of spinning: on
# two cores with other work on them a training step of the embedded base took 0.3 to 0.7 s so, 2.2 to 3.4 s else.
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
PROGRESS_SECONDS = 2.0  # between two progress events: each is fsynced and is a line on a terminal
LOCK_WAIT_SECONDS = 2.0  # `status` and `watch` hold the lock for a moment when they write down a lost plan
LOG_TAIL_LINES = 20
# Later stages stay closed after these, whatever the gate's mode: there is no result to go on from.
BROKEN = ("failed", "lost", "cancelled")


class Cancelled(Exception):
    """Somebody asked the supervisor to end (SIGTERM or SIGINT)."""


class Supervisor:
    """Runs one plan from its first stage to its last."""

    def __init__(self, layout: Layout, plan: Plan, record: dict[str, Any]) -> None:
        self.layout = layout
        self.plan = plan
        self.record = record
        self.worker: subprocess.Popen[str] | None = None
        self.reports: Any = None

    def run(self) -> int:
        """Carry the plan out; returns its exit code."""
        self.update(status="running", started_at=now(), supervisor=process.identity())
        append_event(self.layout, "plan started", plan_id=self.plan.plan_id)
        closed_by = ""
        try:
            for name in self.plan.stages:
                if closed_by:
                    self.end_stage(name, "closed", f"closed: {closed_by}", 3)
                    continue
                status = self.run_stage(name)
                strict = status == "missed" and self.plan.gate == "strict"
                if strict or status in BROKEN:
                    closed_by = f"stage {name} {'missed its gate' if strict else f'is {status}'}"
        finally:
            self.stop_worker()
        code, message = verdict(self.record)
        self.update(status="ended", ended_at=now())
        append_event(self.layout, "plan ended", plan_id=self.plan.plan_id, exit_code=code, message=message)
        return code

    def update(self, **changes: Any) -> None:
        self.record.update(changes)
        write_json(self.layout.plan, self.record)

    def run_stage(self, name: str) -> str:
        """One stage from the decision what it has to do to its end; returns its status."""
        try:
            step = next(s for s in plans.steps(self.plan, self.layout) if s.stage.name == name)
            return self.carry_out(step)
        except Cancelled:  # between two attempts; within one it has been written down
            self.end_stage(name, "cancelled", f"stage {name} was cancelled", 7)
            return "cancelled"
        except TrainerError as problem:  # inputs that went away or changed since the plan was checked
            self.end_stage(name, "failed", str(problem), problem.exit_code)
            return "failed"
        except OSError as problem:
            message = f"stage {name} could not begin: {problem.strerror or problem}: {problem.filename or ''}"
            self.end_stage(name, "failed", message.rstrip(": "), InputError.exit_code)
            return "failed"

    def carry_out(self, step: Step) -> str:
        """What the step asks for, as often as its attempts allow."""
        name = step.stage.name
        if plans.is_skipped(self.plan, step.stage):
            self.end_stage(name, "skipped", "skipped as asked for", 0, fingerprint=step.fingerprint)
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
        known = read_stage(self.layout, name) or {}
        missed = known["status"] == "missed"
        status = "missed" if missed else "up to date"
        message = f"up to date: {step.reason}"
        if missed:
            message = f"{known['message']} (nothing has changed since; change the data or a parameter)"
        code = 6 if missed and self.plan.gate != "off" else 0
        self.outcome(name, status, message, code)
        append_event(self.layout, "stage kept", plan_id=self.plan.plan_id, stage=name, status=status, message=message)
        return status

    def attempt(self, step: Step, last: bool) -> str:
        """Start the stage once more and follow it to its end, which is not the stage's unless it is the last."""
        name = step.stage.name
        before = read_stage(self.layout, name) or {}
        stamp = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}"
        log = self.layout.logs / f"train_{name}_{stamp}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        self.set_stage(
            "stage started", name, schema=SCHEMA, stage=name, status="running", phase="starting",
            plan_id=self.plan.plan_id, attempt=int(before.get("attempt") or 0) + 1, started_at=now(), ended_at=None,
            log=self.layout.relative(log), exit_code=0, message="", reason=step.reason, mode=step.mode,
            fingerprint=None, gate=None, summary=None, times=None, error=None,
        )  # fmt: skip
        try:
            folder = fresh_folder(self.layout, step.stage, step.mode)
            self.send(self.job(step, folder, log), log)
            result = self.follow(name, step.parameters.stage_timeout_seconds)
            return self.finish(step, folder, result)
        except Cancelled:
            self.stop_worker()
            return self.fail(name, log, "cancelled", "Cancelled", f"stage {name} was cancelled", 7)
        except WorkerLost as problem:
            return self.fail(
                name, log, "lost", "WorkerLost", str(problem), 7, exit_signal=problem.exit_signal, final=last
            )
        except TrainerError as problem:
            self.stop_worker()
            kind = type(problem).__name__
            return self.fail(name, log, "failed", kind, str(problem), problem.exit_code)
        except OSError as problem:
            self.stop_worker()
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

    def send(self, job: dict[str, Any], log: Path) -> None:
        """Give a job to the worker, which is started when there is none."""
        if self.worker is None:
            reading, writing = os.pipe()
            environment = {**WORKER_ENVIRONMENT, **os.environ}
            command = [
                sys.executable, "-m", "trainer", "--project-root", str(self.layout.root),
                "worker", "--report-descriptor", str(writing),
            ]  # fmt: skip
            with log.open("ab") as output:
                self.worker = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=(writing,),
                    cwd=plans.code_root(), env=environment, text=True, start_new_session=True,
                )  # fmt: skip
            os.close(writing)
            os.set_blocking(reading, False)
            self.reports = os.fdopen(reading, "rb", buffering=0)
            self.update(worker=process.identity(self.worker.pid))
        assert self.worker.stdin is not None
        try:
            self.worker.stdin.write(json.dumps(job, ensure_ascii=False) + "\n")
            self.worker.stdin.flush()
        except BrokenPipeError:
            raise self.lost() from None

    def follow(self, name: str, timeout_seconds: float) -> dict[str, Any]:
        """Turn the worker's reports into events until the stage's result; TrainerError or WorkerLost otherwise."""
        deadline = time.monotonic() + timeout_seconds
        last_progress = 0.0
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.reports, selectors.EVENT_READ)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise KINDS["TrainingFailed"](
                        f"stage {name} ran longer than stage_timeout_seconds = {timeout_seconds:g}; raise it"
                    )
                if not selector.select(min(left, 1.0)):
                    continue
                piece = self.reports.read(1 << 16)
                if piece == b"":
                    raise self.lost()
                *lines, pending = (pending + (piece or b"")).split(b"\n")
                for line in lines:
                    report = json.loads(line)
                    if report["event"] == "finished":
                        return dict(report["result"])
                    if report["event"] == "failed":
                        raise KINDS.get(report["kind"], KINDS["TrainingFailed"])(report["message"])
                    last_progress = self.note(name, report, last_progress)

    def note(self, name: str, report: dict[str, Any], last_progress: float) -> float:
        """Record one report of the worker; returns when progress was last recorded."""
        event = report.pop("event")
        if event == "phase":
            self.set_stage("phase", name, details=report, phase=report["phase"])
        elif event == "progress":
            final = report.get("step") == report.get("steps") and report.get("answered") == report.get("rows")
            if not final and time.monotonic() - last_progress < PROGRESS_SECONDS:
                return last_progress
            append_event(self.layout, "progress", plan_id=self.plan.plan_id, stage=name, **report, **gpu_load())
            return time.monotonic()
        else:
            append_event(self.layout, event, plan_id=self.plan.plan_id, stage=name, **report)
        return last_progress

    def finish(self, step: Step, folder: Path, result: dict[str, Any]) -> str:
        """Put the new adapter in the place of the old one and write the stage's end."""
        name = step.stage.name
        if fingerprint.of_adapter(folder) != result["fingerprint"]["adapter"]:
            raise KINDS["TrainingFailed"](
                f"the adapter of stage {name} changed on disk after it was written; run it again"
            )
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
        self.end_stage(
            name, status, message, code, gate=gate, fingerprint=result["fingerprint"], summary=result["summary"],
            times=result["times"],
        )  # fmt: skip
        return status

    def fail(
        self, name: str, log: Path, status: str, kind: str, message: str, code: int, exit_signal: int | None = None,
        final: bool = True,
    ) -> str:  # fmt: skip
        """Write down a stage that broke, with the last lines of its log and what is known about the cause."""
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        tail = text.splitlines()[-LOG_TAIL_LINES:]
        state = read_stage(self.layout, name) or {}
        if status != "cancelled":
            issues = [
                diagnose.Issue(**{**asdict(issue), "time": now(), "phase": state.get("phase") or "", "stage": name})
                for issue in diagnose.diagnose(f"{text}\nerror: {message}", exit_signal=exit_signal, error_kind=kind)
            ]
            diagnose.append_issues(self.layout.logs, issues)
        error = {"kind": kind, "message": message, "log_tail": tail}
        self.end_stage(name, status, message, code, final, error=error)
        return status

    def end_stage(self, name: str, status: str, message: str, code: int, final: bool = True, **more: Any) -> None:
        """The end of a stage in its state, in the events and, unless it is tried again, among the plan's outcomes."""
        changes: dict[str, Any] = {
            "status": status,
            "phase": "",
            "ended_at": now(),
            "exit_code": code,
            "message": message,
            **more,
        }
        event = "stage ended"
        known = read_stage(self.layout, name) or {}
        if known.get("plan_id") != self.plan.plan_id:  # never started in this plan: a state of its own
            event = "stage started"
            changes = {
                "schema": SCHEMA, "stage": name, "plan_id": self.plan.plan_id, "attempt": 0, "started_at": None,
                "log": None, "reason": message, "fingerprint": None, "gate": None, "summary": None, "error": None,
                **changes,
            }  # fmt: skip
        self.set_stage(event, name, **changes)
        if final:
            self.outcome(name, status, message, code)

    def outcome(self, name: str, status: str, message: str, code: int) -> None:
        outcomes = {**self.record["outcomes"], name: {"status": status, "message": message, "exit_code": code}}
        self.update(outcomes=outcomes)

    def set_stage(self, event: str, name: str, details: dict[str, Any] | None = None, **changes: Any) -> None:
        """Change a stage's state: first the event (the log can rebuild the states), then the file."""
        changes["updated_at"] = now()
        append_event(self.layout, event, plan_id=self.plan.plan_id, stage=name, state=changes, **(details or {}))
        known = {} if event == "stage started" else read_stage(self.layout, name) or {}
        write_json(self.layout.stage(name), {**known, **changes})

    def lost(self) -> WorkerLost:
        """The error of a worker that is gone, with the signal that ended it."""
        assert self.worker is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.worker.wait(GRACE_SECONDS)
        code = self.worker.poll()
        self.stop_worker()
        ended = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return WorkerLost(f"the worker ended without a result ({ended}); the last lines of its log are in the state",
                          -code if code is not None and code < 0 else None)  # fmt: skip

    def stop_worker(self) -> None:
        """End the worker and everything it started."""
        if self.worker is not None:
            with contextlib.suppress(OSError):
                if self.worker.stdin:
                    self.worker.stdin.close()
            process.end_group(self.worker, GRACE_SECONDS)
            self.reports.close()
            self.worker = None


class WorkerLost(Interrupted):
    """The worker died; `exit_signal` is the signal that killed it, if one did."""

    def __init__(self, message: str, exit_signal: int | None = None) -> None:
        super().__init__(message)
        self.exit_signal = exit_signal


def publish(fresh: Path, final: Path) -> None:
    """Put a finished adapter folder in its place; the one before is kept as `.<name>.previous`."""
    previous = final.with_name(f".{final.name}.previous")
    if final.exists():
        shutil.rmtree(previous, ignore_errors=True)
        final.rename(previous)
    fresh.rename(final)
    sync_folder(final.parent)


def gpu_load() -> dict[str, Any]:
    """GPU use (percent) and memory (MiB) as nvidia-smi tells them; empty where there is none."""
    command = shutil.which("nvidia-smi")
    if not command:
        return {}
    query = ["--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run([command, *query], capture_output=True, text=True, timeout=5, check=True)
        load, used, total = (int(value) for value in found.stdout.splitlines()[0].split(","))
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return {}
    return {"gpu_percent": load, "gpu_memory_mib": used, "gpu_memory_total_mib": total}


def verdict(record: dict[str, Any]) -> tuple[int, str]:
    """(exit code, sentence) of a plan: its first stage that did not end well; 0 when all did."""
    for item in record["outcomes"].values():
        if item["exit_code"]:
            return int(item["exit_code"]), str(item["message"])
    return 0, "every stage is done"


def supervise(project_root: Path, plan_id: str) -> int:
    """Entry of `python -m trainer supervise`: run the submitted plan; Interrupted when it is not ours to run."""
    layout = Layout(project_root)
    with process.locked(layout.lock, wait_seconds=LOCK_WAIT_SECONDS):
        record = plans.read_record(layout)
        if record is None or record["plan_id"] != plan_id:
            other = record["plan_id"] if record else "none"
            raise Interrupted(f"the plan here is {other}, not {plan_id}; submit it again")
        if record["status"] != "submitted":
            return verdict(record)[0]
        plan = plans.of_record(record)
        plans.check_code(plan)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _raise_cancelled)
        return Supervisor(layout, plan, record).run()


def _raise_cancelled(number: int, frame: Any) -> None:
    # A second signal must not break the writing down of the first.
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise Cancelled


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
            dead = Supervisor(layout, plans.of_record(record), record)
            for name in dead.plan.stages:
                if name in record["outcomes"]:
                    continue
                state = read_stage(layout, name)
                # `lost` without an outcome: between two attempts.
                if state and state["status"] in ("running", "lost") and state["plan_id"] == dead.plan.plan_id:
                    log = layout.root / state["log"]
                    message = f"stage {name} is lost: its supervisor ended without a word (restart, kill or power loss)"
                    dead.fail(name, log, "lost", "SupervisorLost", message, 7)
                else:
                    dead.end_stage(name, "closed", "closed: the plan was lost before it", 3)
            dead.update(status="ended", ended_at=now())
            code, message = verdict(record)
            append_event(layout, "plan ended", plan_id=dead.plan.plan_id, exit_code=code, message=message)
            return True
    except Interrupted as problem:
        if "holds" in str(problem):
            return False
        raise


def cancel(layout: Layout) -> list[str]:
    """End the plan of this project root, whatever it does; lines that say what was done."""
    record = plans.read_record(layout)
    if record is None or record["status"] == "ended":
        return ["no plan is running: nothing to cancel"]
    if not process.is_locked(layout.lock):
        if record["status"] == "running":
            mark_lost(layout)
            return [f"plan {record['plan_id']} was lost already: its state says so now"]
        outcomes = {
            name: {"status": "cancelled", "message": "cancelled before it began", "exit_code": 7}
            for name in record["stages"]
        }
        write_json(layout.plan, {**record, "status": "ended", "ended_at": now(), "outcomes": outcomes})
        append_event(layout, "plan ended", plan_id=record["plan_id"], exit_code=7, message="cancelled before it began")
        return [f"plan {record['plan_id']} was cancelled before it began"]
    who = record.get("supervisor")
    process.end(who or {}, GRACE_SECONDS * 2 + 10)
    if process.is_alive(record.get("worker")):
        process.end(record["worker"], 1.0)
    mark_lost(layout)
    return [f"plan {record['plan_id']} was cancelled"]
