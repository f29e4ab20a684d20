"""What a worker reports on one stage, and whether it still moves, as states, events and issues. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from trainer import diagnose, process
from trainer.gpu import gpu_load
from trainer.ledger import Ledger
from trainer.stall import StallWatch
from trainer.state import now

PROGRESS_SECONDS = 2.0  # between two progress events: each is fsynced and is a line on a terminal
OURS = ("time", "event", "plan_id", "stage", "state")  # what an event says for the supervisor


class Notes:
    """Turns the reports of a worker on one stage, and its silence, into states and events."""

    def __init__(
        self, ledger: Ledger, stage: str, identity: Callable[[], dict[str, Any] | None], stall_seconds: float
    ) -> None:
        self.ledger = ledger
        self.stage = stage
        self.identity = identity
        self.last_progress: float | None = None
        self.told = False
        self.stall = StallWatch(stall_seconds, self._processor_seconds, gpu_load)

    def __call__(self, report: dict[str, Any]) -> None:
        event = report["event"]
        details = {name: value for name, value in report.items() if name not in OURS}
        self.stall.reported()
        if event == "phase":
            self._remember_worker()
            self.ledger.set_stage("phase", self.stage, details=details, phase=str(report["phase"]))
        elif event == "progress":
            self._progress(details)
        else:
            self.ledger.event(event, stage=self.stage, **details)

    def _progress(self, report: dict[str, Any]) -> None:
        final = report.get("step") == report.get("steps") and report.get("answered") == report.get("rows")
        moment = time.monotonic()
        if final or self.last_progress is None or moment - self.last_progress >= PROGRESS_SECONDS:
            self.last_progress = moment
            self.ledger.hint("progress", stage=self.stage, **report, **gpu_load())

    def _remember_worker(self) -> None:
        who = self.identity()
        if self.ledger.record.get("worker") != who:
            self.ledger.update(worker=who)

    def _processor_seconds(self) -> float:
        pid = (self.identity() or {}).get("pid")
        return process.cpu_seconds([pid, *process.descendants(pid)]) if pid else 0.0

    def look(self) -> None:
        """Tell when the worker stands still, again and again while it lasts, and when it moves again."""
        news = self.stall.look()
        if news is None:
            return
        event, seconds = news
        details: dict[str, Any] = {"seconds": round(seconds, 1)}
        if event == "moving":
            self.told = False
            self.ledger.set_stage(event, self.stage, details=details, stalled_since=None)
            return
        who = self.identity() or {}
        details["why"] = process.state_of(who["pid"]) if who else ""
        if self.told:
            self.ledger.event(event, stage=self.stage, **details)
            return
        self.told = True
        self.ledger.set_stage(event, self.stage, details=details, stalled_since=now())
        self._issue(seconds, who.get("pid"), details["why"])

    def _issue(self, seconds: float, pid: int | None, why: str) -> None:
        state = self.ledger.known(self.stage) or {}
        record_issues(self.ledger, [diagnose.Issue(
            now(), state.get("phase") or "", self.stage, "warning",
            f"no report, no processor time and no GPU use for {seconds:.0f} s",
            f"The worker (pid {pid}) {why}." if why else "The worker waits: for the network, a disk, or a lock.",
            "Nothing is ended before stage_timeout_seconds; look at its log and at `py-spy dump`, or cancel the plan.",
        )])  # fmt: skip


def record_issues(ledger: Ledger, issues: list[diagnose.Issue]) -> None:
    """Append issues to their files; what hinders that must not hinder the stage's end."""
    if not ledger.layout.root.is_dir():  # removed: it is not made again for them
        return
    try:
        diagnose.append_issues(ledger.layout.logs, issues)
    except Exception as problem:  # a full disk, or templates that were removed with the code
        ledger.event("note", stage=issues[0].stage if issues else "", text=f"issues are not written: {problem}")
