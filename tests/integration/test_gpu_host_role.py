"""The role gpu_host against this machine: the gate, the venv, and a run without change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
PLAY = """
- name: Prepare the host
  hosts: localhost
  connection: local
  gather_facts: false
  roles: [gpu_host]
  post_tasks:
    - name: Show what the gate let pass
      ansible.builtin.debug:
        msg: "let through: {{ __gpu_host_warnings | default([]) | length }}"
"""
# A driver that is too old, on a card that is too small.
SMI = """#!/bin/sh
case "$*" in
*compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2 ;;
*query-gpu*) echo "0, NVIDIA GeForce GTX 1060 6GB, 470.161.03, 6144, 6044, [N/A]" ;;
*) echo "| NVIDIA-SMI 470.161.03   Driver Version: 470.161.03   CUDA Version: 11.4 |" ;;
esac
"""
WHEEL = {
    "stagegate_probe.py": "",
    "stagegate_probe-1.0.dist-info/METADATA": ("Metadata-Version: 2.1\nName: stagegate-probe\nVersion: 1.0\n"),
    "stagegate_probe-1.0.dist-info/WHEEL": ("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
    "stagegate_probe-1.0.dist-info/RECORD": "",
}


class Host:
    """A folder that is the host, and the way to run the role against it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, folder / "host" / "venv"
        self.stamp = self.venv / "gpu_host" / "stamp"
        self.requirements = folder / "packages.txt"
        self.requirements.write_text("stagegate-probe\n")
        (folder / "pins.txt").write_text("stagegate-probe==1.0\n")
        (folder / "play.yml").write_text(PLAY)
        (folder / "nvidia-smi").write_text(SMI)
        (folder / "nvidia-smi").chmod(0o755)
        with zipfile.ZipFile(folder / "stagegate_probe-1.0-py3-none-any.whl", "w") as wheel:
            for name, text in WHEEL.items():
                wheel.writestr(name, text)

    def run(self, gate: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {
            "project_root": str(self.folder / "host"),
            "gpu_host_gate": gate,
            "gpu_host_python_path": sys.executable,
            "gpu_host_requirements_files": [str(self.requirements)],
            "gpu_host_constraints_files": [str(self.folder / "pins.txt")],
            "gpu_host_pip_arguments": ["--no-index", f"--find-links={self.folder}"],
            "gpu_host_pip_delay_seconds": 0,
            "gpu_host_memory_min_mib": 1 << 30,
        }
        settings = {
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_INVENTORY": "localhost,",
            "ANSIBLE_DISPLAY_OK_HOSTS": "true",
            "PATH": f"{self.folder}:{os.environ['PATH']}",
        }
        playbook = str(Path(sys.executable).parent / "ansible-playbook")
        command = [playbook, "play.yml", "-e", json.dumps(given), *arguments]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("gpu_host"))


def test_the_role_from_a_refusal_to_a_run_without_change(host: Host) -> None:
    strict = host.run("strict")
    assert strict.returncode == 4, strict.stdout
    last = strict.stderr.strip().splitlines()[-1]
    for part in ("error: the host is not fit", "470.161.03", "6144 MiB", "limit of the"):
        assert part in last
    assert strict.stdout.count(" -> ") == 3, "each finding stands with its remedy"
    assert not host.venv.exists()

    dry = host.run("off", "--check")
    assert dry.returncode == 0, dry.stdout
    assert "would create the venv" in dry.stdout and "changed=1 " in dry.stdout
    assert not host.venv.exists()

    warn = host.run("warn")
    assert warn.returncode == 0, warn.stdout
    assert "470.161.03 is too old" in warn.stdout and "let through: 3" in warn.stdout
    code = "import stagegate_probe"
    subprocess.run([host.venv / "bin" / "python", "-c", code], check=True)
    assert len(host.stamp.read_text().strip()) == 64

    again = host.run("off")
    assert again.returncode == 0, again.stdout
    assert "changed=0 " in again.stdout and "ok=3 " in again.stdout
    assert "let through: 0" in again.stdout


def test_a_package_that_cannot_be_had_stops_and_is_tried_again_next_time(host: Host) -> None:
    if not host.stamp.exists():
        assert host.run("off").returncode == 0
    before = host.stamp.read_text()
    host.requirements.write_text("stagegate-probe\nstagegate-missing==9.9\n")
    failed = host.run("off")
    assert failed.returncode == 4, failed.stdout
    assert "stagegate-missing==9.9" in failed.stderr.strip().splitlines()[-1]
    assert host.stamp.read_text() == before
    host.requirements.write_text("stagegate-probe\n")
    assert "changed=0 " in host.run("off").stdout
