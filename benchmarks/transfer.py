"""How fast collect brings files home, against rsync and Ansible's fetch over the same SSH on this machine.

    python benchmarks/transfer.py [--mib 1024] [--files 2000] [--rounds 3] [--without-fetch]

An sshd of its own listens on the loopback address with keys of its own, everything in a temporary folder. Per
round each way brings the same tree once into an empty folder, one after the other, so that a slow minute of the
machine meets all of them. `collect` counts everything: Ansible's start, the listing with its hashes on the host
side (after a training nothing is remembered), the transfer, the verification, fsync and the publishing. Everything
shares one machine here: two encryptions and up to three hashes compete for the same processors.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PLAYBOOKS = {
    "collect": "- hosts: gpu_hosts\n  gather_facts: false\n  roles: [artifacts]\n",
    "fetch": (
        "- hosts: gpu_hosts\n  gather_facts: false\n  tasks:\n    - ansible.builtin.fetch:\n"
        "        src: '{{ project_root }}/outputs/adapter/adapter_style/adapter_model.safetensors'\n"
        "        dest: '{{ artifacts_output_dir }}/'\n        flat: true\n"
    ),
}


def make_host(root: Path, mib: int, files: int) -> None:
    """A project root with one large adapter and many small logs; `trainer collect` takes it as it is."""
    adapter, logs, state = (root / "outputs" / name for name in ("adapter/adapter_style", "logs", "state"))
    for folder in (adapter, logs, state):
        folder.mkdir(parents=True)
    with (adapter / "adapter_model.safetensors").open("wb") as stream:
        for _ in range(mib):
            stream.write(os.urandom(1 << 20))
    for number in range(files):
        (logs / f"step_{number}.log").write_bytes(os.urandom(2048))
    plan = {"schema": 1, "plan_id": "p", "stages": ["style"], "status": "ended", "outcomes": {}, "gate": "strict"}
    (state / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (root / "code").symlink_to(REPOSITORY)


@contextlib.contextmanager
def own_sshd(folder: Path) -> Iterator[Path]:
    """An sshd on the loopback address; yields the ssh configuration that reaches it as `bench`."""
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    public = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
    server_options = {
        "ListenAddress": "127.0.0.1", "Port": port, "HostKey": folder / "host_key", "PidFile": "none",
        "AuthorizedKeysFile": folder / "authorized_keys", "StrictModes": "no", "UsePAM": "no",
        "PasswordAuthentication": "no", "Subsystem sftp": "internal-sftp",
    }  # fmt: skip
    client_options = {
        "Host": "bench", "HostName": "127.0.0.1", "Port": port, "User": getpass.getuser(), "IdentitiesOnly": "yes",
        "IdentityFile": folder / "user_key", "UserKnownHostsFile": folder / "known_hosts", "Compression": "no",
        "BatchMode": "yes",
    }  # fmt: skip
    for name, options in (("sshd_config", server_options), ("ssh_config", client_options)):
        (folder / name).write_text("".join(f"{key} {value}\n" for key, value in options.items()))
    os.makedirs("/run/sshd", exist_ok=True)  # sshd insists on it when it runs as root
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    server = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield folder / "ssh_config"
    finally:
        server.terminate()
        server.wait()


class Bench:
    """One host tree and the ways to bring it."""

    def __init__(self, folder: Path, config: Path, root: Path) -> None:
        self.folder, self.config, self.root = folder, config, root
        host = {
            "ansible_host": "bench", "ansible_ssh_common_args": f"-F {config}", "project_root": str(root),
            "ansible_python_interpreter": sys.executable, "artifacts_python": sys.executable,
            "artifacts_output_dir": str(folder / "home"), "artifacts_repository_dir": str(REPOSITORY),
        }  # fmt: skip
        (folder / "hosts.json").write_text(json.dumps({"gpu_hosts": {"hosts": {"bench": host}}}))
        for name, text in PLAYBOOKS.items():
            (folder / f"{name}.yml").write_text(text)

    def _play(self, name: str) -> None:
        command: list[str | Path] = [Path(sys.executable).parent / "ansible-playbook", "-i", self.folder / "hosts.json"]
        done = subprocess.run(
            [*command, self.folder / f"{name}.yml"], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)

    def collect(self) -> None:
        shutil.rmtree(self.root / "outputs" / "cache", ignore_errors=True)
        self._play("collect")

    def nothing_new(self) -> None:
        self._play("collect")

    def fetch(self) -> None:
        self._play("fetch")

    def rsync(self) -> None:
        source = f"bench:{self.root}/outputs/"
        subprocess.run(["rsync", "-a", "-e", f"ssh -F {self.config}", source, self.folder / "home"], check=True)

    def seconds(self, way: Callable[[], None]) -> float:
        if way != self.nothing_new:  # bound methods are equal, not identical
            shutil.rmtree(self.folder / "home", ignore_errors=True)
        os.sync()
        started = time.monotonic()
        way()
        return time.monotonic() - started


def measure(title: str, mib: int, files: int, rounds: int, names: list[str], folder: Path, config: Path) -> None:
    """Run the ways in turn and print the table."""
    root = folder / "host"
    shutil.rmtree(root, ignore_errors=True)
    make_host(root, mib, files)
    bench = Bench(folder, config, root)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(bench.seconds(getattr(bench, name)))
    print(f"\n{title}, {rounds} rounds\n\n| way | min s | median s | max s | of rsync (median of the pairs) |")
    print("|---|---|---|---|---|")
    for name, times in found.items():
        ratio = statistics.median(own / other for own, other in zip(times, found["rsync"], strict=True))
        print(f"| {name} | {min(times):.1f} | {statistics.median(times):.1f} | {max(times):.1f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-fetch", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stagegate_bench_") as name, own_sshd(Path(name)) as config:
        ways = ["rsync", "collect", "nothing_new", *([] if given.without_fetch else ["fetch"])]
        measure(f"one file of {given.mib} MiB", given.mib, 0, given.rounds, ways, Path(name), config)
        ways = ["rsync", "collect", "nothing_new"]  # a fetch loop needs a second and a half for each file
        measure(f"{given.files} files of 2 KiB", 0, given.files, given.rounds, ways, Path(name), config)


if __name__ == "__main__":
    main()
