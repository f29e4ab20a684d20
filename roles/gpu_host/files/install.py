"""Runs pip on the host, apart from the connection that asked for it: `install.py FOLDER start|wait SECONDS`.

FOLDER holds job.json: `stamp`, `why` (a line for people beside it), `steps` (each `what` and `argv`), `environment`,
`environment_files` (sourced in every second try), `tries`, `delay_seconds`, and two folders that are removed at the
end: `cache_dir` (kept after a failure, for the next run) and `temporary_dir`. It gets `install.log`, `result.json` and,
when everything is installed, `stamp`.

`start` goes on in the background, unless an installation runs already; `wait` answers after at most so many seconds
with one JSON object: `state` is running, done, failed, other (another job's result) or gone (ended without a result:
killed, or the host restarted).
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

POLL_SECONDS, LOOK_SECONDS = 0.2, 1.0
# What pip prints when the network and not a package is to blame. A file with another hash may be a broken download.
NETWORK = re.compile(
    r"timed out|max retries|connection|unreachable|incomplete ?read|50[234] server error|name resolution"
    r"|not known|broken pipe|bad gateway|DO NOT MATCH THE HASHES|EOF occurred",
    re.IGNORECASE,
)
FULL = re.compile(r"No space left on device|Disk quota exceeded|\[Errno (?:28|122)\]")


def lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock, or None while another installation holds it.

    pip inherits it, so that a pip whose parent was killed still counts as a running installation.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.set_inheritable(descriptor, True)
    return descriptor


def write(path: Path, text: str) -> None:
    """Replace a file at once, safe against a power loss."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def mend(site: Path) -> list[str]:
    """Make pip install again what a killed pip or a power loss left incomplete; returns the packages' folders.

    pip counts a package as installed once its METADATA is there. It writes RECORD last: a package without it, or with
    a file that is missing or of another size, loses its metadata. Folders that begin with ~ are pip's own leavings.
    """
    broken = [folder for folder in site.glob("*.dist-info") if not is_whole(folder)]
    for folder in [*broken, *site.glob("~*")]:
        shutil.rmtree(folder, ignore_errors=True)
    return sorted(folder.name for folder in broken)


def is_whole(folder: Path) -> bool:
    """Whether every file of the package's RECORD is there, with the size that it gives; compiled files aside."""
    try:
        with (folder / "RECORD").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 3 and not row[0].endswith(".pyc")]
        sizes = [(os.stat(folder.parent / name).st_size, size) for name, _, size in rows]
    except (OSError, ValueError, csv.Error):
        return False
    return all(not size.isdigit() or found == int(size) for found, size in sizes)


def command(argv: list[str], files: list[str], attempt: int) -> list[str]:
    """The command of a try: every second one has the provider's environment files sourced (a proxy may be in them)."""
    if not files or attempt % 2:
        return argv
    source = 'for file in $STAGEGATE_SOURCE; do . "$file" >/dev/null 2>&1; done; exec "$@"'
    return ["/bin/sh", "-c", source, "sh", *argv]


def sentence(text: str, what: str, rc: int) -> str:
    """The end of a failed step in one sentence."""
    rows = [row.strip() for row in text.splitlines() if row.strip()]
    if full := next((row for row in rows if FULL.search(row)), ""):
        return f"the disk is full while {what} ({full[-160:]}): make room or use a larger disk, then run again"
    if rc < 0:
        return f"{what} was killed by signal {-rc} (out of memory, or somebody ended it): run again"
    if "DO NOT MATCH THE HASHES" in text:
        return f"{what} failed: a file of the index is not the one that is locked (its hash differs): use another index"
    errors = [row for row in rows if row.startswith("ERROR:")]
    return f"{what} failed: {(errors or rows or [f'status {rc}'])[-1][-300:]}"


