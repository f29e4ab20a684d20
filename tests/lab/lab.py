"""A lab: hosts, the network between them and a controller, all of it gone when it is closed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import yaml

from .connect import INSIDE
from .controller import Controller
from .groups import control_groups
from .host import Host
from .layers import mask_machine
from .namespaces import (
    HERE,
    SYSTEM_PATH,
    LabError,
    World,
    available,
    carry_out,
    environment_with,
    identity,
)
from .proxy import Proxy

REPOSITORY = HERE.parents[1]
RECORD = "lab.json"
NUMBERS = itertools.count(1)
DATA_BYTES = 4 << 30


class Lab:
    """`hosts` hosts in namespaces of their own. A context manager; `folder` must exist or be creatable, and stays.

    `python` and `image` hold for every host (see Host), `data_bytes` is the size of each data disk. Needs root.
    """

    def __init__(
        self, folder: Path, hosts: int = 2, image: Path | None = None, python: str = "both",
        data_bytes: int = DATA_BYTES, keep: bool = False,
    ) -> None:  # fmt: skip
        if reason := available():
            raise LabError(reason)
        self.folder = folder.resolve()
        if self.folder.is_relative_to("/run"):
            raise LabError(f"the folder of a lab cannot lie in /run: {self.folder}")
        self.image = image
        self.python = python
        self.data_bytes = data_bytes
        self.wanted = hosts
        self.keep = keep
        self.hosts: list[Host] = []
        self.groups: dict[str, Path] = {}
        self.controllers: list[Controller] = []
        self.numbers = itertools.count(1)
        self.proxies: list[tuple[Proxy, Host]] = []
        self.last_number = 0
        self.launcher: dict[str, int] = {}
        self.world: World

    # -- life --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        self.write_home()
        self.groups = control_groups(f"lab-{os.getpid()}-{next(NUMBERS)}")
        self.world = World.start(self.folder, list(dict.fromkeys(self.groups.values())), self.keep)
        assert self.world.launcher
        self.launcher = identity(self.world.launcher.pid)
        try:
            shutil.copy(HERE / "init.sh", self.layer / "init.sh")
            mask_machine(self.layer / "mask")
            self.add(self.wanted)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for proxy, _ in self.proxies:
            proxy.close()
        for controller in self.controllers:
            controller.close()
        self.world.close()
        (self.folder / RECORD).unlink(missing_ok=True)
        for host in self.hosts:
            if host.process:
                host.process.wait(30)
        self.hosts.clear()

    def write_record(self) -> None:
        """What another process needs to find this lab (standing.py)."""
        rows = [
            {
                "number": host.number, "pid": host.pid, "python": host.python, "data_bytes": host.data_bytes,
                "image": str(host.image.resolve()) if host.image else "", "has_password": host.has_password,
            }
            for host in self.hosts
        ]  # fmt: skip
        record = {
            "world": identity(self.world.pid), "launcher": self.launcher, "last_number": self.last_number,
            "groups": {kind: str(group) for kind, group in self.groups.items()}, "hosts": rows,
        }  # fmt: skip
        (self.folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    @property
    def layer(self) -> Path:
        """The lab's tmpfs as this machine sees it."""
        return self.world.root / "run/lab"

    def missing(self, what: str) -> str:
        """Why this machine cannot do "memory" (limits) or "freeze", or nothing when it can."""
        return "" if what in self.groups else f"this machine has no control group that can do {what!r} for a lab"

    # -- hosts -------------------------------------------------------------------------------------------------

    def add(
        self, count: int = 1, python: str | None = None, image: Path | None = None, data_bytes: int | None = None
    ) -> list[Host]:
        """Start that many more hosts, at once; returns them."""
        new = []
        for _ in range(count):
            self.last_number += 1
            host = Host(
                self, self.last_number, python or self.python, image or self.image, data_bytes or self.data_bytes
            )
            host.make_disk()
            host.start_boot()
            new.append(host)
        self.hosts += new
        for host in new:
            host.finish_boot()
        self.pin_keys()
        return new

    def remove(self, host: Host) -> None:
        """Power a host off for good, with its disk."""
        host.power_off()
        self.world.shell(f"umount --recursive --lazy {host.disk}; rmdir {host.disk}")
        for group in set(host.groups().values()):
            group.rmdir()
        self.hosts.remove(host)
        self.pin_keys()

    # -- controller --------------------------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def key(self) -> Path:
        return self.home / ".ssh" / "id_ed25519"

    def write_home(self) -> None:
        """A home for the controller with a key, and the account database that names it."""
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, exist_ok=True)
        ssh.chmod(0o700)
        if not self.key.exists():
            carry_out(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(self.key)])
        rows = Path("/etc/passwd").read_text().splitlines(keepends=True)
        own = pwd.getpwuid(0)
        changed = [row.replace(f":{own.pw_dir}:", f":{self.home}:") if row.startswith("root:") else row for row in rows]
        (self.folder / "passwd").write_text("".join(changed))

    def pin_keys(self) -> None:
        """Let the controller trust the present keys of all hosts, and only those; write its ssh configuration."""
        names = [(host.key_name, host) for host in self.hosts]
        names += [(f"[{proxy.address}]:{proxy.port}", host) for proxy, host in self.proxies if host in self.hosts]
        known = "".join(f"{name} {host.public_key()}\n" for name, host in names)
        (self.home / ".ssh" / "known_hosts").write_text(known)
        self.write_record()
        (self.home / ".ssh" / "config").write_text(
            "".join(f"Host {h.name}\n  HostName {h.address}\n  Port {h.port}\n  User root\n" for h in self.hosts)
        )

    def environment(self) -> dict[str, str]:
        """The whole environment of a new controller: nothing of the caller's but its language."""
        return {
            "PATH": f"{sys.prefix}/bin:{SYSTEM_PATH}", "HOME": str(self.home), "USER": "root", "LOGNAME": "root",
            "SHELL": "/bin/bash", "LANG": "C.UTF-8", "TERM": "xterm", "ANSIBLE_NOCOLOR": "1",
            # Of its own: a shared connection ends with the controller that opened it, in the middle of another's work.
            # Short, whatever the folder: a socket's path has 107 characters at most.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": f"/run/cp/{next(self.numbers)}", INSIDE: "1",
        }  # fmt: skip

    def controller(
        self, argv: Sequence[str], *, cwd: Path | str = ".", env: Mapping[str, str | None] | None = None,
        stdin: IO[bytes] | int | None = None, tty: bool = False,
    ) -> Controller:  # fmt: skip
        """Start a command in the lab's network, in a process tree of its own. `env` changes environment()."""
        log = self.folder / f"controller-{len(self.controllers) + 1}.log"
        changed = environment_with(self.environment(), env or {})
        started = Controller(self.world, argv, cwd=Path(cwd).resolve(), env=changed, log=log, stdin=stdin, tty=tty)
        self.controllers.append(started)
        return started

    def run(
        self, argv: Sequence[str], *, check: bool = False, cwd: Path | str = ".",
        env: Mapping[str, str | None] | None = None, input: str | None = None, timeout: float | None = 300.0,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """A controller to its end, with its outputs apart."""
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        init = ["bash", "-c", '"$@"; exit $?', "controller", *argv]
        changed = environment_with(self.environment(), env or {})
        entered = self.world.enter([*spaces, *init], Path(cwd).resolve())
        return carry_out(entered, check=check, input=input, timeout=timeout, env=changed, says=argv)

    def ssh(
        self, host: Host, command: str, *, check: bool = False, timeout: float | None = 60.0, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host over SSH; 255 when there is no connection."""
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=5"]
        return self.run(["ssh", *options, host.name, command], check=check, timeout=timeout, input=input, cwd="/")

    def proxy(self, host: Host, **limits: Any) -> Proxy:
        """A proxy in front of the host's SSH port (see Proxy for the limits), trusted with the host's key.

        `lab.write_inventory(path, host, ansible_host=proxy.address, ansible_port=proxy.port)` leads through it.
        """
        proxy = Proxy(self.world, (host.address, host.port), **limits)
        self.proxies.append((proxy, host))
        self.pin_keys()
        return proxy

    def inventory(self, *hosts: Host, **host_vars: Any) -> dict[str, Any]:
        """The inventory as data: group gpu_hosts with all or these hosts, each with `host_vars`."""
        rows = {
            host.name: {
                "ansible_host": host.address, "ansible_port": host.port, "ansible_user": "root",
                **({} if host.has_password else {"ansible_ssh_private_key_file": str(self.key)}), **host_vars,
            }
            for host in hosts or self.hosts
        }  # fmt: skip
        return {"gpu_hosts": {"hosts": rows}}

    def way_in(self) -> dict[str, Any]:
        """Variables with which an inventory leads into the lab from this machine too, without `exec` (connect.py).

        For those who cannot start in the lab's network, as molecule: what calls ssh by itself does not see them.
        """
        connect = f"{sys.executable} -IS {HERE / 'connect.py'} {self.world.pid} %h %p"
        # Ansible names a shared connection by address, port and user, which are those of other labs too.
        own = hashlib.sha256(f"{self.folder} {identity(self.world.pid)}".encode()).hexdigest()[:16]
        options = [
            f"ProxyCommand={connect}", "ProxyUseFdpass=yes", f"UserKnownHostsFile={self.home}/.ssh/known_hosts",
            f"ControlPath=/run/lab-{own}-%C",
        ]  # fmt: skip
        return {"ansible_ssh_common_args": " ".join(f"-o {shlex.quote(option)}" for option in options)}

    def write_inventory(self, path: Path, *hosts: Host, **host_vars: Any) -> Path:
        """Write the inventory as YAML, beside the project's group_vars; a folder gets `hosts.yml`. Returns the file."""
        path = path / "hosts.yml" if path.is_dir() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.inventory(*hosts, **host_vars), sort_keys=False), encoding="utf-8")
        shared = path.parent / "group_vars"
        if not shared.exists():
            shared.symlink_to(REPOSITORY / "inventory" / "group_vars")
        return path
