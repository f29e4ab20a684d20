"""A lab for people and for molecule.

    python -m tests.lab [--hosts 1] [--folder F]         start hosts, wait for Ctrl-C, remove everything
    python -m tests.lab up --folder F [--hosts 1]        start hosts that outlive the command; print the inventory
    python -m tests.lab down --folder F                  remove them
    python -m tests.lab exec [--folder F] -- COMMAND     run a command where it reaches them, as the lab's controller

The hosts' network is not joined to the machine's: no route, address, device or firewall rule of the machine is touched,
so that nothing can be disturbed or left, and two labs may use the same addresses. `exec` takes a command there instead.
The inventory also works without it, as molecule needs: it leads Ansible's connections in by itself (connect.py).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from .lab import REPOSITORY, Lab
from .machine import DATA
from .namespaces import LabError, available
from .standing import attach, execute, stands, stop

FOLDER = REPOSITORY / ".stagegate" / "lab"
# No GPU and no package index in there: the same line as on the embedded host, over SSH, with the provider's packages.
PLAY_VARS: dict[str, Any] = {"gpu_host_gate": "off", "trainer_profile": "embedded"}
PLAY_ROOT = f"/{DATA}/stagegate"


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="A lab of SSH hosts on this machine.")
    parser.add_argument("action", nargs="?", choices=["play", "up", "down", "exec"], default="play")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what belongs to the lab (default: %(default)s)")
    parser.add_argument("--hosts", type=int, default=1, help="how many hosts (default: %(default)s)")
    parser.add_argument("--python", choices=["both", "system", "miniconda", "none"], default="both")
    parser.add_argument("--image", type=Path, help="a snapshot to start from")
    own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    asked = parser.parse_args(own)
    asked.command = command
    if (asked.action == "exec") != bool(command):
        parser.error("a command goes behind `exec --`, and only there")
    return asked


def start(asked: argparse.Namespace, keep: bool, **host_vars: Any) -> tuple[Lab, Path]:
    if stands(asked.folder):
        raise LabError(f"a lab stands in {asked.folder} already: python -m tests.lab down --folder {asked.folder}")
    asked.folder.mkdir(parents=True, exist_ok=True)
    lab = Lab(asked.folder, hosts=asked.hosts, python=asked.python, image=asked.image, keep=keep)
    lab.start()
    return lab, lab.write_inventory(asked.folder, **host_vars, **lab.way_in())


def play(asked: argparse.Namespace) -> None:
    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    where = {"project_root": PLAY_ROOT, "gpu_host_venv_dir": f"{PLAY_ROOT}/venv"}
    lab, inventory = start(asked, keep=False, **PLAY_VARS, **where)
    try:
        folder = "" if asked.folder == FOLDER else f" --folder {asked.folder}"
        reach = f"{os.path.relpath(sys.executable)} -m tests.lab exec{folder} --"
        print(f"inventory: {os.path.relpath(inventory)}")
        for host in lab.hosts:
            print(f"{host.name}: root@{host.address} port {host.port}, data disk {host.data}")
        print("\nIn another terminal:")
        print(f"  {reach} ansible-playbook -i {os.path.relpath(inventory)} playbooks/train_all.yml")
        print(f"  {reach} ssh {lab.hosts[0].name}")
        print("\nCtrl-C ends the hosts; nothing of them stays.", flush=True)
        while True:
            signal.pause()
    except KeyboardInterrupt:
        print()
    finally:
        lab.close()


def main(words: list[str]) -> int:
    asked = arguments(words)
    asked.folder = asked.folder.absolute()
    try:
        if reason := available():
            raise LabError(reason)
        if asked.action == "play":
            play(asked)
        elif asked.action == "up":
            print(start(asked, keep=True)[1])
        elif asked.action == "down":
            stop(asked.folder)
        else:
            lab = attach(asked.folder)
            own = {name: value for name, value in lab.environment().items() if name not in ("TERM", "ANSIBLE_NOCOLOR")}
            return execute(lab, asked.command, {**os.environ, **own})
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