def carry_out(folder: Path, job: dict[str, Any], descriptor: int) -> dict[str, Any]:
    """Run the steps, each until it works or its tries are used up; returns the result."""
    environment = {**os.environ, **job["environment"], "STAGEGATE_SOURCE": " ".join(job["environment_files"])}
    shutil.rmtree(job["temporary_dir"], ignore_errors=True)
    for path in (job["cache_dir"], job["temporary_dir"]):
        Path(path).mkdir(parents=True, exist_ok=True)
    if sys.prefix != sys.base_prefix:  # never in the provider's own packages
        mended = mend(Path(sysconfig.get_path("purelib")))
        (folder / "install.log").write_text("".join(f"incomplete, installed again: {name}\n" for name in mended))
    changed = False
    for step in job["steps"]:
        for attempt in range(1, job["tries"] + 1):
            with (folder / "install.log").open("ab") as log:
                begin = log.tell()
                log.write(f"== {step['what']}, try {attempt} of {job['tries']}\n".encode())
                log.flush()
                argv = command(step["argv"], job["environment_files"], attempt)
                done = subprocess.run(
                    argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    pass_fds=[descriptor], check=False,
                )  # fmt: skip
            said = (folder / "install.log").read_bytes()[begin:].decode(errors="replace")
            changed = changed or "Successfully installed" in said
            if done.returncode == 0:
                break
            again = NETWORK.search(said) and not FULL.search(said) and attempt < job["tries"]
            if not again:
                message = sentence(said, step["what"], done.returncode)
                return {"state": "failed", "changed": changed, "message": message, "lines": said.splitlines()[-15:]}
            time.sleep(job["delay_seconds"])
    for path in (job["cache_dir"], job["temporary_dir"]):
        shutil.rmtree(path, ignore_errors=True)
    return {"state": "done", "changed": changed, "message": "", "lines": []}


def run(folder: Path, descriptor: int) -> None:
    """The part in the background: the result is written last but one, the stamp last."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    try:
        result = carry_out(folder, job, descriptor)
    except OSError as error:
        full = f"[Errno {error.errno}]"
        message = sentence(f"{full} {error}", "the installation", 1)
        result = {"state": "failed", "changed": True, "message": message, "lines": []}
    if result["state"] == "done":
        write(folder / "stamp", f"{job['stamp']}\n{job['why']}\n")
    write(folder / "result.json", json.dumps({**result, "stamp": job["stamp"]}))


def start(folder: Path) -> str:
    """Detach an installation; "adopted" when one runs already (its job may be another one: wait tells)."""
    deadline = time.monotonic() + LOOK_SECONDS
    while (descriptor := lock(folder)) is None:  # somebody who waits may hold the lock for a moment
        if time.monotonic() >= deadline:
            return "adopted"
        time.sleep(POLL_SECONDS)
    for name in ("result.json", "install.log"):
        (folder / name).unlink(missing_ok=True)
    if os.fork():
        os.close(descriptor)
        return "started"
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    try:
        run(folder, descriptor)
    finally:
        os._exit(0)


def wait(folder: Path, seconds: float, stamp: str) -> dict[str, Any]:
    """The result once the installation has ended, or where it stands after so many seconds."""
    deadline = time.monotonic() + seconds
    while (descriptor := lock(folder)) is None:
        if time.monotonic() >= deadline:
            return {"state": "running", "changed": False, "message": last_line(folder), "lines": []}
        time.sleep(POLL_SECONDS)
    os.close(descriptor)
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = {}
    if result.get("stamp") == stamp:
        return dict(result)
    return {"state": "other" if result else "gone", "changed": True, "message": "", "lines": []}


def last_line(folder: Path) -> str:
    """Where the running step stands; pip ends its lines with carriage returns too."""
    try:
        text = (folder / "install.log").read_bytes()[-2000:].decode(errors="replace")
    except OSError:
        return ""
    rows = [row.strip() for row in re.split(r"[\r\n]", text) if row.strip()]
    return rows[-1][:160] if rows else ""


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if sys.argv[2] == "start":
        print(start(place))
    else:
        print(json.dumps(wait(place, float(sys.argv[3]), sys.argv[4])))
