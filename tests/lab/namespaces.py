"""The one set of namespaces in which a whole lab lives, and how to run something inside it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
GATEWAY = "10.77.0.1"
GATEWAY_MAC = "02:4c:00:00:00:01"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ("bash", "ip", "mount", "nsenter", "pivot_root", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare")
DEADLINE_SECONDS = 30.0
CLONE_NEWNET = 0x40000000
T = TypeVar("T")
# What a host needs from the kernel, tried at once: a bridge and a pair, an overlay over the machine's root, a whiteout.
TRIAL = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/upper /run/work /run/root
mknod /run/upper/work c 0 0
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay /run/root
unshare --pid --uts --ipc --cgroup --fork --kill-child=KILL mount -t proc proc /run/root/proc
ip link add lab type bridge
ip link add one type veth peer name two
"""


class LabError(RuntimeError):
    """The lab could not do what was asked; the text says what and why."""


@functools.cache
def available() -> str:
    """Why no lab can be started on this machine, or nothing when one can."""
    if os.geteuid() != 0:
        return "a lab of hosts needs root"
    if missing := [tool for tool in TOOLS if not shutil.which(tool, path=SYSTEM_PATH)]:
        return f"a lab of hosts needs {', '.join(missing)}"
    outer = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "bash", "-c", TRIAL]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(outer, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False, cwd="/")
        if done.returncode == 0:
            return ""
        return f"this machine does not allow the namespaces of a lab: {done.stderr.strip().splitlines()[-1:]}"
    return "this machine does not allow the namespaces of a lab: the trial did not end"


def wait_until(true: Callable[[], T], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    """What `true` returns, as soon as it is true; LabError when it is not in time."""
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not in {seconds:g} s")
        time.sleep(0.005)
    return answer


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendant(process: subprocess.Popen[Any], depth: int) -> int:
    """The process `depth` forks below one that was just started, each of which has one child."""

    def find() -> int:
        pid = process.pid
        for _ in range(depth):
            found = children(pid)
            if not found:
                if process.poll() is not None:
                    raise LabError(f"a process of the lab ended at once with {process.returncode}")
                return 0
            pid = found[0]
        return pid

    return wait_until(find, "a process of the lab starts")


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def identity(pid: int) -> dict[str, int]:
    """A process by pid and start time (ticks since boot); empty when it is not there."""
    try:
        return {"pid": pid, "started": int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])}
    except (FileNotFoundError, ProcessLookupError):
        return {}


def carry_out(
    argv: Sequence[str],
    *,
    check: bool = True,
    input: str | None = None,
    timeout: float | None = None,
    says: Sequence[str] = (),
    **more: Any,
) -> subprocess.CompletedProcess[str]:
    """Like subprocess.run with captured text, but a timeout ends the whole process group.

    What leaves namespaces behind it would otherwise run on when only its first process is killed. `says` is the
    command that messages name instead of `argv`.
    """
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL if input is None else subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True, **more,
    )  # fmt: skip
    try:
        out, err = process.communicate(input, timeout=timeout)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    # As a shell tells it: nsenter and unshare end by the signal that ended their command.
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    done = subprocess.CompletedProcess(list(says or argv), code, out, err)
    if check and code:
        raise LabError(f"{' '.join(done.args)!r} ended with {code}: {err.strip() or out.strip()}")
    return done


class World:
    """The outer namespaces: network with a bridge, mounts with a tmpfs on /run, processes; `pid` is their first."""

    def __init__(self, pid: int, launcher: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.launcher = launcher

    @classmethod
    def start(cls, folder: Path, groups: Sequence[Path], keep: bool = False) -> World:
        """Namespaces that end with this process; with `keep`, when their launcher gets SIGTERM."""
        environment = {"PATH": SYSTEM_PATH, "GATEWAY": GATEWAY, "GATEWAY_MAC": GATEWAY_MAC}
        log = folder / "world.log"
        with contextlib.ExitStack() as stack:
            stdin: Any = subprocess.PIPE
            kept: tuple[int, ...] = ()
            if keep:
                # The launcher holds both ends: its input never ends.
                stdin, writing = os.pipe()
                kept = (writing,)
                stack.callback(os.close, stdin)
                stack.callback(os.close, writing)
            launcher = subprocess.Popen(
                ["bash", str(HERE / "world.sh"), str(folder), *map(str, groups)], env=environment, stdin=stdin,
                stdout=subprocess.PIPE, stderr=stack.enter_context(log.open("wb")), cwd="/", start_new_session=True,
                pass_fds=kept,
            )  # fmt: skip
            assert launcher.stdout
            if launcher.stdout.readline() != b"ready\n":
                launcher.kill()
                launcher.wait()
                raise LabError(f"the lab does not start: {log.read_text().strip()}")
            launcher.stdout.close()
        # bash starts setpriv, which becomes unshare, which starts the first process inside.
        return cls(descendant(launcher, 2), launcher)

    @property
    def root(self) -> Path:
        """The lab's file system as this machine sees it."""
        return Path(f"/proc/{self.pid}/root")

    def enter(self, argv: Sequence[str], cwd: Path | str = "/") -> list[str]:
        """The command that runs `argv` in these namespaces."""
        # The folder is looked up again inside: the old one would be a mount that is not there.
        into = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--"]
        return [*into, "sh", "-c", 'cd "$0" && exec "$@"', str(cwd), *argv]

    def shell(self, script: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return carry_out(self.enter(["bash", "-ec", script]), env={"PATH": SYSTEM_PATH}, says=[script], **more)

    def in_network(self, work: Callable[[], T]) -> T:
        """Do `work`, which makes sockets, in the lab's network; it may use them from any thread afterwards."""
        answers: list[T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                with open(f"/proc/{self.pid}/ns/net") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "the lab's network cannot be entered")
                answers.append(work())
            except BaseException as error:
                errors.append(error)

        # The network of a process is that of each of its threads: this one is thrown away with it.
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return answers[0]

    def close(self) -> None:
        """Kill everything in the namespaces and wait until it is gone."""
        if self.launcher:
            if self.launcher.stdin:
                self.launcher.stdin.close()
            else:
                self.launcher.terminate()
            try:
                self.launcher.wait(DEADLINE_SECONDS)
            finally:
                self.launcher.kill()


def environment_with(base: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """The base with the changes; None takes a name away."""
    return {name: value for name, value in {**base, **changes}.items() if value is not None}
