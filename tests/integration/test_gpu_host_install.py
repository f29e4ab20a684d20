"""The installer that runs pip on the host apart from the connection: what it does when it is broken off."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

INSTALLER = Path(__file__).parents[2] / "roles" / "gpu_host" / "files" / "install.py"
DEADLINE_SECONDS = 120
PIP = "{python} -m pip install --no-index --no-deps --require-hashes --find-links={wheels} -r trainer.lock"


def write_wheel(folder: Path, version: str = "1.0") -> str:
    """A wheel of one module; returns its requirement with the hash."""
    info = f"stagegate_probe-{version}.dist-info"
    path = folder / f"stagegate_probe-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("stagegate_probe.py", "VALUE = 1\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: stagegate-probe\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"stagegate_probe.py,,10\n{info}/METADATA,,\n{info}/RECORD,,\n")
    return f"stagegate-probe=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Installation:
    """A job in a folder, carried out by the Python of a venv of its own."""

    def __init__(self, folder: Path, venv: Path) -> None:
        self.folder, self.python = folder / "record", venv / "bin" / "python"
        self.folder.mkdir()
        self.cache, self.temporary = folder / "cache", folder / "tmp"

    def job(self, *shell: str, **changes: Any) -> None:
        steps = [{"what": f"step {n}", "argv": ["/bin/sh", "-c", text]} for n, text in enumerate(shell, 1)]
        job = {
            "stamp": "a1", "why": "a torch", "steps": steps, "environment": {}, "environment_files": [], "tries": 3,
            "delay_seconds": 0, "cache_dir": str(self.cache), "temporary_dir": str(self.temporary), **changes,
        }  # fmt: skip
        (self.folder / "job.json").write_text(json.dumps(job))

    def call(self, *words: str) -> str:
        command = [self.python, INSTALLER, self.folder, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True)
        return done.stdout.strip()

    def wait(self, seconds: float = DEADLINE_SECONDS / 2, stamp: str = "a1") -> dict[str, Any]:
        return dict(json.loads(self.call("wait", str(seconds), stamp)))

    def carry_out(self) -> dict[str, Any]:
        assert self.call("start") == "started"
        return self.wait()

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installer") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def installation(tmp_path: Path, venv: Path) -> Installation:
    return Installation(tmp_path, venv)


def wait_for(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.02)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_stamp_stands_only_after_the_last_step(installation: Installation) -> None:
    installation.job(
        "test -d $PIP_CACHE_DIR", "echo Successfully installed x-1.0; test ! -e stamp",
        environment={"PIP_CACHE_DIR": str(installation.cache)},
    )  # fmt: skip
    assert installation.carry_out() == {"state": "done", "changed": True, "message": "", "lines": [], "stamp": "a1"}
    assert installation.lines("stamp") == ["a1", "a torch"]
    assert not installation.cache.exists() and not installation.temporary.exists()
    installation.job("exit 3")
    assert installation.carry_out()["state"] == "failed"
    assert installation.cache.is_dir(), "what was downloaded is kept for the next run"


def test_a_killed_installation_leaves_no_stamp_and_the_next_one_goes_through(installation: Installation) -> None:
    installation.job("echo $$ > pid; exec sleep 600")
    assert installation.call("start") == "started"
    wait_for(lambda: installation.lines("pid"))
    pip = int(installation.lines("pid")[0])
    installer = parent(pip)
    assert installation.wait(0)["state"] == "running"
    for pid in (installer, pip):
        os.kill(pid, signal.SIGKILL)
    assert installation.wait()["state"] == "gone"
    assert not (installation.folder / "stamp").exists()
    installation.job("true")
    assert installation.carry_out()["state"] == "done"
    assert installation.lines("stamp")[0] == "a1"


def test_a_pip_whose_parent_was_killed_still_counts_as_running(installation: Installation) -> None:
    installation.job("echo $$ > pid; while [ ! -e go-on ]; do sleep 0.05; done")
    installation.call("start")
    wait_for(lambda: installation.lines("pid"))
    os.kill(parent(int(installation.lines("pid")[0])), signal.SIGKILL)
    assert installation.call("start") == "adopted", "two pips in one venv would spoil it"
    assert installation.wait(0)["state"] == "running"
    (installation.folder / "go-on").touch()
    assert installation.wait()["state"] == "gone"
    assert installation.call("start") == "started"
    assert installation.wait()["state"] == "done"


def test_a_second_run_waits_for_the_first(installation: Installation) -> None:
    installation.job("echo ran >> runs; while [ ! -e go-on ]; do sleep 0.05; done")
    assert (installation.call("start"), installation.call("start")) == ("started", "adopted")
    (installation.folder / "go-on").touch()
    assert installation.wait()["state"] == "done"
    assert installation.wait(stamp="b2")["state"] == "other"
    assert installation.lines("runs") == ["ran"]


def test_a_broken_download_is_tried_again_with_the_environment_of_the_provider(installation: Installation) -> None:
    turbo = installation.folder.parent / "network_turbo"
    turbo.write_text("echo noise; export https_proxy=http://203.0.113.9:1\n")
    step = "echo \"${https_proxy:-none}\" >> seen; [ $(wc -l < seen) = 3 ] || { echo 'Read timed out.'; exit 1; }"
    installation.job(step, environment_files=[str(turbo)], environment={"https_proxy": ""})
    assert installation.carry_out()["state"] == "done"
    assert installation.lines("seen") == ["none", "http://203.0.113.9:1", "none"]


@pytest.mark.parametrize(
    ("said", "tries", "sentence"),
    [
        ("ERROR: No matching distribution found for x==9", 1, "step 1 failed: ERROR: No matching distribution"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", 1, "disk is full"),
        ("OSError: [Errno 122] Disk quota exceeded", 1, "disk is full"),
        ("ERROR: Connection broken: IncompleteRead(3 bytes read)", 3, "step 1 failed: ERROR: Connection broken"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", 3, "its hash differs"),
    ],
)
def test_the_failure_in_one_sentence(installation: Installation, said: str, tries: int, sentence: str) -> None:
    installation.job(f"echo ran >> runs; echo '{said}' >&2; exit 1", "touch second")
    result = installation.carry_out()
    assert (result["state"], len(installation.lines("runs"))) == ("failed", tries)
    assert sentence in result["message"] and "\n" not in result["message"]
    assert not (installation.folder / "second").exists() and not (installation.folder / "stamp").exists()


def test_a_package_that_was_cut_off_is_installed_again_and_a_whole_one_is_left_alone(
    installation: Installation, venv: Path
) -> None:
    wheels = installation.folder.parent
    (installation.folder / "trainer.lock").write_text(write_wheel(wheels))
    pip = PIP.format(python=installation.python, wheels=wheels)
    installation.job(pip)
    assert installation.carry_out()["changed"]
    assert not installation.carry_out()["changed"], "nothing is left to install"

    (site,) = (venv / "lib").glob("python3*/site-packages")
    damages: list[Callable[[], object]] = [
        (site / "stagegate_probe-1.0.dist-info" / "RECORD").unlink,  # pip writes it last
        (site / "stagegate_probe.py").unlink,
        lambda: (site / "stagegate_probe.py").write_text(""),  # what a power loss leaves of an unsynced file
    ]
    for damage in damages:
        damage()
        (site / "~tagegate_probe").mkdir()
        assert installation.carry_out()["changed"], installation.lines("install.log")
        assert (site / "stagegate_probe.py").read_text() == "VALUE = 1\n"
        assert not (site / "~tagegate_probe").exists()
    assert installation.lines("install.log")[0].startswith("incomplete, installed again: stagegate_probe")


def test_another_file_than_the_locked_one_is_not_installed(installation: Installation, venv: Path) -> None:
    wheels = installation.folder.parent
    row = write_wheel(wheels, "2.0")
    pip = PIP.format(python=installation.python, wheels=wheels)
    installation.job(pip, tries=1)
    (installation.folder / "trainer.lock").write_text(row.replace(row.strip()[-4:], "0000"))
    assert "its hash differs" in installation.carry_out()["message"]
    (installation.folder / "trainer.lock").write_text(row)
    assert installation.carry_out()["state"] == "done"
