"""What each command of the command line does: here those that begin, watch and end the work. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import base, credentials, handover, recovery, stages, steps, supervisor, views, watch, workshop
from trainer import plan as plans
from trainer.answers import Arguments, answer, training_root
from trainer.bundle import command as bundle_command
from trainer.cli import request_from
from trainer.errors import InputError
from trainer.state import Layout


def submit(arguments: Arguments, root: Path) -> int:
    layout, request = training_root(root), request_from(arguments)
    submitted = _submitted(request, layout)
    if submitted["action"] == "none":  # how each stage stands: whoever would watch them need not ask again
        names = stages.load().ordered(request.get("stages") or stages.load().names)
        submitted["stages"] = {name: watch.follow(layout, submitted["plan_id"], name, 0, 0.0) for name in names}
    answer(arguments, submitted)
    return 0


def _submitted(request: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """The answer of `submit`; where it starts no plan, nobody needs the secrets that were put here for it."""
    action = ""
    try:
        recovery.mark_lost(layout)
        found = plans.submit(request, layout)
        action = found["action"]
    finally:
        if action != "start":
            credentials.forget_unless_running(layout)
    return found


def secret(arguments: Arguments, root: Path) -> int:
    """Keep a secret for the next plan, or remove what is kept; a value is read from standard input only."""
    layout = training_root(root)
    if arguments.action == "put":
        credentials.put(layout, arguments.name, sys.stdin.read(4096))
        answer(arguments, {"changed": True, "lines": []})
    else:
        answer(arguments, {"changed": credentials.forget_unless_running(layout), "lines": []})
    return 0


def supervise(arguments: Arguments, root: Path) -> int:
    with contextlib.suppress(PermissionError):  # a group leader already
        os.setsid()  # whatever ends the process group of what launched us must not end the plan
    return supervisor.supervise(root, arguments.plan)


def run(arguments: Arguments, root: Path) -> int:
    """Submit, start a supervisor of its own session, watch; Ctrl-C leaves the plan running."""
    layout = training_root(root)
    request = request_from(arguments)
    submitted = _submitted(request, layout)
    print("\n".join(submitted["lines"]), end="\n" if submitted["lines"] else "", flush=True)
    if submitted["action"] == "start":
        command = [
            sys.executable,
            "-m",
            "trainer",
            "--project-root",
            str(root),
            "supervise",
            "--plan",
            submitted["plan_id"],
        ]
        subprocess.Popen(
            command, cwd=steps.code_root(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    names = stages.load().ordered(request.get("stages") or stages.load().names)
    return _watch_all(layout, submitted["plan_id"], names)


def _watch_all(layout: Layout, plan_id: str, names: list[str]) -> int:
    results: list[dict[str, Any]] = []
    try:
        for name in names:
            cursor, more = 0, True
            while more:
                news = watch.follow(layout, plan_id, name, cursor, 5.0)
                cursor, more = news["cursor"], news["more"]
                if news["lines"]:
                    print("\n".join(news["lines"]), flush=True)
            results.append(news["result"])
    except KeyboardInterrupt:
        here = f"python -m trainer --project-root {layout.root}"
        print(f"\ndetached: plan {plan_id} goes on\n  watch it:  {here} watch\n  look:      {here} status\n"
              f"  end it:    {here} cancel\nerror: detached before the plan's end", file=sys.stderr)  # fmt: skip
        return 7
    first = next((result for result in results if result["exit_code"]), None)
    if first is None:
        return 0
    print(f"error: {first['message']}", file=sys.stderr)
    return int(first["exit_code"])


def follow(arguments: Arguments, root: Path) -> int:
    layout = Layout(root)
    record = plans.read_record(layout)
    plan_id = arguments.plan or (record["plan_id"] if record else "")
    if not plan_id:
        raise InputError(f"no plan was ever submitted in {root}; start one with `run`, or name another --project-root")
    if arguments.json and not arguments.stage:
        raise InputError("watch --json follows one stage; name it with --stage")
    name = stages.load().stage(arguments.stage).name if arguments.stage else ""
    if not arguments.json:
        names = record["stages"] if record else stages.load().names
        return _watch_all(layout, plan_id, [name] if name else names)
    print(json.dumps(watch.follow(layout, plan_id, name, arguments.after, arguments.wait_seconds), ensure_ascii=False))
    return 0


def cancel(arguments: Arguments, root: Path) -> int:
    lines = recovery.cancel(training_root(root))
    answer(arguments, {"cancelled": not lines[0].startswith("no plan is running"), "lines": lines})
    return 0


def build_base(arguments: Arguments, root: Path) -> int:
    for name, value in workshop.WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # torch, which reads them, is imported below
    print(base.build(Layout(root).models, arguments.corpus or steps.corpus()))
    return 0


def work(arguments: Arguments, root: Path) -> int:
    if arguments.processes > 1:
        from trainer import launcher

        own = ["--project-root", str(root), "worker", "--report-descriptor", str(arguments.report_descriptor)]
        command = [sys.executable, "-m", "trainer", *own]
        return launcher.main(command, arguments.processes, arguments.report_descriptor)
    from trainer import worker

    return worker.main(root, arguments.report_descriptor)


COMMANDS: dict[str, Callable[[Arguments, Path], int]] = {
    "run": run,
    "submit": submit,
    "supervise": supervise,
    "watch": follow,
    "cancel": cancel,
    "status": views.status,
    "params": views.params,
    "stages": views.show_stages,
    "diagnose": views.show_diagnosis,
    "check": views.check,
    "estimate": views.estimate,
    "score": views.score,
    "base": build_base,
    "source": handover.show_source,
    "collect": handover.collect,
    "export": handover.export,
    "import": handover.receive,
    "imported": handover.imported,
    "bundle": bundle_command.run,
    "secret": secret,
    "worker": work,
}
