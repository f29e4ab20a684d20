"""The disk of a host: the layers of its root file system, its data disk, the files that make it this host."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from . import layers
from .machine import DATA, PORT, Machine
from .namespaces import carry_out

INODES = 1_000_000
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


class Disk(Machine):
    """What stays of a host when its power is gone."""

    def make_disk(self) -> None:
        """Layers and mounts of a fresh host; they stay through a power loss."""
        lower = [*self.image_layers("system"), Path("/run/lab/mask"), Path("/")]
        self.layer.mkdir()
        self.lab.world.shell(
            f"mount -t tmpfs -o size=8g tmpfs {self.disk}; cd {self.disk}; mkdir upper work root; touch boot_id; "
            f"mount -t overlay -o {self.overlay(lower, 'upper', 'work')} overlay root; "
            # What is mounted here later appears in the running host.
            f"mount --make-shared root; mkdir -p root/{DATA}; "
            f"mount -t tmpfs -o size={self.data_bytes},nr_inodes={INODES},mode=755 tmpfs root/{DATA}"
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
                found.append(self.brought_in(image / kind))
            below = image / "below"
            image = below.resolve() if below.is_symlink() else None
        return found

    def brought_in(self, layer: Path) -> Path:
        """A layer's copy in the lab, made once: the kernel refuses a layer that lies in another one, here in /."""
        name = f"image-{hashlib.sha256(str(layer.resolve()).encode()).hexdigest()[:16]}"
        if not (self.lab.layer / name).exists():
            carry_out(["cp", "-a", str(layer), str(self.lab.layer / name)])
        return Path("/run/lab") / name

    def write_files(self) -> None:
        etc = self.root / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (etc / "ssh" / "sshd_config").write_text(SSHD_CONFIG)
        self.set_shadow("*")
        self.write_private("root/.ssh/authorized_keys", (self.lab.key.with_suffix(".pub")).read_text())
        (self.root / "root/.bashrc").write_text(layers.ROOT_SHELL)
        (self.root / "root/.profile").write_text("[ -f ~/.bashrc ] && . ~/.bashrc\n")
        self.write_host_key()

    def write_private(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_text(text)

    def public_key(self) -> str:
        """Type and key of the host, as known_hosts wants them."""
        return " ".join((self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])

    def write_host_key(self) -> None:
        key = self.root / "etc/ssh/ssh_host_ed25519_key"
        for path in (key, key.with_name(f"{key.name}.pub")):
            path.unlink(missing_ok=True)
        carry_out(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key)])

    def set_shadow(self, hashed: str) -> None:
        path = self.root / "etc/shadow"
        others = [row for row in path.read_text().splitlines(keepends=True) if not row.startswith("root:")]
        path.write_text(f"root:{hashed}:19000:0:99999:7:::\n" + "".join(others))

    def without_python(self) -> None:
        """Hide the system's Python and pip. They come back with a host of its own."""
        for name in layers.python_programs():
            (self.root / name).unlink(missing_ok=True)

    def with_miniconda(self) -> None:
        """Give the host /root/miniconda3 with torch and the rest, without copying: see layers.provider_layers."""
        if not (self.lab.layer / "provider").exists():
            layers.write_provider_bin(self.lab.layer / "provider")
        for number, (where, lower) in enumerate(layers.provider_layers(Path("/run/lab/provider"))):
            lower = [*self.image_layers(f"provider-{number}"), *lower]
            upper, work = f"upper-{number}", f"work-{number}"
            self.lab.world.shell(
                f"cd {self.disk}; mkdir -p {upper} {work} root/{where}; "
                f"mount -t overlay -o {self.overlay(lower, upper, work)} overlay root/{where}"
            )

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
