"""One host of the lab: its disk, its boot, and what can be asked of it without SSH."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import layers
from .faults import Faults
from .namespaces import (
    GATEWAY, GATEWAY_MAC, SYSTEM_PATH, LabError, carry_out, descendant, is_running, kill, wait_until,
)  # fmt: skip

if TYPE_CHECKING:
    from .lab import Lab

DATA = "root/autodl-tmp"
PORT = 2222
SSHD_CONFIG = f"""Port {PORT}
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin yes
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
AcceptEnv LANG LC_*
MaxStartups 100
Subsystem sftp internal-sftp
"""


class Host(Faults):
    """A machine to rent: address, SSH, root file system, data disk (`/root/autodl-tmp`), processes of its own.

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

    # -- the disk ----------------------------------------------------------------------------------------------

    def make_disk(self) -> None:
        """Layers and mounts of a fresh host; they stay through a power loss."""
        lower = [*self.image_layers("system"), Path("/run/lab/mask"), Path("/")]
        self.layer.mkdir()
        self.lab.world.shell(
            f"mount -t tmpfs -o size=8g tmpfs {self.disk}; cd {self.disk}; mkdir upper work root; touch boot_id; "
            f"mount -t overlay -o {self.overlay(lower, 'upper', 'work')} overlay root; "
            # What is mounted here later appears in the running host.
            f"mount --make-shared root; mkdir -p root/{DATA}; "
            f"mount -t tmpfs -o size={self.data_bytes},mode=755 tmpfs root/{DATA}"
        )
        if self.image and (self.image / "data").is_dir():
            carry_out(["cp", "-a", f"{self.image}/data/.", f"{self.root}/{DATA}"])
        self.write_files()
        if self.python in ("miniconda", "both"):
            self.with_miniconda()
        if self.python in ("miniconda", "none"):
            self.without_python()

    def overlay(self, lower: Sequence[Path], upper: str, work: str) -> str:
        # A folder of a lower layer can be renamed only so; programs do not expect "another device" within one folder.
        options = f"lowerdir={layers.lower_option(lower)},upperdir={upper},workdir={work},redirect_dir=on"
        return shlex.quote(options)

    def image_layers(self, kind: str) -> list[Path]:
        """The layers of this kind that the image and those below it keep, from the top."""
        found, image = [], self.image
        while image:
            if (image / kind).is_dir():
                found.append(image / kind)
            below = image / "below"
            image = below.resolve() if below.is_symlink() else None
        return found

    def write_files(self) -> None:
        etc = self.root / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (etc / "ssh" / "sshd_config").write_text(SSHD_CONFIG)
        shadow = (etc / "shadow").read_text().splitlines(keepends=True)
        self.write_private("etc/shadow", "root:*:19000:0:99999:7:::\n" + "".join(shadow[1:]))
        self.write_private("root/.ssh/authorized_keys", (self.lab.key.with_suffix(".pub")).read_text())
        (self.root / "root/.bashrc").write_text(layers.ROOT_SHELL)
        (self.root / "root/.profile").write_text("[ -f ~/.bashrc ] && . ~/.bashrc\n")
        self.write_host_key()

    def write_private(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(0o600)
        path.chmod(0o600)
        path.write_text(text)

    def write_host_key(self) -> None:
        key = self.root / "etc/ssh/ssh_host_ed25519_key"
        for path in (key, key.with_name(f"{key.name}.pub")):
            path.unlink(missing_ok=True)
        carry_out(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key)])

    def public_key(self) -> str:
        """Type and key of the host, as known_hosts wants them."""
        return " ".join((self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])

    # -- power -------------------------------------------------------------------------------------------------

    def start_boot(self) -> None:
        """Start PID 1; `finish_boot` waits for sshd."""
        (self.layer / "boot_id").write_text(f"{uuid.uuid4()}\n")
        for group in self.groups().values():
            group.mkdir(exist_ok=True)
        inner = ["--net", "--mount", "--pid", "--uts", "--ipc", "--cgroup"]
        # `slave`: what the lab mounts on the host's disk later shows in the host, nothing shows the other way.
        unshare = ["unshare", *inner, "--propagation", "slave", "--fork", "--kill-child=KILL"]
        environment = {
            "PATH": SYSTEM_PATH, "HOME": "/root", "ROOT": f"{self.disk}/root", "LAB": "/run/lab", "NAME": self.name,
            "ADDRESS": self.address, "MAC": self.mac, "GATEWAY": GATEWAY, "GATEWAY_MAC": GATEWAY_MAC,
            "BOOT_ID": f"{self.disk}/boot_id",
        }  # fmt: skip
        log = (self.lab.folder / f"{self.name}.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                self.joined(self.lab.world.enter([*unshare, "bash", "/run/lab/init.sh"])), env=environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip

    def finish_boot(self) -> None:
        assert self.process and self.process.stdout
        if self.process.stdout.readline() != b"ready\n":
            self.process.wait()
            raise LabError(f"{self.name} does not boot: {(self.lab.folder / f'{self.name}.log').read_text().strip()}")
        self.process.stdout.close()
        # nsenter starts unshare, which starts PID 1 of the host.
        self.pid = descendant(self.process, 2)

    def joined(self, argv: Sequence[str]) -> list[str]:
        """The command with the host's control groups joined first."""
        files = [str(group / "cgroup.procs") for group in dict.fromkeys(self.groups().values())]
        return ["bash", "-c", f'for f in {shlex.join(files)}; do echo 0 > $f; done; exec "$@"', "join", *argv]

    @property
    def is_on(self) -> bool:
        return bool(self.pid) and is_running(self.pid)

    def power_off(self, state: str = "keep") -> None:
        """Power loss: nobody is told anything. With "lose" every `outputs/state` folder is gone afterwards."""
        if state not in ("keep", "lose"):
            raise LabError(f"the state after a power loss is 'keep' or 'lose', not {state!r}")
        if self.is_on:
            self.cut()
            kill(self.pid)
            self.thaw()
            self.wait_gone()
        if state == "lose":
            for root in (self.root / DATA, self.root / "root", self.root / "home"):
                for path in list(root.glob("**/outputs/state")):
                    shutil.rmtree(path)

    def wait_gone(self) -> None:
        if self.process:
            self.process.wait(30)
            self.process = None
        else:
            wait_until(lambda: not is_running(self.pid), f"{self.name} ends")
        self.pid = 0
        self.lab.world.shell(f"ip link delete v{self.name} 2>/dev/null || true")

    def power_on(self) -> None:
        """The same disk, address and keys; a new boot id, empty /run, no process of before."""
        if self.is_on:
            raise LabError(f"{self.name} is on already")
        self.start_boot()
        self.finish_boot()

    # -- inside ------------------------------------------------------------------------------------------------

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
        return [(inner, line) for _, inner, line in self.all_processes() if inner != 1 and not line.startswith("sshd")]

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
        """End every process of the host but init and the listening sshd."""
        for pid, inner, line in self.all_processes():
            if inner != 1 and not line.startswith("sshd: /usr/sbin/sshd"):
                kill(pid)

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

    # -- images ------------------------------------------------------------------------------------------------

    def snapshot(self, path: Path) -> Path:
        """Keep what was written on this host (system and data disk) as an image for `Lab(image=…)`.

        The host may run; its files should rest. The folder must not exist. Returns it.
        """
        path.mkdir(parents=True)
        if self.image:
            (path / "below").symlink_to(self.image.resolve())
        kept = ("upper", "system"), ("upper-0", "provider-0"), ("upper-1", "provider-1")
        for written, kind in kept:
            if (self.layer / written).is_dir():
                # The attributes hold what is opaque or renamed; `cp -a` copies whiteouts as what they are.
                carry_out(["cp", "-a", f"{self.layer / written}", str(path / kind)])
        carry_out(["cp", "-a", f"{self.root / DATA}", str(path / "data")])
        for name in ("etc/ssh", "root/.ssh", "run", "tmp"):
            shutil.rmtree(path / "system" / name, ignore_errors=True)
        return path
