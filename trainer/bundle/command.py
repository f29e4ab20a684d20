"""`bundle verify | apply | rollback | build`: of the trainer's command line, and of the program beside a bundle.

Standard library alone, Python 3.8. No torch.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping

from trainer import content
from trainer.bundle import apply, data_check, verify
from trainer.bundle.progress import Progress
from trainer.errors import InputError, Interrupted
from trainer.state import Layout

APPLICATION, BUNDLE = ".apply.pyz", ".tar.gz"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Answer = Dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions and their options; `build` where a bundle can be built, which is not on a bare host."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        added.add_argument(
            "--project-root", type=Path, default=argparse.SUPPRESS, metavar="DIR",
            help="default: $TRAIN_SYNC_PROJECT_ROOT, else the current folder",
        )  # fmt: skip
        added.add_argument("--json", action="store_true", help="answer with one JSON object")
        return added

    _add_bundle(action("verify", "verify a bundle as a whole, and write nothing"))
    applied = action("apply", "verify a bundle and make its tree the code in use")
    _add_bundle(applied)
    _add_folders(applied)
    applied.add_argument("--keep-staging", action="store_true", help="keep what was unpacked when it is refused")
    applied.add_argument("--dry-run", action="store_true", help="say what would change, and write nothing")
    applied.add_argument("--force", action="store_true", help="also one that is older than what is in use")
    _add_folders(action("rollback", "bring back what the code in use replaced"))
    if importlib.util.find_spec("trainer.bundle.build"):
        from trainer.bundle import build

        build.add_arguments(action("build", "pack what training needs into one file"))


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    own = own_bundle()
    beside = f" (default: {own.name} beside this program)" if own else ""
    parser.add_argument(
        "--bundle", type=Path, required=own is None, default=own, metavar="FILE", help=f"the .tar.gz file{beside}"
    )
    parser.add_argument(
        "--without-sha256", action="store_true", help="accept a bundle without its .sha256, by its manifest alone"
    )


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--staging-dir", type=Path, default=None, metavar="DIR", help="where to unpack (default: beside the releases)"
    )
    parser.add_argument(
        "--backup-root", type=Path, default=None, metavar="DIR", help="where backups are (default: backups/)"
    )


def own_bundle(program: Path | None = None) -> Path | None:
    """The bundle that this program was carried along with; None in a checkout."""
    program = program or Path(__file__).parents[2]
    if not program.name.endswith(APPLICATION) or not program.is_file():
        return None
    return program.with_name(program.name[: -len(APPLICATION)] + BUNDLE)


def run(arguments: argparse.Namespace, root: Path) -> int:
    """Carry out one action below the project root and print its answer. Returns 0; errors are raised."""
    began = time.monotonic()
    layout = Layout(root)
    if arguments.action == "build":
        from trainer.bundle import build

        _print(arguments, build.run(arguments, root))
        return 0
    errors: list[str] = []
    with _stopped_by_signals(layout):
        answer = ACTIONS[arguments.action](arguments, layout)
        if "files" in answer:
            seconds = time.monotonic() - began
            answer["lines"].append(f"{answer['files']} files, {answer['bytes']} bytes, {seconds:.1f} s")
        if arguments.action == "apply" and not arguments.dry_run:
            more, errors = data_check.of_release(layout)
            answer["lines"] += more
            answer["data_errors"] = errors
    _print(arguments, answer)
    if errors:
        count = "an error" if len(errors) == 1 else f"{len(errors)} errors"
        raise InputError(
            f"{answer['bundle']} is applied, but its data has {count}; send a corrected bundle, or take this one back "
            "with `bundle rollback`",
            errors,
        )
    return 0


def _print(arguments: argparse.Namespace, answer: Answer) -> None:
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=True))
    else:
        print("\n".join(answer["lines"]))


def _verify(arguments: argparse.Namespace, layout: Layout) -> Answer:
    with _progress("verifying") as progress:
        found = verify.check(
            arguments.bundle, without_sha256=arguments.without_sha256, caps=apply.CAPS, target=verify.Hashed(),
            progress=progress,
        )  # fmt: skip
    shipped = [entry for entry in found.entries if content.is_part(entry[0])]
    answer = {
        "changed": False, "bundle": found.name, "sha256": found.sha256, "source_id": content.source_id(shipped),
        "commit": found.commit, "made_at": found.made_at, "algorithm": found.algorithm, "files": len(found.entries),
        "bytes": found.unpacked_bytes,
    }  # fmt: skip
    return {**answer, "lines": [*found.lines, f"{found.name} is whole: the source {answer['source_id']}"]}


def _apply(arguments: argparse.Namespace, layout: Layout) -> Answer:
    words = "verifying" if arguments.dry_run else "applying"
    with _progress(words) as progress:
        request = apply.Request(
            layout, arguments.bundle, arguments.staging_dir, arguments.backup_root, arguments.keep_staging,
            arguments.force, arguments.without_sha256, progress=progress,
        )  # fmt: skip
        return apply.preview(request) if arguments.dry_run else apply.apply(request)


def _rollback(arguments: argparse.Namespace, layout: Layout) -> Answer:
    return apply.rollback(layout, arguments.staging_dir, arguments.backup_root)


ACTIONS: Mapping[str, Callable[[argparse.Namespace, Layout], Answer]] = {
    "verify": _verify, "apply": _apply, "rollback": _rollback,
}  # fmt: skip


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A line on a terminal; elsewhere the last line alone counts."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    progress = Progress(what)
    try:
        yield progress
    finally:
        progress.close()


@contextlib.contextmanager
def _stopped_by_signals(layout: Layout) -> Iterator[None]:
    """Ctrl-C, TERM and HUP end the work as an error does, so that it cleans up; a second one does not stop that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    in_use = _link(layout)

    def stop(number: int, frame: object) -> None:
        for other in STOPPING:
            signal.signal(other, signal.SIG_IGN)
        raise _Stopped(signal.Signals(number).name)

    try:
        for number in STOPPING:
            if before[number] is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, stop)
        yield
    except _Stopped as problem:
        state = "is the new one as a whole" if _link(layout) != in_use else "is the one of before"
        raise Interrupted(
            f"stopped by {problem}: the tree in use {state}; run the command again", problem.lines
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stopped(Interrupted):
    """A signal came."""


def _link(layout: Layout) -> tuple[str, ...]:
    """What tells one tree in use from another."""
    code = layout.root / "code"
    try:
        return (str(code.resolve()), str(code.lstat().st_ino))
    except OSError:
        return ()
