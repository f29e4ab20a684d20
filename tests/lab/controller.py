"""A controller in a process tree of its own, which can be interrupted as at a terminal, or lost at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from .namespaces import World, children, descendant, kill, wait_until

# The first process starts the command when the lab has found it, which a short command would end before; it reaps what
# is left to it; the command gets a session of its own, as from a login.
INIT = 'trap : INT TERM HUP; read -r _ <&{go} || exit; exec {go}<&-; setsid {terminal} -- "$@"; exit $?'
# What util-linux 2.38 complains of when the process that it waits for was killed.
UNSHARE_SAYS = "unshare: sigprocmask unblock failed: Invalid argument\n"


class Controller:
    """A running command. `output` is what it said so far, standard output and error together."""

    def __init__(
        self, world: World, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path,
        stdin: IO[bytes] | int | None = None, tty: bool = False,
    ) -> None:  # fmt: skip
        self.log = log
        self.main = 0
        self.lost = False
        self.terminal = -1
        self.reader: threading.Thread | None = None
        go, found = os.pipe()
        init = ["bash", "-c", INIT.format(go=go, terminal="--ctty" if tty else ""), "controller", *argv]
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        command = world.enter([*spaces, *init], cwd)
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("wb"))
            stack.callback(os.close, found)
            stack.callback(os.close, go)
            if tty:
                self.terminal, inner = pty.openpty()
                fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
                stack.callback(os.close, inner)
                given: IO[bytes] | int = inner
                said: IO[bytes] | int = inner
                self.reader = threading.Thread(target=self.read_terminal, daemon=True)
            else:
                given, said = subprocess.DEVNULL if stdin is None else stdin, out
            self.process = subprocess.Popen(
                command, stdin=given, stdout=said, stderr=said, env=dict(env), pass_fds=(go,), start_new_session=True
            )
            # nsenter starts unshare, which starts the first process of the controller's own tree.
            self.first = descendant(self.process, 2)
            os.write(found, b"\n")
        if self.reader:
            self.reader.start()

    def read_terminal(self) -> None:
        # A terminal that nobody holds any longer reads as an error.
        with self.log.open("ab", buffering=0) as log, contextlib.suppress(OSError):
            while piece := os.read(self.terminal, 65536):
                log.write(piece)

    @property
    def output(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
        return text.replace(UNSHARE_SAYS, "")

    @property
    def returncode(self) -> int | None:
        """Exit status; 128 + n when signal n ended the command; None while it runs."""
        code = self.process.poll()
        return 128 + signal.SIGKILL if self.lost and code is not None else code

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; subprocess.TimeoutExpired when it still runs."""
        self.process.wait(timeout)
        if self.reader:
            self.reader.join(5)
        assert self.returncode is not None
        return self.returncode

    def wait_for(self, text: str, timeout: float = 60.0) -> str:
        """Wait until the output contains `text`; returns the output. LabError when it does not in time."""
        wait_until(lambda: text in self.output or self.returncode is not None, f"{text!r} in {self.log.name}", timeout)
        if text not in self.output:
            raise AssertionError(f"the controller ended with {self.returncode} before it said {text!r}: {self.output}")
        return self.output

    def write(self, text: str) -> None:
        """Type this at the terminal."""
        os.write(self.terminal, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C: at the terminal when it has one, else SIGINT to the command's process group."""
        if self.terminal >= 0:
            self.write("\x03")
        else:
            self.signal(signal.SIGINT)

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        leader = self.main or wait_until(self.find_main, "the controller's command starts")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, number)

    def find_main(self) -> int:
        for pid in children(self.first)[:1]:  # those behind it were left by others, such as shared connections of ssh
            with contextlib.suppress(ProcessLookupError):
                self.main = pid if os.getpgid(pid) == pid else 0
        return self.main

    def lose(self) -> None:
        """kill -9 of everything that it started, whatever its session, at once; nothing can be tidied up."""
        self.lost = self.process.poll() is None
        kill(self.first)
        self.process.wait(30)

    def close(self) -> None:
        if self.returncode is None:
            self.lose()
        if self.reader:
            self.reader.join(5)
            self.reader = None
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1
