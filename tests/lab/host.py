"""One host of the lab: its boot and its power."""

from __future__ import annotations

import shutil
import subprocess
import uuid

from .faults import Faults
from .machine import DATA
from .namespaces import GATEWAY, GATEWAY_MAC, SYSTEM_PATH, LabError, descendant, is_running, kill, wait_until


class Host(Faults):
    """A machine to rent, which can be switched on and off."""

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
        self.lab.write_record()
