"""Processes and the lock: who runs, whether it still does, and how it is ended. No torch.

A process is known by boot id + pid + start time, so that a pid that was given to somebody else after a
restart is never taken for ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trainer.errors import Interrupted


def boot_id() -> str:
    """The kernel's id of this boot, or an empty text where there is none (not Linux)."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def start_time(pid: int) -> str | None:
    """When a process started (clock ticks since boot on Linux), None when there is none or it is a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()  # the name before it may hold anything
        return None if fields[0] in "ZX" else fields[19]
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def identity(pid: int | None = None) -> dict[str, Any]:
    """Boot id, pid and start time of a process (this one by default)."""
    number = os.getpid() if pid is None else pid
    return {"boot_id": boot_id(), "pid": number, "start_time": start_time(number)}


def is_alive(who: dict[str, Any] | None) -> bool:
    """Whether exactly the process of this identity still runs."""
    if not who or who.get("boot_id") != boot_id() or not isinstance(who.get("pid"), int):
        return False
    return start_time(who["pid"]) is not None and start_time(who["pid"]) == who.get("start_time")


@contextlib.contextmanager
def locked(path: Path, wait_seconds: float = 0.0) -> Iterator[IO[str]]:
    """Hold the supervisor's lock; Interrupted when another process still holds it after `wait_seconds`.

    A supervisor waits a little: those who only look hold the lock for a moment, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with path.open("a+", encoding="utf-8") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Interrupted(
                        f"another process holds {path.name}: a plan is running here; watch it with `trainer watch` "
                        "or end it with `trainer cancel`"
                    ) from None
            time.sleep(0.05)
        yield stream


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock now; changes nothing, and two who look do not see each other."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return False
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def end_group(leader: subprocess.Popen[Any], grace_seconds: float) -> None:
    """TERM the leader's process group, wait, then KILL what is left; the leader is reaped."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(grace_seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def end(who: dict[str, Any], grace_seconds: float) -> bool:
    """TERM a process by identity and wait for it to go; KILL after the grace. False when it was gone before."""
    if not is_alive(who):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(who["pid"], signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while is_alive(who):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(who["pid"], signal.SIGKILL)
        time.sleep(0.1)
    return True


def die_with_parent() -> None:
    """On Linux, ask the kernel to kill this process when its parent dies: nothing trains unseen."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
