"""What can go wrong on a rented host, on demand, each with its undoing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .disk import INODES, Disk
from .namespaces import LabError, carry_out, wait_until

NOISE = """echo 'Welcome to this machine!  {"rc": 0, "stdout": ""}'
printf '\\033[1;32mGPU: 1 x RTX 4090\\033[0m\\n'
echo 'mail: you have no mail' >&2
"""


class Faults(Disk):
    """The faults of a host."""

    # -- link --------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Take the link down: nothing answers and nothing is refused; connections stay open on both sides."""
        self.lab.world.shell(f"ip link set v{self.name} down")

    def mend(self) -> None:
        self.lab.world.shell(f"ip link set v{self.name} up")

    def cut_when(self, happened: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait until `happened()` is true and cut at once; LabError when it is not in time."""
        wait_until(happened, f"what {self.name} is to be cut at", seconds)
        self.cut()

    # -- processes ---------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Stop every process of the host at once, sshd too; its kernel goes on to answer at the TCP level."""
        self.set_frozen(True)

    def thaw(self) -> None:
        self.set_frozen(False)

    def set_frozen(self, frozen: bool) -> None:
        group = self.groups().get("freeze")
        if not group:
            if frozen:
                raise LabError(self.lab.missing("freeze"))
            return
        old, wanted = group / "freezer.state", "FROZEN" if frozen else "THAWED"
        if old.exists():
            old.write_text(wanted)
            wait_until(lambda: old.read_text().strip() == wanted, f"{self.name} is {wanted}")
        elif (group / "cgroup.freeze").exists():
            (group / "cgroup.freeze").write_text(str(int(frozen)))
            events = group / "cgroup.events"
            wait_until(lambda: f"frozen {int(frozen)}" in events.read_text(), f"{self.name} is {wanted}")

    def limit_memory(self, size_bytes: int | None) -> None:
        """Give the host's processes and what they write to its disks so much memory; None takes the limit away.

        The kernel kills what exceeds it, as in a rented container. `oom_kills` counts them.
        """
        group = self.groups().get("memory")
        if not group:
            raise LabError(self.lab.missing("memory"))
        one = (group / "memory.limit_in_bytes").exists()
        limit = group / ("memory.limit_in_bytes" if one else "memory.max")
        swap = group / ("memory.memsw.limit_in_bytes" if one else "memory.swap.max")
        value = str(size_bytes) if size_bytes is not None else "-1" if one else "max"
        try:
            if size_bytes is None and swap.exists():
                swap.write_text(value)
            limit.write_text(value)
            if size_bytes is not None and swap.exists():
                # Memory and swap together in the first version, swap alone in the second.
                swap.write_text(value if one else "0")
        except OSError as error:
            used = (group / ("memory.usage_in_bytes" if one else "memory.current")).read_text().strip()
            raise LabError(f"{self.name} uses {used} bytes already: no limit of {size_bytes} ({error})") from error

    def oom_kills(self) -> int:
        group = self.groups().get("memory")
        if not group:
            return 0
        path = group / "memory.oom_control"
        path = path if path.exists() else group / "memory.events"
        return next(int(row.split()[1]) for row in path.read_text().splitlines() if row.startswith("oom_kill "))

    # -- disk --------------------------------------------------------------------------------------------------

    def data_usage(self) -> os.statvfs_result:
        return os.statvfs(f"{self.root}{self.data}")

    def remount_data(self, options: str) -> None:
        self.lab.world.shell(f"mount -o remount,{options} tmpfs {self.disk}/root{self.data}")

    def fill_disk(self, leave_bytes: int = 0) -> None:
        """Leave so much space on the data disk, at the next page: writes get ENOSPC."""
        usage = self.data_usage()
        used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
        if not used:
            # A size of zero would mean "no limit".
            self.filler.write_bytes(b"x" * usage.f_frsize)
            used = usage.f_frsize
        self.remount_data(f"size={used + leave_bytes}")

    def free_disk(self) -> None:
        self.remount_data(f"size={self.data_bytes}")
        self.filler.unlink(missing_ok=True)

    @property
    def filler(self) -> Path:
        return Path(f"{self.root}{self.data}/.filler")

    def fill_inodes(self, leave: int = 0) -> None:
        """Leave so many inodes on the data disk: new files get ENOSPC while there is space."""
        usage = self.data_usage()
        self.remount_data(f"nr_inodes={usage.f_files - usage.f_ffree + leave}")

    def free_inodes(self) -> None:
        self.remount_data(f"nr_inodes={INODES}")

    # -- SSH and login -----------------------------------------------------------------------------------------

    def change_host_key(self) -> None:
        """A new key, as after a reinstallation; `lab.pin_keys()` makes the controller trust it."""
        self.write_host_key()
        self.reload_sshd()

    def set_sshd(self, **options: str) -> None:
        """Set options of sshd_config for new sessions, or take them back with an empty value."""
        path = self.root / "etc/ssh/sshd_config"
        old = [row for row in path.read_text().splitlines() if row.split()[0] not in options]
        new = [f"{name} {value}" for name, value in options.items() if value]
        path.write_text("\n".join(new + old) + "\n")
        self.reload_sshd()

    def password_only(self, secret: str) -> None:
        """Root may log in with this password and with nothing else."""
        hashed = carry_out(["openssl", "passwd", "-6", "-stdin"], input=f"{secret}\n").stdout.strip()
        self.set_shadow(hashed)
        self.set_sshd(PubkeyAuthentication="no", PasswordAuthentication="yes")
        self.has_password = True

    def key_only(self) -> None:
        self.set_shadow("*")
        self.set_sshd(PubkeyAuthentication="yes", PasswordAuthentication="no")
        self.has_password = False

    def noisy_login(self) -> None:
        """The login shell talks on both outputs, also where nobody reads: no terminal, no command of its own."""
        self.quiet_login()
        path = self.root / "root/.bashrc"
        path.write_text(f"# noise\n{NOISE}# quiet\n{path.read_text()}")
        self.set_sshd(Banner="/etc/hostname")

    def quiet_login(self) -> None:
        path = self.root / "root/.bashrc"
        text = path.read_text()
        if text.startswith("# noise\n"):
            path.write_text(text.partition("# quiet\n")[2])
            self.set_sshd(Banner="")

    def skew_clock(self, seconds: float) -> None:
        """Let new SSH sessions, and what they start, see a clock that is off; 0 sets it right."""
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        if not found:
            raise LabError("a wrong clock needs libfaketime: apt-get install libfaketime")
        wanted = f"LD_PRELOAD={found[0]} FAKETIME={seconds:+g} FAKETIME_DONT_FAKE_MONOTONIC=1"
        self.set_sshd(SetEnv=wanted if seconds else "")
