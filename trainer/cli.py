"""The command line: `python -m trainer COMMAND`. Arguments only; what commands do stands in `commands`. No torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer import __version__, config, stages
from trainer.arguments import Parser
from trainer.bundle import command as bundle_command
from trainer.errors import InputError, TrainerError

Add = Callable[..., Any]


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="trainer", description="Gate-checked LoRA training on this host.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--project-root", type=Path, default=None,
        help="folder that holds outputs/ (default: $TRAIN_SYNC_PROJECT_ROOT, else the current folder)",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        # People write it behind the command as well; SUPPRESS keeps what stood before it.
        added.add_argument("--project-root", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return added

    for add in (_add_line, _add_looking, _add_data, _add_transfer, _add_bundle, _add_inner):
        add(command)
    return parser


def _request_arguments(parser: argparse.ArgumentParser) -> None:
    table = stages.load()
    parser.add_argument("--profile", default="", help=f"a set of differences: {', '.join(table.profiles)}")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter (see `params`)")
    parser.add_argument("--stages", default="", metavar="A,B", help=f"default: {','.join(table.names)}")
    parser.add_argument("--gate", default="strict", help=f"{' | '.join(stages.GATE_MODES)} (default: strict)")
    parser.add_argument("--skip-sample", action="store_true", help="record the smoke stage as skipped")
    parser.add_argument("--data-root", default="", metavar="DIR", help="folder that holds training/")
    parser.add_argument("--plan-timeout-seconds", default=None, metavar="N", help="end the whole plan after this")
    parser.add_argument("--input", default="", metavar="FILE", help="the request as JSON; - is standard input")


def _json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="answer with one JSON object")


def _add_line(add: Add) -> None:
    run = add("run", help="submit a plan and watch it to its end (Ctrl-C detaches)")
    _request_arguments(run)
    submit = add("submit", help="check a plan as a whole and write it down")
    _request_arguments(submit)
    _json_argument(submit)
    supervise = add("supervise", help="carry out the submitted plan")
    supervise.add_argument("--plan", required=True, metavar="ID")
    watch = add("watch", help="follow the stages of a plan")
    watch.add_argument("--plan", default="", metavar="ID", help="default: the last one")
    watch.add_argument("--stage", default="", help="default: every stage of the plan")
    watch.add_argument("--after", type=int, default=0, metavar="BYTE", help="cursor of the last answer")
    watch.add_argument("--wait-seconds", type=float, default=5.0)
    _json_argument(watch)
    cancel = add("cancel", help="end the running plan")
    _json_argument(cancel)


def _add_looking(add: Add) -> None:
    status = add("status", help="what ran, what runs, how it stands")
    status.add_argument("--plan", default="", metavar="ID")
    _json_argument(status)
    params = add("params", help="every parameter: name, value, source, help")
    _request_arguments(params)
    params.add_argument("--stage", default="", help="as this stage resolves them")
    params.add_argument("--markdown", action="store_true", help="the table of the README")
    _json_argument(params)
    shown = add("stages", help="the stage table")
    shown.add_argument("--markdown", action="store_true", help="the table of the README")
    _json_argument(shown)
    diagnose = add("diagnose", help="known causes in a log")
    diagnose.add_argument("--log", required=True, type=Path, metavar="FILE")
    diagnose.add_argument("--stage", default="")
    _json_argument(diagnose)


def _add_data(add: Add) -> None:
    check = add("check", help="data, parameters, packages and base model, before anything is loaded")
    _request_arguments(check)
    check.add_argument("--data-only", action="store_true", help="look at the data of every stage and at nothing else")
    _json_argument(check)
    estimate = add("estimate", help="memory, disk and time of each stage, before anything is started")
    _request_arguments(estimate)
    _json_argument(estimate)
    score = add("score", help="score predictions against a benchmark")
    for name in ("benchmark", "predictions", "output"):
        score.add_argument(f"--{name}", required=True, type=Path, metavar="FILE")
    base = add("base", help="the embedded base model")
    base.add_argument("action", choices=["build"])
    base.add_argument("--corpus", type=Path, default=None, metavar="DIR", help="default: data/corpus")


def _add_transfer(add: Add) -> None:
    source = add("source", help="the source tree as it goes to a host")
    source.add_argument("action", choices=["hash", "pin", "pack", "verify", "publish"])
    source.add_argument("--output", type=Path, metavar="FILE", help="pack: the archive to write; - is standard output")
    source.add_argument("--expect", default="", metavar="ID", help="verify, publish: the id that the tree must have")
    source.add_argument("--commit", default="", help="verify, publish: the commit that the tree is of")
    source.add_argument("--url", default="", help="pin: the repository (default: origin)")
    source.add_argument("--revision", default="", help="pin: branch, tag or commit (default: HEAD)")
    _json_argument(source)
    collect = add("collect", help="make the run folder with its summary, and list what can be brought home")
    collect.add_argument("--anew", action="store_true", help="hash every file again")
    _json_argument(collect)
    export = add("export", help="write files of that listing into one piece")
    export.add_argument("--export-id", required=True, metavar="ID")
    export.add_argument("--token", required=True, help="a name for the piece: 8 hex digits")
    export.add_argument("--files", default="0", metavar="0-3,7", help="places in the listing")
    export.add_argument("--offset", type=int, default=0, metavar="BYTE", help="where to begin in the only file")
    export.add_argument("--most-bytes", type=int, default=1 << 50, metavar="BYTES")
    export.add_argument("--end", action="store_true", help="remove the piece and the listing")
    _json_argument(export)
    receive = add("import", help="bring an export here and publish it (asks on standard output for what it needs)")
    receive.add_argument("--host-root", required=True, metavar="DIR", help="the project root on the host")
    receive.add_argument("--export-id", required=True, metavar="ID")
    receive.add_argument("--output-dir", required=True, type=Path, metavar="DIR")
    receive.add_argument("--max-file-bytes", required=True, type=int, metavar="BYTES")
    receive.add_argument("--max-total-bytes", required=True, type=int, metavar="BYTES")
    imported = add("imported", help="what was published before, verified")
    imported.add_argument("--output-dir", required=True, type=Path, metavar="DIR")
    _json_argument(imported)


def _add_bundle(add: Add) -> None:
    bundle = add("bundle", help="the source as one verified file, for hosts that cannot fetch it")
    bundle_command.add_arguments(bundle)


def _add_inner(add: Add) -> None:
    secret = add("secret", help="keep a secret (on standard input) until the next plan's end, or remove it")
    secret.add_argument("action", choices=["put", "forget"])
    secret.add_argument("--name", default="hf_token", help="default: hf_token")
    _json_argument(secret)
    worker = add("worker", help="(started by the supervisor)")
    worker.add_argument("--report-descriptor", required=True, type=int)
    worker.add_argument("--processes", default=1, type=int)


def request_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """The request that the options describe over the environment, or the one that the JSON input holds.

    The environment was read where such an input was made: on the controller, not on the host.
    """
    if arguments.input:
        beside = [
            name
            for name in ("set", "stages", "profile", "skip_sample", "plan_timeout_seconds")
            if getattr(arguments, name)
        ]
        if beside:
            raise InputError(f"--{beside[0].replace('_', '-')} beside --input; say it in the input")
        try:
            text = sys.stdin.read() if arguments.input == "-" else Path(arguments.input).read_text(encoding="utf-8")
            request = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise InputError(f"the input is no JSON ({problem}); give one object") from None
        if not isinstance(request, dict):
            raise InputError(f"the input is a {type(request).__name__}; give one JSON object")
        if arguments.data_root:
            request["data_root"] = str(Path(arguments.data_root).resolve())
        return request
    pairs = [item.partition("=") for item in arguments.set]
    config.raise_findings([f"--set {name!r} has no value; write NAME=VALUE" for name, sign, _ in pairs if not sign])
    skipped = os.environ.get("TRAIN_SYNC_SKIP_SAMPLE", "").strip().lower() in ("1", "true", "yes", "on")
    return {
        "stages": [name for name in arguments.stages.split(",") if name],
        "profile": arguments.profile,
        "overrides": config.overrides_from(
            {name.strip(): value for name, _, value in pairs}, os.environ, "command line --set {name}"
        ),
        "gate": arguments.gate,
        "skip_sample": arguments.skip_sample or skipped,
        "data_root": str(Path(arguments.data_root).resolve()) if arguments.data_root else "",
        "plan_timeout_seconds": arguments.plan_timeout_seconds,
    }


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    try:
        return build_parser().parse_args(words)
    except InputError:
        if "secret" not in words:
            raise
        raise InputError(  # whatever stands there may be the secret itself: it is not shown
            "`secret` takes put or forget and --name; the value is read from standard input, never from an argument, "
            "which every process can see"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors become their sentence on standard error and their exit code."""
    try:
        arguments = _parsed(sys.argv[1:] if argv is None else argv)
        from trainer import commands

        root = arguments.project_root or Path(os.environ.get("TRAIN_SYNC_PROJECT_ROOT") or ".")
        return commands.COMMANDS[arguments.command](arguments, root.expanduser().resolve())
    except TrainerError as problem:
        for line in problem.lines:
            print(line, file=sys.stderr)
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 7
    except BrokenPipeError:  # the reader went away: `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the flush at exit
        return 0
    except OSError as problem:
        print(f"error: {problem.strerror or problem}: {problem.filename or ''}".rstrip(": "), file=sys.stderr)
        return 2
