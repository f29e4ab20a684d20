"""What each command of the command line does. No torch."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer import (
    arrival,
    artifacts,
    base,
    config,
    content,
    courier,
    credentials,
    diagnose,
    evaluate,
    ledger,
    listing,
    outlook,
    precheck,
    process,
    publication,
    recovery,
    release,
    repository,
    source,
    stages,
    steps,
    supervisor,
    tables,
    watch,
    workshop,
)
from trainer import plan as plans
from trainer.bundle import command as bundle_command
from trainer.cli import request_from
from trainer.errors import InputError, NotReady
from trainer.state import Layout, StateError, read_stage

Arguments = argparse.Namespace


def answer(arguments: Arguments, value: dict[str, Any]) -> None:
    """Print an answer: as one JSON object, or its lines."""
    if arguments.json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        print("\n".join(value.get("lines") or []), end="\n" if value.get("lines") else "")


def training_root(root: Path) -> Layout:
    """The layout of a root that may be trained in; a copy that was collected from a host may not."""
    layout = Layout(root)
    if (layout.outputs / artifacts.COLLECTED).exists():
        raise InputError(
            f"{layout.outputs} is a copy that was collected from a host; name the host's folder with --project-root"
        )
    return layout


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


def status(arguments: Arguments, root: Path) -> int:
    layout = Layout(root)
    trouble = ""
    if not (layout.outputs / artifacts.COLLECTED).exists():
        try:
            recovery.mark_lost(layout)
        except recovery.Unwritten as problem:
            trouble = str(problem)
    record = plans.read_record(layout)
    states, unreadable = {}, []
    for name in stages.load().names:
        try:
            states[name] = read_stage(layout, name)
        except StateError as problem:
            unreadable.append(f"{name:<{watch.NAME_WIDTH}}unreadable: {problem}")
    code, message = 0, "no plan was submitted yet"
    if record and arguments.plan in ("", record["plan_id"]):
        code, message = ledger.verdict(record)
        if record["status"] != "ended":
            message = f"plan {record['plan_id']} is {record['status']}{_held_up(record)}"
    elif record:
        message = f"plan {arguments.plan} had nothing to do"
    if trouble or unreadable:
        code, message = 7, trouble or message
    found = {
        "plan": record,
        "running": plans.is_running(layout, record) if layout.state.exists() else False,
        "stages": {name: state for name, state in states.items() if state},
        "exit_code": code,
        "message": message,
        "lines": [message, *(_status_line(name, state) for name, state in states.items()), *unreadable],
    }
    answer(arguments, found)
    return 0


def _held_up(record: dict[str, Any]) -> str:
    """What keeps a living supervisor from its work (somebody stopped it), or an empty text."""
    who = record.get("supervisor") or {}
    why = process.state_of(who["pid"]) if process.is_alive(who) else ""
    return f"; its supervisor (pid {who['pid']}) {why}" if why else ""


def _status_line(name: str, state: dict[str, Any] | None) -> str:
    if state is None:
        return f"{name:<{watch.NAME_WIDTH}}never ran"
    measured = (state.get("gate") or {}).get("measured") or {}
    scores = ", ".join(f"{metric.replace('_', ' ')} {watch.figure(item)}" for metric, item in measured.items())
    shown = scores or state["message"] or state["phase"]
    if state.get("stalled_since"):
        shown += f", stalled since {state['stalled_since'][:16].replace('T', ' ')}"
    return f"{name:<{watch.NAME_WIDTH}}{state['status']:<10}{state['updated_at'][:16].replace('T', ' ')}  {shown}"


def params(arguments: Arguments, root: Path) -> int:
    """The parameters; with --input the checked overrides of a request (the controller's part)."""
    if arguments.input:
        request = request_from(arguments)
        stray = [name for name in request if name not in ("profile", "overrides")]
        config.raise_findings([f"the input has no field {name!r}" for name in stray])
        given = request.get("overrides") or {}
        if not isinstance(given, dict):
            raise InputError(f"the input's overrides are {given!r}; give an object of parameters")
        overrides = config.overrides_from(given, os.environ, "variable trainer_hp_{name}")
        for name in stages.load().names:
            stages.load().resolve(name, str(request.get("profile") or ""), overrides)
        print(json.dumps({"overrides": overrides}, ensure_ascii=False))
        return 0
    request = request_from(arguments)
    table = stages.load()
    stage = arguments.stage or table.names[-1]
    values, sources = table.resolve(stage, request["profile"], request["overrides"])
    rows = [
        {"name": name, "value": getattr(values, name), "source": sources[name], **tables.described(item)}
        for name, item in config.FIELDS.items()
    ]
    if arguments.markdown:
        print(tables.markdown_parameters())
    elif arguments.json:
        print(json.dumps({"stage": stage, "parameters": rows}, ensure_ascii=False))
    else:
        for row in rows:
            print(f"{row['name']} = {tables.literal(row['value'])}  [{row['source']}]\n    {row['help']}")
    return 0


def show_stages(arguments: Arguments, root: Path) -> int:
    if arguments.markdown:
        print(tables.markdown_stages())
        return 0
    records = [{**asdict(stage), "benchmarks": list(stage.benchmarks)} for stage in stages.load().stages]
    lines = [
        f"{r['name']:<{watch.NAME_WIDTH}}tag {r['tag']:<10} {r['adapter']:<18} "
        + ", ".join(f"{name.replace('_', ' ')} >= {value:.2f}" for name, value in r["gate"].items())
        for r in records
    ]
    answer(arguments, {"stages": records, "lines": lines})
    return 0


def show_diagnosis(arguments: Arguments, root: Path) -> int:
    text = arguments.log.read_text(encoding="utf-8", errors="replace")
    issues = diagnose.diagnose(text, exit_signal=None, error_kind=None, stage=arguments.stage)
    lines = [f"{issue.severity}: {issue.cause}\n  seen: {issue.symptom}\n  do:   {issue.action}" for issue in issues]
    answer(arguments, {"issues": [asdict(issue) for issue in issues], "lines": lines})
    return 0


def check(arguments: Arguments, root: Path) -> int:
    """Data, parameters, packages and base model, or the data alone; all findings at once."""
    request = request_from(arguments)
    if arguments.data_only:
        found = precheck.inspect_data(str(request.get("data_root") or ""))
    else:
        plan = plans.from_request(request)
        found = precheck.inspect(plan, Layout(root))
        if not found.errors and (line := outlook.brief(plan, Layout(root))):
            found.lines.insert(len(found.lines) - 1, line)  # the last one is the verdict on the data
    if arguments.json or not found.errors:
        answer(arguments, {"lines": found.lines, "findings": [item.as_dict() for item in found.findings]})
    found.raise_errors()
    return 0


def estimate(arguments: Arguments, root: Path) -> int:
    """What a plan would take here; HostUnfit when it cannot fit at all."""
    found = outlook.look(plans.from_request(request_from(arguments)), Layout(root))
    answer(arguments, found)
    outlook.refuse(found)
    return 0


def score(arguments: Arguments, root: Path) -> int:
    result = evaluate.score_files(arguments.benchmark, arguments.predictions)
    artifacts.write_score(arguments.output, result)
    for name, item in result["summary"].items():
        print(f"{name.replace('_', ' ')}: {watch.figure(item)}")
    return 0


def build_base(arguments: Arguments, root: Path) -> int:
    for name, value in workshop.WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # torch, which reads them, is imported below
    print(base.build(Layout(root).models, arguments.corpus or steps.corpus()))
    return 0


def show_source(arguments: Arguments, root: Path) -> int:
    """hash, pin, pack: of the checkout that this code is; verify, publish: of the tree in the current folder."""
    here = steps.code_root()
    if arguments.action == "pack":
        if arguments.output is None:
            raise InputError("source pack needs --output FILE, the archive to write; - is standard output")
        if str(arguments.output) == "-":
            source.pack(here, sys.stdout.buffer)
            return 0
        with arguments.output.open("wb") as stream:
            found = source.pack(here, stream)
    elif arguments.action == "pin":
        found = repository.pin(here, arguments.url, arguments.revision)
    elif arguments.action == "verify":
        found = _verified(Path.cwd(), arguments)
    elif arguments.action == "publish":
        found = release.publish(Layout(root), Path.cwd(), arguments.expect, arguments.commit)
    else:
        found = {**source.describe(here), "commit": repository.commit_of(here)}
    words = [*found.get("lines", []), found.get("source_id") or found["commit"]]
    answer(arguments, found if arguments.json else {"lines": words})
    return 0


def _verified(folder: Path, arguments: Arguments) -> dict[str, Any]:
    record = content.read_record(folder)
    if record is None:
        return {"source_id": content.verify(folder, arguments.expect), "commit": ""}
    record = content.check_release(folder, arguments.expect or record["source_id"])
    if arguments.commit and arguments.commit != record["commit"]:
        raise InputError(f"the code in {folder} is of commit {record['commit'] or 'unknown'}, not {arguments.commit}")
    return {"source_id": record["source_id"], "commit": record["commit"]}


def collect(arguments: Arguments, root: Path) -> int:
    layout = training_root(root)
    if not layout.plan.exists():
        raise NotReady(f"nothing was trained in {root} yet, so there is nothing to collect; run a stage first")
    answer(arguments, artifacts.collect(layout, arguments.anew))
    return 0


def export(arguments: Arguments, root: Path) -> int:
    layout, export_id, token = Layout(root), arguments.export_id, arguments.token
    if arguments.end:
        answer(arguments, artifacts.end_export(layout, export_id, token))
    else:
        piece = (arguments.files, arguments.offset, arguments.most_bytes)
        answer(arguments, artifacts.export(layout, export_id, *piece, token))
    return 0


def receive(arguments: Arguments, root: Path) -> int:
    caps = listing.Caps(arguments.max_file_bytes, arguments.max_total_bytes)
    order = arrival.Order(arguments.host_root, arguments.export_id, arguments.output_dir.resolve(), caps)
    pipe = courier.Pipe()
    pipe.answer(arrival.receive(order, pipe))
    return 0


def imported(arguments: Arguments, root: Path) -> int:
    answer(arguments, publication.imported(arguments.output_dir.resolve()))
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
    "status": status,
    "params": params,
    "stages": show_stages,
    "diagnose": show_diagnosis,
    "check": check,
    "estimate": estimate,
    "score": score,
    "base": build_base,
    "source": show_source,
    "collect": collect,
    "export": export,
    "import": receive,
    "imported": imported,
    "bundle": bundle_command.run,
    "secret": secret,
    "worker": work,
}
