"""The trainer's command line as Ansible sees it, with chosen outcomes.

<project_root>/outcomes.json: {"stage_seconds": float, "submit": {"exit_code", "message"},
"stages": {name: {"status", "exit_code", "message"}}}; every key may be missing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

FIELDS = {"learning_rate", "num_train_epochs"}
LEFT_OUT = {".venv", ".stagegate", "outputs", "__pycache__", ".git"}


class Refused(Exception):
    """Ends the process with `code` and one sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Host:
    """The files of one project root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state_file = root / "outputs" / "state" / "fake.json"

    def outcomes(self) -> dict[str, Any]:
        path = self.root / "outcomes.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def state(self) -> dict[str, Any]:
        if not self.state_file.exists():
            return {"plan": None, "running": False, "stages": {}, "starts": 0}
        return json.loads(self.state_file.read_text())

    def write(self, state: dict[str, Any]) -> None:
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.state_file.with_suffix(".new")
        fresh.write_text(json.dumps(state))
        os.replace(fresh, self.state_file)


def given(args: argparse.Namespace) -> dict[str, Any]:
    return json.load(sys.stdin) if args.input == "-" else {}


def params(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for field in sorted(FIELDS):
        if field.upper() in os.environ:
            merged[field] = {"value": os.environ[field.upper()], "source": field.upper()}
    for name, value in given(args)["overrides"].items():
        if name not in FIELDS:
            raise Refused(2, f"unknown parameter {name}: did you mean learning_rate?")
        merged[name] = {"value": value, "source": f"variable trainer_hp_{name}"}
    return {"overrides": merged}


def sources() -> list[Path]:
    here = Path.cwd()
    found = (p for p in here.rglob("*") if p.is_file())
    return sorted(p for p in found if not LEFT_OUT & set(p.relative_to(here).parts))


def source(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path in sources():
        digest.update(str(path.relative_to(Path.cwd())).encode() + path.read_bytes())
    answer: dict[str, Any] = {"source_id": digest.hexdigest()[:16], "commit": "", "lines": []}
    if args.what == "pack":
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|gz") as archive:
            for path in sources():
                archive.add(path, arcname=str(path.relative_to(Path.cwd())))
        sys.stdout.flush()
        sys.exit()
    if args.what in ("verify", "publish") and answer["source_id"] != args.expect:
        raise Refused(2, f"the source is {answer['source_id']}, not {args.expect}")
    if args.what == "publish":
        release = host.root / "releases" / answer["source_id"]
        os.rename(Path.cwd(), release)
        (host.root / ".code.new").symlink_to(f"releases/{release.name}")
        os.replace(host.root / ".code.new", host.root / "code")
    return answer


def check(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    given(args)
    return {"lines": ["check: data, parameters and model are fine"], "findings": []}


def submit(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    plan, state = given(args), host.state()
    refusal = host.outcomes().get("submit")
    if refusal:
        raise Refused(refusal["exit_code"], refusal["message"])
    (host.root / "submitted.jsonl").open("a").write(json.dumps(plan) + "\n")
    if state["running"]:
        return {"plan_id": state["plan"]["plan_id"], "action": "watch", "lines": ["plan: runs"]}
    state["plan"] = {**plan, "plan_id": f"plan{state['starts']}", "status": "submitted"}
    todo = [s for s in plan["stages"] if state["stages"].get(s, {}).get("status") != "passed"]
    action = "start" if todo else "none"
    if todo:
        state["lines"] = {}
        state["stages"] |= {stage: {"status": "pending"} for stage in todo}
    host.write(state)
    answer: dict[str, Any] = {"plan_id": state["plan"]["plan_id"], "action": action, "lines": [f"plan: {action}"]}
    if not todo:
        looks = {name: argparse.Namespace(stage=name, after=0, wait_seconds=0) for name in plan["stages"]}
        answer["stages"] = {name: watch(host, look) for name, look in looks.items()}
    return answer


def supervise(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    with (host.state_file.parent / "launches").open("a") as launches:
        launches.write("1\n")
    with (host.state_file.parent / "lock").open("a") as lock:  # held as long as this process lives
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = host.state()
        if state["plan"]["status"] != "submitted" or state["plan"]["plan_id"] != args.plan:
            raise Refused(7, "not ours to run")
        state["plan"]["status"], state["running"], state["starts"] = "running", True, state["starts"] + 1
        host.write(state)
        return carry_out(host)


def carry_out(host: Host) -> dict[str, Any]:
    outcomes, stopped = host.outcomes(), False
    for stage in host.state()["plan"]["stages"]:
        if host.state()["stages"][stage]["status"] == "passed":
            continue
        for step in range(1, 4):
            state = host.state()
            state["lines"].setdefault(stage, []).append(f"{stage}: step {step}/3")
            if not stopped:
                host.write(state)
                time.sleep(outcomes.get("stage_seconds", 0.3) / 3)
        end = outcomes.get("stages", {}).get(stage, {"status": "passed", "exit_code": 0})
        closed = {"status": "closed", "exit_code": 3, "message": "an earlier gate is closed"}
        state = host.state()
        state["stages"][stage] = closed if stopped else end
        # In one write: whoever sees the last stage ended may submit the next plan.
        state["running"] = any(found["status"] == "pending" for found in state["stages"].values())
        state["plan"]["status"] = "running" if state["running"] else "ended"
        host.write(state)
        stopped = stopped or (end["exit_code"] != 0 and state["plan"]["gate"] == "strict")
    return {}


def watch(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    deadline = time.monotonic() + min(args.wait_seconds, 0.3)
    while True:
        state = host.state()
        lines = state.get("lines", {}).get(args.stage, [])[args.after :]
        end = state["stages"].get(args.stage, {"status": "pending"})
        more = end["status"] == "pending"
        if lines or not more or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if not more:
        lines = [*lines, f"{args.stage}: {end['status']}"]
    result = None if more else {"stage": args.stage, "message": "", "exit_code": 0, **end}
    return {"lines": lines, "cursor": args.after + len(lines), "more": more, "result": result}


def status(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    state = host.state()
    return {**state, "exit_code": 0, "message": "", "lines": [f"running: {state['running']}"]}


def secret(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    if args.what == "put" and not json.load(sys.stdin)["value"]:
        raise Refused(2, "no secret on standard input")
    return {"changed": True}


def cancel(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    return {"lines": ["nothing runs"]}


def collect(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    text = json.dumps(host.state()["stages"], sort_keys=True)
    export_id = hashlib.sha256(text.encode()).hexdigest()
    run = host.root / "outputs" / "training_sync" / "run_fake"
    run.mkdir(parents=True, exist_ok=True)
    (run / "TRAINING_SUMMARY.md").write_text(text)
    return {"run": "run_fake", "export_id": export_id, "files": 1, "bytes": 1, "lines": []}


def export(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    return {"lines": []}


def closing(folder: Path) -> dict[str, Any]:
    summary = folder / "training_sync" / "run_fake" / "TRAINING_SUMMARY.md"
    if not summary.exists():
        return {"export_id": "", "lines": []}
    export_id = hashlib.sha256(summary.read_bytes()).hexdigest()
    return {"export_id": export_id, "lines": [f"Summary: {summary}", "Best model: adapter_x"]}


def imported(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    return closing(Path(args.output_dir))


def ask(request: dict[str, Any]) -> None:
    print(json.dumps(request), flush=True)
    if not json.loads(sys.stdin.readline())["ok"]:
        raise Refused(7, "it did not arrive")


def import_(host: Host, args: argparse.Namespace) -> dict[str, Any]:
    target = Path(args.output_dir) / "training_sync" / "run_fake" / "TRAINING_SUMMARY.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    source = f"{args.host_root}/outputs/training_sync/run_fake/TRAINING_SUMMARY.md"
    ask({"fetch": {"source": source, "target": str(target), "limit_bytes": 1 << 20}})
    ask({"run": ["export", "--json"]})
    return {"answer": {**closing(Path(args.output_dir)), "changed": True}}


COMMANDS = {
    "cancel": cancel, "check": check, "collect": collect, "export": export, "import": import_,
    "imported": imported, "params": params, "secret": secret, "source": source, "status": status,
    "submit": submit, "supervise": supervise, "watch": watch,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--project-root", type=Path, default=Path())
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("what", nargs="?")
    for option in ("--input", "--output", "--output-dir", "--host-root", "--export-id", "--expect", "--commit"):
        parser.add_argument(option)
    for option in ("--plan", "--stage", "--name", "--data-root", "--max-file-bytes", "--max-total-bytes"):
        parser.add_argument(option)
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--wait-seconds", type=float, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        print(json.dumps(COMMANDS[args.command](Host(args.project_root), args)))
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        return refused.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
