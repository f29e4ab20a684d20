"""A lab that outlives the command that started it, found again through its folder."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .host import Host
from .lab import RECORD, Lab
from .namespaces import CLONE_NEWNET, LabError, World, identity, wait_until

CLONE_NEWNS = 0x20000
CLONE_NEWPID = 0x20000000


def attach(folder: Path) -> Lab:
    """The lab that stands in this folder. LabError when none does."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LabError(f"no lab was started in {folder}: start one with `python -m tests.lab`") from None
    if identity(record["world"]["pid"]) != record["world"]:
        raise LabError(f"the lab in {folder} has ended: start one with `python -m tests.lab`")
    lab = Lab(folder, hosts=0)
    lab.world = World(record["world"]["pid"])
    lab.groups = {kind: Path(path) for kind, path in record["groups"].items()}
    for row in record["hosts"]:
        image = Path(row["image"]) if row["image"] else None
        host = Host(lab, row["number"], row["python"], image, row["data_bytes"])
        host.pid, host.has_password = row["pid"], row["has_password"]
        lab.hosts.append(host)
    lab.last_number = record["last_number"]
    lab.launcher = record["launcher"]
    return lab


def stands(folder: Path) -> bool:
    try:
        attach(folder)
    except LabError:
        return False
    return True


def stop(folder: Path) -> bool:
    """End the lab of this folder, if one stands there, and wait until nothing of it is left."""
    if not stands(folder):
        return False
    lab = attach(folder)
    os.kill(lab.launcher["pid"], signal.SIGTERM)
    wait_until(lambda: identity(lab.launcher["pid"]) != lab.launcher, f"the lab in {folder} ends")
    (folder / RECORD).unlink(missing_ok=True)
    return True


def execute(lab: Lab, argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command in the lab's network with this terminal; returns its exit status.

    Not through nsenter: it would end at Ctrl-C while the command still tidies up.
    """
    cwd = Path.cwd()
    library = ctypes.CDLL(None, use_errno=True)
    # All of them are opened before the first is entered: with the mounts, /proc changes.
    names = (("net", CLONE_NEWNET), ("pid", CLONE_NEWPID), ("mnt", CLONE_NEWNS))
    files = [(os.open(f"{lab.world.root.parent}/ns/{name}", os.O_RDONLY), kind) for name, kind in names]
    for file, kind in files:
        if library.setns(file, kind):
            raise LabError(f"the lab cannot be entered: {os.strerror(ctypes.get_errno())}")
        os.close(file)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(
            argv, cwd=cwd, env=dict(environment), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        )
        signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
        return child.wait()
    finally:
        signal.signal(signal.SIGINT, ignored)
