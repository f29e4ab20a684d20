"""A machine of the lab: who it is, where its disk lies, and what can be asked of it without SSH."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .namespaces import SYSTEM_PATH, LabError, carry_out, is_running, kill, wait_until

if TYPE_CHECKING:
    from .lab import Lab

DATA = "root/autodl-tmp"
PORT = 2222


class Machine:
    """Address, SSH port, root file system, data disk (`/root/autodl-tmp`) and processes of its own.

    `python` says what it has: "system" (/usr/bin/python3), "miniconda" (/root/miniconda3 only), "both" or "none".
    """

    def __init__(
        self, lab: Lab, number: int, python: str, image: Path | None, data_bytes: int, name: str | None = None
    ) -> None:
        self.lab = lab
        self.number = number
        self.name = name or f"box{number}"
        self.address = f"10.77.{number // 200}.{number % 200 + 10}"
        self.mac = f"02:4c:01:00:{number // 256:02x}:{number % 256:02x}"
        self.port = PORT
        self.image = image
        self.python = python
        self.data_bytes = data_bytes
        self.pid = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.has_password = False

    @property
    def disk(self) -> str:
        """The folder of its layers and mounts inside the lab."""
        return f"/run/lab/{self.name}"

    @property
    def layer(self) -> Path:
        return Path(f"{self.lab.world.root}{self.disk}")

    @property
    def root(self) -> Path:
        """Its root file system as this machine sees it, also while it is off. An absolute link leads out of it."""
        return self.layer / "root"

    @property
    def data(self) -> str:
        """The data disk, as the host names it."""
        return f"/{DATA}"

    @property
    def key_name(self) -> str:
        """What known_hosts calls it."""
        return f"[{self.address}]:{self.port}"

    def groups(self) -> dict[str, Path]:
        return {kind: group / self.name for kind, group in self.lab.groups.items()}

    # -- inside ----------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        return bool(self.pid) and is_running(self.pid)

    def joined(self, argv: Sequence[str]) -> list[str]:
        """The command with the host's control groups joined first."""
        files = [str(group / "cgroup.procs") for group in dict.fromkeys(self.groups().values())]
        return ["bash", "-c", f'for f in {shlex.join(files)}; do echo 0 > $f; done; exec "$@"', "join", *argv]

    def enter(self, argv: Sequence[str]) -> list[str]:
        into = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--"]
        return self.joined([*into, *argv])

    def run(
        self, command: str, check: bool = True, input: str | None = None, timeout: float | None = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the host as root, not over SSH. LabError when it fails and `check` is set."""
        if not self.is_on:
            raise LabError(f"{self.name} is off")
        environment = {"PATH": SYSTEM_PATH, "HOME": "/root", "USER": "root", "LANG": "C.UTF-8"}
        argv = self.enter(["bash", "-c", f"cd /root; {command}"])
        return carry_out(argv, check=check, input=input, timeout=timeout, env=environment, says=[command])

    def processes(self) -> list[tuple[int, str]]:
        """(pid, command line) of what runs on the host, without init and sshd."""
        # A child of sshd has the full command line at first and none at its end.
        own = re.compile(r"sshd(: .*)?|/usr/sbin/sshd .*", re.DOTALL)
        return [(inner, line) for _, inner, line in self.all_processes() if inner != 1 and not own.fullmatch(line)]

    def all_processes(self) -> list[tuple[int, int, str]]:
        """(pid on this machine, pid on the host, command line) of everything on the host but zombies."""
        found: list[tuple[int, int, str]] = []
        if not self.is_on:
            return found
        own = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or os.stat(entry / "ns" / "pid").st_ino != own:
                    continue
                fields = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines())
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except (OSError, ValueError):
                continue
            if not fields["State"].startswith("Z"):
                # The lab, the host: the last number is the innermost.
                found.append((int(entry.name), int(fields["NSpid"].split()[-1]), line or fields["Name"]))
        return sorted(found)

    def kill_all(self) -> None:
        """End every process of the host but init and the listening sshd; returns when they are gone."""

        def others() -> list[int]:
            kept = "sshd: /usr/sbin/sshd"
            return [pid for pid, inner, line in self.all_processes() if inner != 1 and not line.startswith(kept)]

        def gone() -> bool:
            left = others()
            for pid in left:
                kill(pid)
            return not left

        wait_until(gone, f"the processes of {self.name} end")

    def reload_sshd(self) -> None:
        """Let sshd read its files anew; sessions stay."""
        listener = next(pid for pid, _, line in self.all_processes() if line.startswith("sshd: /usr/sbin/sshd"))
        inodes = self.listening()
        os.kill(listener, signal.SIGHUP)
        wait_until(lambda: (now := self.listening()) and now != inodes, f"sshd of {self.name} listens again")

    def listening(self) -> set[str]:
        """The sockets that listen on the SSH port."""
        found = set()
        for row in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[1].endswith(f":{self.port:04X}") and fields[3] == "0A":
                found.add(fields[9])
        return found
