"""The parent of a crew: starts the worker's processes by torchrun and ends as the first of them that failed.

It runs where the worker of one process would: with its standard input, its log, its place below the supervisor.
torchrun's Python interface is called instead of its command, because of what the command leaves out: the parent's
death is the death of all, the signal that ended a process is passed on, and nothing listens beyond this machine
(the command's store takes pickled objects from every network interface; ours is a file in a private folder).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import gpu, process
from trainer.crew import MEETING_VARIABLE, of_rank

PARENT_VARIABLE = "STAGEGATE_LAUNCHER"
# Shorter than the grace that the supervisor gives, so that torchrun is there to see its processes gone.
SHUTDOWN_SECONDS = 15
WATCH_SECONDS = 0.1  # torchrun's own interval
PREFIX = "stagegate-crew-"  # of the private folder in the host's temporary one; the launcher's pid follows
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def main(command: Sequence[str], processes: int, descriptor: int) -> int:
    """Run `command` in so many processes; the exit code is theirs, and a signal that killed one kills this one, too.

    Which of them ended the others is told as a note through `descriptor`.
    """
    process.die_with_parent()
    try:
        _remove_left_behind()
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    except OSError as problem:
        message = f"the processes have no place to meet: {problem.strerror}; make room in the temporary folder"
        _tell(descriptor, {"event": "failed", "kind": "HostUnfit", "message": message})
        return 1
    try:
        code = run(command, processes, folder, descriptor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def run(command: Sequence[str], processes: int, folder: Path, descriptor: int) -> int:
    """The exit code of the process that failed first, negative for a signal as in subprocess; 0 when none did."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name, value in LOOPBACK.items():
        os.environ.setdefault(name, value)
    os.environ[MEETING_VARIABLE] = (folder / "meeting").as_uri()
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="crew", role="worker",
        rdzv_backend="c10d", rdzv_endpoint=str(folder / "rendezvous"), rdzv_configs={"store_type": "file"},
        local_addr="127.0.0.1",  # else this machine's name, which many a container cannot look up
        # Each process sees its own GPU alone, as number 0: no library has to be told which one it is.
        virtual_local_rank=gpu.count(os.environ) >= processes,
        max_restarts=0, monitor_interval=WATCH_SECONDS, shutdown_timeout=SHUTDOWN_SECONDS,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )  # fmt: skip
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as problem:
        rank, code, pid = culprit(problem.failures)
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        text = f"{of_rank(rank, processes)} (pid {pid}) ended first, by {ended}; so the others were ended"
        print(text, file=sys.stderr, flush=True)
        _tell(descriptor, {"event": "note", "text": text})
        return code
    except SignalException as problem:  # passed on to all of them by then
        return 128 + int(problem.sigval)
    return 0


def culprit(failures: dict[int, Any]) -> tuple[int, int, int]:
    """(rank, exit code, pid) of the one that ended the others: not one that torchrun sent SIGTERM on its account."""
    order = sorted(failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp))
    rank, failure = order[0]
    return rank, int(failure.exitcode), int(failure.pid)


def stay_with_parent() -> None:
    """In a process of the crew: end with the launcher, also when that has ended already."""
    process.die_with_parent()
    wanted = os.environ.get(PARENT_VARIABLE)
    if wanted and os.getppid() != int(wanted):
        sys.exit("the launcher of this process is gone")


def _remove_left_behind() -> None:
    """Remove the private folders of launchers that were killed and could not do it themselves."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            ours = path.lstat().st_uid == os.geteuid() and path.is_dir() and not path.is_symlink()
            if ours and pid.isdigit() and process.start_time(int(pid)) is None:
                shutil.rmtree(path, ignore_errors=True)


def _tell(descriptor: int, report: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the supervisor is gone, or has given this job up
        os.write(descriptor, (json.dumps(report) + "\n").encode())
