"""Processes and the lock: who runs, whether it still does, what belongs to a plan, and how it is ended. No torch.

A process is known by boot id + pid + start time, so that a pid that was given to somebody else after a
restart is never taken for ours. What a plan started is known by a variable in its environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.errors import Interrupted

Identity = dict[str, Any]
PLAN_VARIABLE = "STAGEGATE_PLAN"  # in the environment of everything that a plan starts
KILL_SECONDS = 10.0  # how long a killed process may take to go; one that waits for a device stays
PAUSE_SECONDS = 0.05
STATES = {"D": "waits for a disk or a device", "T": "was stopped by a signal", "t": "is held by a debugger"}


class Locked(Interrupted):
    """Another process holds the lock."""


def boot_seconds() -> float:
    """Seconds since this machine started, those it slept included; no change of its clock moves them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def boot_id() -> str:
    """The kernel's id of this boot; where it tells none, when its first process started; else an empty text."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    fields = _stat(1)
    return f"first process at {fields[19]}" if fields else ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the name: state, parent, … ; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold anything


def start_time(pid: int) -> str | None:
    """When a process started (clock ticks since boot on Linux), None when there is none or it is a zombie."""
    if Path("/proc/self/stat").exists():
        fields = _stat(pid)
        return None if not fields or fields[0] in "ZX" else fields[19]
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def state_of(pid: int) -> str:
    """What keeps a process from running (`was stopped by a signal`, …), an empty text when nothing does."""
    fields = _stat(pid)
    return STATES.get(fields[0], "") if fields else ""


def identity(pid: int | None = None) -> Identity:
    """Boot id, pid and start time of a process (this one by default)."""
    number = os.getpid() if pid is None else pid
    return {"boot_id": boot_id(), "pid": number, "start_time": start_time(number)}


def is_alive(who: Identity | None) -> bool:
    """Whether exactly the process of this identity still runs."""
    if not who or who.get("boot_id") != boot_id() or not isinstance(who.get("pid"), int):
        return False
    return start_time(who["pid"]) is not None and start_time(who["pid"]) == who.get("start_time")


# The lock


@contextlib.contextmanager
def locked(path: Path, wait_seconds: float = 0.0) -> Iterator[IO[str]]:
    """Hold the supervisor's lock; Locked when another process still holds it after `wait_seconds`.

    A supervisor waits a little: those who only look hold the lock for a moment, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    while True:
        with path.open("a+", encoding="utf-8") as stream:
            if _try_lock(stream):
                if is_file_at(stream, path):
                    yield stream
                    return
            elif time.monotonic() >= deadline:
                pid = (holder(path) or {}).get("pid")
                raise Locked(
                    f"another process{f' (pid {pid})' if pid else ''} holds {path.name}: a plan is running here; "
                    "watch it with `trainer watch` or end it with `trainer cancel`"
                )
        time.sleep(PAUSE_SECONDS)  # also when the file was deleted before we had it: a lock on it guards nothing


def _try_lock(stream: IO[Any]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_file_at(stream: IO[Any], path: Path) -> bool:
    """Whether an open file is (still) the one at this path."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except OSError:
        return False


def claim(stream: IO[str], **fields: Any) -> None:
    """Write into the lock who holds it: what is known of a plan whose file cannot be read."""
    stream.truncate(0)
    stream.write(json.dumps({**identity(), **fields}) + "\n")
    stream.flush()


def holder(path: Path) -> Identity | None:
    """Who wrote itself into the lock last and still runs."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and is_alive(found) else None


def renew(held: list[IO[str]], path: Path, **fields: Any) -> None:
    """Lock the file that is at `path` now when it is not the one that is held: somebody deleted that."""
    if is_file_at(held[-1], path):
        return
    stream = path.open("a+", encoding="utf-8")
    if _try_lock(stream):
        held.append(stream)
        claim(stream, **fields)
    else:
        stream.close()


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


# What belongs to a plan


def marker(plan_id: str, root: Path) -> str:
    """The value of PLAN_VARIABLE for a plan: its id and a short hash of the project root."""
    return f"{plan_id}:{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"


def _pids() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def marked(text: str) -> list[Identity]:
    """This user's running processes whose environment carries exactly this marker, this process apart."""
    wanted = f"{PLAN_VARIABLE}={text}".encode()
    found = []
    for pid in _pids():
        try:
            if pid == os.getpid() or os.stat(f"/proc/{pid}").st_uid != os.geteuid():
                continue
            who = identity(pid)  # before the look at the environment: of the same process, or of none
            carried = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in carried and is_alive(who):
            found.append(who)
    return found


def descendants(pid: int) -> list[int]:
    """The running processes below a process."""
    children: dict[int, list[int]] = {}
    for number in _pids():
        fields = _stat(number)
        if fields and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(number)
    found, unseen = [], [pid]
    while unseen:
        below = children.get(unseen.pop(), [])
        found += below
        unseen += below
    return found


def cpu_seconds(pids: list[int]) -> float:
    """Processor time that these processes, and those below them that have ended, have used together."""
    ticks = sum(int(value) for pid in pids for value in _stat(pid)[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


# Ending


@dataclass(frozen=True)
class Ended:
    """How many processes were ended, and those that could not be: `pid 7 (python) waits for a disk or a device`."""

    count: int
    left: list[str]


def send(who: Identity, number: int) -> None:
    """Send a signal to exactly this process; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            descriptor = os.pidfd_open(who["pid"])
        except (AttributeError, OSError):
            if is_alive(who):
                os.kill(who["pid"], number)
            return
        try:  # behind the descriptor the pid cannot be given to somebody else any more
            if is_alive(who):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def terminate(who: Identity) -> None:
    """Ask a process to end, also one that was stopped."""
    send(who, signal.SIGTERM)
    send(who, signal.SIGCONT)


def end_all(find: Callable[[], list[Identity]], grace_seconds: float) -> Ended:
    """TERM what `find` finds, wait, then KILL what is left and whatever it started meanwhile; see that it is gone."""
    asked: set[tuple[int, str]] = set()
    deadline = time.monotonic() + grace_seconds
    while alive := find():
        late = time.monotonic() - deadline
        if late >= KILL_SECONDS:
            break
        for who in alive:
            known = (who["pid"], who["start_time"])
            if late >= 0:
                send(who, signal.SIGKILL)
            elif known not in asked:
                terminate(who)
            asked.add(known)
        time.sleep(PAUSE_SECONDS)
    left = [_named(who["pid"]) for who in alive]
    return Ended(len(asked) - len(left), left)


def _named(pid: int) -> str:
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
        return f"pid {pid} ({name}) {state_of(pid) or 'goes on'}"
    return f"pid {pid}"


def end(who: Identity, grace_seconds: float) -> bool:
    """TERM a process by identity and wait for it to go; KILL after the grace. False when it was gone before."""
    if not is_alive(who):
        return False
    end_all(lambda: [who] if is_alive(who) else [], grace_seconds)
    return True


def end_group(leader: subprocess.Popen[Any], grace_seconds: float) -> None:
    """TERM the leader's process group, wait, then KILL what is left; the leader is reaped."""
    for number in (signal.SIGTERM, signal.SIGCONT):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(grace_seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(KILL_SECONDS)


def die_with_parent() -> None:
    """On Linux, ask the kernel to kill this process when its parent dies: nothing trains unseen."""
    _control(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h


def adopt_orphans() -> None:
    """On Linux, become the parent of what our descendants leave behind, so that it stays among them."""
    _control(36, 1)  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


def _control(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
